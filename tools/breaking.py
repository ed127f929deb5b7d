"""Compares the protos with the last release, or with the main branch before there is one, and fails on a broken wire.

    python tools/breaking.py

Does nothing outside a git checkout and where neither a release nor a main branch is known.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUF = Path(sys.executable).with_name("buf")


def main() -> None:
    reference = git("describe", "--tags", "--match", "v*", "--abbrev=0") or first_known("origin/main", "main")
    if not reference:
        print("protocol: nothing to compare with")
        return
    against = f".git#ref={git('rev-parse', f'{reference}^{{commit}}')}"
    if subprocess.run([BUF, "breaking", "--against", against], cwd=ROOT, check=False).returncode != 0:
        sys.exit(f"the protocol breaks who speaks that of {reference}")


def first_known(*branches: str) -> str:
    return next((branch for branch in branches if git("rev-parse", "--verify", "--quiet", branch)), "")


def git(*arguments: str) -> str:
    """What git answers, or nothing when it fails or is not there."""
    try:
        answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


if __name__ == "__main__":
    main()
