"""From what was given to what it means: the values of a process's options, or one line that says what is wrong."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TypeVar, cast

from lbcore.config.declare import ENV_PREFIX, Declaration, Group, as_text, declare
from lbcore.config.sources import Asked, Given, Source, from_environment, from_file, from_flags, with_rest
from lbcore.errors import ConfigError

T = TypeVar("T")

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_SHOWN_CHARACTERS = 100


class Loaded:
    """The options of all groups that count."""

    def __init__(self, values: Mapping[type, object], explicit: Mapping[str, Source]) -> None:
        self._values = values
        self.explicit = explicit
        """Options that somebody gave, by name (`sim-step-ms`); all others have their defaults."""

    def __getitem__(self, cls: type[T]) -> T:
        """The values of a group; KeyError when its `only_with` is not met."""
        return cast("T", self._values[cls])


@contextmanager
def command_line(prog: str) -> Iterator[None]:
    """The outermost frame of a process: a ConfigError becomes one line on stderr and exit status 2.

    Asked becomes its text on stdout and exit status 0.
    """
    try:
        yield
    except Asked as asked:
        print(asked.text)
        sys.exit(0)
    except ConfigError as error:
        print(f"{prog}: {' '.join(error.message.split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _read(path: str) -> bytes:
    return Path(path).read_bytes()


def load(
    cls: type[T],
    prog: str,
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    description: str = "",
    read_file: Callable[[str], bytes] = _read,
) -> T:
    """The options of a process with a single dataclass. Raises ConfigError and Asked, as `load_groups` does."""
    return load_groups([Group(cls)], prog, argv, environ, description=description, read_file=read_file)[cls]


def load_groups(
    groups: Sequence[Group],
    prog: str,
    argv: Sequence[str],
    environ: Mapping[str, str],
    *,
    description: str = "",
    read_file: Callable[[str], bytes] = _read,
) -> Loaded:
    """The options of a process.

    Raises:
        ConfigError: an option is unknown, missing or makes no sense; the message names it and where it was given.
        Asked: the help or the version was asked for.
    """
    declarations = declare(groups)
    flags, path, rest = from_flags(groups, declarations, prog, argv, description)
    path = path or environ.get(f"{ENV_PREFIX}CONFIG", "")
    given = from_file(path, read_file, groups, declarations) if path else {}
    given |= from_environment(declarations.values(), environ) | flags
    given = with_rest(given, rest, declarations.values())
    values = {group.cls: _build(group, declarations, given) for group in groups if _counts(group, declarations, given)}
    return Loaded(values, {name: one.source for name, one in given.items()})


def _counts(group: Group, declarations: Mapping[str, Declaration], given: Mapping[str, Given]) -> bool:
    if group.only_with is None:
        return True
    name, wanted = group.only_with
    actual = as_text(_value(declarations[name], given.get(name)))
    if actual == wanted:
        return True
    for declaration in declarations.values():
        if declaration.group is group and declaration.name in given:
            where = given[declaration.name].where
            raise ConfigError(f"{where}: belongs to --{name} {wanted}, and this is --{name} {actual}")
    return False


def _build(group: Group, declarations: Mapping[str, Declaration], given: Mapping[str, Given]) -> object:
    own = [declaration for declaration in declarations.values() if declaration.group is group]
    return group.cls(**{one.field: _value(one, given.get(one.name)) for one in own})


def _value(declaration: Declaration, given: Given | None) -> object:
    if given is None:
        if declaration.required:
            others = f"{declaration.env}, or {declaration.file_key} in the file"
            raise ConfigError(f"{declaration.flag}: must be given (or {others})")
        return declaration.default
    try:
        value = _typed(declaration.kind, given)
        _check(declaration, value)
    except ValueError as error:
        shown = "the value" if declaration.secret else as_text(given.raw)[:_SHOWN_CHARACTERS] or "an empty text"
        raise ConfigError(f"{given.where}: {shown} {error}") from None
    return declaration.kind(value) if issubclass(declaration.kind, Enum) else value


def _check(declaration: Declaration, value: object) -> None:
    """Raises ValueError with the end of a sentence."""
    words = value if isinstance(value, tuple) else (as_text(value),)
    if declaration.choices and not set(words) <= set(declaration.choices):
        raise ValueError(f"is not one of {', '.join(declaration.choices)}")
    if declaration.check and (problem := declaration.check(value)):
        raise ValueError(problem)


def _typed(kind: type, given: Given) -> object:
    """The raw value as a `kind`, as text for an Enum. Raises ValueError with the end of a sentence.

    The file has types of its own: a number between quotes is a text there.
    """
    raw = given.raw
    quoted = isinstance(raw, str) and given.source is Source.FILE
    if kind is bool:
        if isinstance(raw, str) and not quoted and raw.lower() in _TRUE + _FALSE:
            return raw.lower() in _TRUE
        if isinstance(raw, bool):
            return raw
        raise ValueError("is neither true nor false")
    if kind is int or kind is float:
        return _number(kind, None if quoted else raw)
    if kind is tuple:
        parts = raw if isinstance(raw, list) else [raw]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError("is not a list of texts")
        return tuple(word.strip() for part in parts for word in str(part).split(",") if word.strip())
    if kind is dict:
        return _table(raw) if given.source is Source.FILE else _pairs(raw if isinstance(raw, list) else [raw])
    if not isinstance(raw, str):
        raise ValueError("is not a text")
    return raw


def _table(raw: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(raw, dict) or not all(isinstance(text, str) for text in raw.values()):
        raise ValueError("is not a table of texts")
    return tuple(raw.items())


def _pairs(texts: Sequence[object]) -> tuple[tuple[str, str], ...]:
    pairs: dict[str, str] = {}
    for word in ";".join(map(str, texts)).split(";"):
        name, equals, text = (part.strip() for part in word.partition("="))
        if not name and not equals:
            continue
        if not name or not equals:
            raise ValueError(f"has {word.strip()!r}, which is not written as NAME=TEXT")
        if name in pairs:
            raise ValueError(f"gives {name} twice")
        pairs[name] = text
    return tuple(pairs.items())


def _number(kind: type[int] | type[float], raw: object) -> float:
    accepted = (str, int) if kind is int else (str, int, float)
    problem = "is not an integer" if kind is int else "is not a number"
    if isinstance(raw, bool) or not isinstance(raw, accepted):
        raise ValueError(problem)
    try:
        number = kind(raw)
    except (ValueError, OverflowError):
        raise ValueError(problem) from None
    if isinstance(number, float) and not math.isfinite(number):
        raise ValueError(problem)
    return number
