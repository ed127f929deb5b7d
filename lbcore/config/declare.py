"""What an option is: a field of a frozen dataclass, declared with `option`, and everything that follows from it."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar, overload

T = TypeVar("T")

# A check takes the type of its own field, which no single type can say of all of them.
Check = Callable[[Any], str | None]

ENV_PREFIX = "LB_"
_RESERVED = ("config", "help", "version")


@overload
def option(
    *,
    help: str,
    metavar: str = ...,
    choices: Iterable[str] = ...,
    check: Check | None = ...,
    secret: bool = ...,
    aliases: Iterable[str] = ...,
    takes_rest: bool = ...,
) -> Any: ...
@overload
def option(
    default: T,
    *,
    help: str,
    metavar: str = ...,
    choices: Iterable[str] = ...,
    check: Check | None = ...,
    secret: bool = ...,
    aliases: Iterable[str] = ...,
    takes_rest: bool = ...,
) -> T: ...
def option(
    default: object = dataclasses.MISSING,
    *,
    help: str,
    metavar: str = "",
    choices: Iterable[str] = (),
    check: Check | None = None,
    secret: bool = False,
    aliases: Iterable[str] = (),
    takes_rest: bool = False,
) -> object:
    """Declares a field as an option; without a default it is required.

    The field's type is one of str, int, float, bool, tuple[str, ...] (a comma list), tuple[tuple[str, str], ...] (texts
    by name, NAME=TEXT;NAME=TEXT, or a table in the file), an Enum (given by its values), or one of these or None.
    `check` returns what is wrong with a value as the end of a sentence ("is not positive"), or None. A `secret` is
    never shown, neither in errors nor in the dataclass's repr. `aliases` are further flags, as other systems call the
    same thing. One text on a command line `takes_rest`: what stands behind `--` is added to its value, word by word,
    quoted as a shell would.
    """
    if check is not None and not callable(check):
        # Inside a class body, a field of the same name hides a function of the module.
        raise TypeError(f"the check of the option {help!r} is no function")
    facts = Facts(help, metavar, tuple(choices), check, secret, tuple(aliases), takes_rest)
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata={Facts: facts}, repr=not secret)
    return dataclasses.field(default=default, metadata={Facts: facts}, repr=not secret)


@dataclass(frozen=True, slots=True)
class Facts:
    """What `option` was told."""

    help: str
    metavar: str
    choices: tuple[str, ...]
    check: Check | None
    secret: bool
    aliases: tuple[str, ...]
    takes_rest: bool


@dataclass(frozen=True, slots=True)
class Group:
    """A dataclass of options, and where it stands on the command line."""

    cls: type
    prefix: str = ""
    """`step_ms` under `sim` is `--sim-step-ms`, `LB_SIM_STEP_MS` and `step-ms` in the file's table `[sim]`."""
    title: str = ""
    """The heading in the help."""
    only_with: tuple[str, str] | None = None
    """An option and the value it must have for this group to count, as ("engine", "sim"). While it has another, the
    group has no values, and it is an error to give one of its options."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """One option, and how it is called everywhere."""

    name: str
    """As in the flag, without the dashes."""
    field: str
    group: Group
    kind: type
    """str, int, float, bool, tuple, dict (for texts by name) or an Enum."""
    default: object
    """`dataclasses.MISSING` when the option is required."""
    facts: Facts

    @property
    def flag(self) -> str:
        return f"--{self.name}"

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.name.upper().replace("-", "_")

    @property
    def file_key(self) -> str:
        """The key in the file, after its table if it has one."""
        key = self.field.replace("_", "-")
        return f"[{self.group.prefix}] {key}" if self.group.prefix else key

    @property
    def help(self) -> str:
        return self.facts.help

    @property
    def flags(self) -> tuple[str, ...]:
        """The flag, then its aliases."""
        return (self.flag, *(f"--{alias}" for alias in self.facts.aliases))

    @property
    def secret(self) -> bool:
        return self.facts.secret

    @property
    def check(self) -> Check | None:
        return self.facts.check

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(str(item.value) for item in self.kind) if issubclass(self.kind, Enum) else self.facts.choices

    @property
    def metavar(self) -> str:
        """What stands for the value in the help."""
        names = {int: "N", float: "X", tuple: "A,B,...", dict: "NAME=TEXT;..."}
        return self.facts.metavar or "|".join(self.choices) or names.get(self.kind, "TEXT")

    @property
    def default_text(self) -> str:
        """The default as one would write it; empty for none."""
        return "" if self.required or self.default is None or self.secret else as_text(self.default)


def declare(groups: Sequence[Group]) -> dict[str, Declaration]:
    """Every option of the groups by name, in the order of declaration.

    Raises TypeError for a field that is no option or has a type that cannot be one, ValueError for a name taken twice.
    """
    declarations: dict[str, Declaration] = {}
    flags: set[str] = set()
    for group in groups:
        hints = typing.get_type_hints(group.cls)
        for field in dataclasses.fields(group.cls):
            facts = field.metadata.get(Facts)
            if facts is None:
                raise TypeError(f"{group.cls.__name__}.{field.name} is not declared with option()")
            name = f"{group.prefix}_{field.name}".strip("_").replace("_", "-")
            if name in declarations or name in _RESERVED:
                raise ValueError(f"the option {name} is declared twice")
            kind = _kind(hints[field.name], f"{group.cls.__name__}.{field.name}")
            declaration = declarations[name] = Declaration(name, field.name, group, kind, field.default, facts)
            if not flags.isdisjoint(declaration.flags):
                raise ValueError(f"a flag of the option {name} is declared twice")
            flags.update(declaration.flags)
    return declarations


def as_text(value: object) -> str:
    """A value as one would write it on the command line."""
    match value:
        case bool():
            return "true" if value else "false"
        case dict():
            return ";".join(f"{name}={text}" for name, text in value.items())
        case tuple() if value and isinstance(value[0], tuple):
            return as_text(dict(value))
        case tuple() | list():
            return ",".join(map(str, value))
        case Enum():
            return str(value.value)
        case _:
            return str(value)


def _kind(annotation: object, where: str) -> type:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(annotation) if member is not types.NoneType]
        annotation = members[0] if len(members) == 1 else annotation
    if annotation == tuple[str, ...]:
        return tuple
    if annotation == tuple[tuple[str, str], ...]:
        return dict
    if isinstance(annotation, type) and (annotation in (str, int, float, bool) or issubclass(annotation, Enum)):
        return annotation
    raise TypeError(f"{where}: {annotation} cannot be the type of an option")
