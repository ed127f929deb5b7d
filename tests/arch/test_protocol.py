"""The generated code says what the protos say: every message, field, enum and call, with its number and type."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from tests.arch.tree import GENERATED, ROOT

PROTOS = sorted(path.relative_to(ROOT / "protos").as_posix() for path in (ROOT / "protos").rglob("*.proto"))


@pytest.fixture(scope="module")
def compiled() -> dict[str, descriptor_pb2.FileDescriptorProto]:
    """The protos as they are, compiled anew."""
    command: list[str | Path] = [
        Path(sys.executable).with_name("buf"),
        "build",
        "--as-file-descriptor-set",
        "--exclude-source-info",
    ]
    result = subprocess.run([*command, "-o", "-#format=binpb"], cwd=ROOT, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    return {file.name: file for file in descriptor_pb2.FileDescriptorSet.FromString(result.stdout).file}


@pytest.mark.parametrize("proto", PROTOS)
def test_the_generated_code_is_fresh(proto: str, compiled: dict[str, descriptor_pb2.FileDescriptorProto]) -> None:
    generated = importlib.import_module(proto.removesuffix(".proto").replace("/", ".") + "_pb2")
    committed = descriptor_pb2.FileDescriptorProto.FromString(generated.DESCRIPTOR.serialized_pb)
    expected = compiled[proto]
    # The compilers differ in whether they write the JSON names that follow from the names.
    for file in (committed, expected):
        for message in file.message_type:
            _forget_json_names(message)
    assert committed == expected, "run `make proto`"


def test_stubs_exist_for_files_with_a_service_and_for_no_other(
    compiled: dict[str, descriptor_pb2.FileDescriptorProto],
) -> None:
    wanted = {f"{file.removesuffix('.proto')}_pb2_grpc.py" for file, content in compiled.items() if content.service}
    present = {path.relative_to(ROOT).as_posix() for path in GENERATED.rglob("*_pb2_grpc.py")}
    assert present == wanted, "run `make proto`"


def _forget_json_names(message: descriptor_pb2.DescriptorProto) -> None:
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        _forget_json_names(nested)
