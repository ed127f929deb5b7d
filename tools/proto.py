"""Generates lbcore/api/v1 from the protos, with the generator that protos/generator.txt pins.

    python tools/proto.py           writes the generated code
    python tools/proto.py --check   compares it with what is there; exit status 1 when it is stale

The generator wants an old protobuf and so lives in a virtual environment of its own, under build/.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GENERATOR = PROTOS / "generator.txt"
ENVIRONMENT = ROOT / "build" / "generator"
PIP_FLAGS = ("--quiet", "--disable-pip-version-check", "--no-input")


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate the protocol's Python code.")
    parser.add_argument("--check", action="store_true", help="compare only; exit status 1 when the code is stale")
    check: bool = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = differences(Path(folder))
        if check and stale:
            sys.exit(f"{', '.join(stale)}: not what the protos say; run `make proto`")
        if not check:
            install(Path(folder), stale)
            print(f"generated code: {len(stale)} files changed")


def generator() -> Path:
    """The Python of the generator's environment, which is made again whenever the pin or this Python changes."""
    stamp = ENVIRONMENT / "stamp"
    wanted = f"{sys.version}\n{GENERATOR.read_text()}"
    python = ENVIRONMENT / "bin" / "python"
    if not stamp.is_file() or stamp.read_text() != wanted:
        venv.create(ENVIRONMENT, clear=True, with_pip=True)
        command: list[str | Path] = [python, "-m", "pip", "install", *PIP_FLAGS, "-r", GENERATOR]
        if subprocess.run(command, check=False).returncode != 0:
            sys.exit(f"cannot install the generator that {GENERATOR.relative_to(ROOT)} names")
        stamp.write_text(wanted)
    return python


def generate(folder: Path) -> None:
    """Writes the code of all protos, and nothing for the services of a file that has none."""
    files = sorted(PROTOS.rglob("*.proto"))
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
    command: list[str | Path] = [generator(), "-m", "grpc_tools.protoc", f"-I{PROTOS}", *outputs, *files]
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit("the generator refuses the protos")
    for file in files:
        if not re.search(r"^service\s", file.read_text(), re.MULTILINE):
            stub = file.relative_to(PROTOS).with_name(f"{file.stem}_pb2_grpc.py")
            (folder / stub).unlink()


def differences(folder: Path) -> list[str]:
    """Generated files that are missing, different or left over in the tree, as paths from the root."""
    fresh = {str(path.relative_to(folder)) for path in folder.rglob("*_pb2*")}
    present = {str(path.relative_to(ROOT)) for path in (ROOT / "lbcore" / "api").rglob("*_pb2*.py*") if path.is_file()}
    present = {path for path in present if not path.endswith(".pyc")}
    stale = {path for path in fresh & present if (folder / path).read_bytes() != (ROOT / path).read_bytes()}
    return sorted(stale | (fresh ^ present))


def install(folder: Path, stale: list[str]) -> None:
    """Brings the tree in line."""
    for path in stale:
        source, target = folder / path, ROOT / path
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
        else:
            target.unlink()


if __name__ == "__main__":
    main()
