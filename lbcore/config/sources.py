"""Where options come from: the command line and the file. Finds out what was given, not yet what it is worth."""

from __future__ import annotations

import argparse
import difflib
import importlib.metadata
import shlex
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NoReturn

from lbcore.config.declare import ENV_PREFIX, Declaration, Group
from lbcore.errors import ConfigError

_HELP_WIDTH = 110


class Source(Enum):
    """Who gave an option."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    FILE = "file"


class Asked(Exception):
    """Not an error: somebody asked for `text` (the help or the version) instead of a run."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


@dataclass(frozen=True, slots=True)
class Given:
    """An option as somebody gave it."""

    raw: object
    """A text from flags and environment (a bool or a list of texts for such flags), any TOML value from the file."""
    where: str
    """The place, for error messages."""
    source: Source


def from_flags(
    groups: Sequence[Group],
    declarations: Mapping[str, Declaration],
    prog: str,
    argv: Sequence[str],
    description: str,
) -> tuple[dict[str, Given], str, list[str]]:
    """What the command line gives, by name, the path after `--config` or an empty text, and the words behind `--`.

    Raises ConfigError for unknown flags and missing values, Asked for the help and the version.
    """
    parser = _parser(groups, declarations, prog, description)
    own, rest = _split(argv)
    namespace, surplus = parser.parse_known_args(own)
    raw = vars(namespace)
    if raw.pop("help", False):
        raise Asked(parser.format_help().rstrip())
    if raw.pop("version", False):
        raise Asked(f"{prog} {importlib.metadata.version('lbcore')}")
    for word in surplus:
        if word.startswith("-"):
            flag = word.partition("=")[0]
            known = [*(flag for one in declarations.values() for flag in one.flags), "--config", "--version", "--help"]
            raise ConfigError(f"{flag}: no such option{_nearest(flag, known)}")
    if surplus:
        raise ConfigError(f"{surplus[0]}: every argument belongs after an option")
    path = raw.pop("config", "")
    named = {name.replace("_", "-"): value for name, value in raw.items()}
    return {name: Given(value, f"--{name}", Source.FLAG) for name, value in named.items()}, str(path), rest


def with_rest(given: Mapping[str, Given], rest: Sequence[str], declarations: Iterable[Declaration]) -> dict[str, Given]:
    """What was given, with the words behind `--` added to the option that takes them, wherever it was given.

    Raises ConfigError when no option takes them.
    """
    if not rest:
        return {**given}
    taker = next((one.name for one in declarations if one.facts.takes_rest), None)
    if taker is None:
        raise ConfigError(f"--: {rest[0]} follows it, and nothing may")
    before = [str(given[taker].raw)] if taker in given else []
    return {**given, taker: Given(" ".join([*before, shlex.join(rest)]), f"--{taker}", Source.FLAG)}


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What stands before and behind the first `--`."""
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def from_environment(declarations: Iterable[Declaration], environ: Mapping[str, str]) -> dict[str, Given]:
    """What the environment gives, by name. Variables of other names are somebody else's business."""
    texts = {one.name: (one.env, environ.get(one.env, "")) for one in declarations}
    return {name: Given(text, env, Source.ENVIRONMENT) for name, (env, text) in texts.items() if text}


def from_file(
    path: str,
    read_file: Callable[[str], bytes],
    groups: Sequence[Group],
    declarations: Mapping[str, Declaration],
) -> dict[str, Given]:
    """What the TOML file gives, by name. Raises ConfigError for a bad file or an unknown key."""
    try:
        document = tomllib.loads(read_file(path).decode())
    except OSError as error:
        raise ConfigError(f"--config: cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    given: dict[str, Given] = {}
    for written, key, raw in _entries(document, {group.prefix for group in groups if group.prefix}):
        name, where = key.replace("_", "-"), f"{path}: {written}"
        if name not in declarations:
            raise ConfigError(f"{where}: no such option{_nearest(name, declarations)}")
        if name in given:
            raise ConfigError(f"{where}: given twice")
        given[name] = Given(raw, where, Source.FILE)
    return given


def _entries(document: Mapping[str, object], prefixes: set[str]) -> Iterable[tuple[str, str, object]]:
    for key, raw in document.items():
        if isinstance(raw, dict) and key.replace("-", "_") in prefixes:
            yield from ((f"[{key}] {inner}", f"{key}-{inner}", value) for inner, value in raw.items())
        else:
            yield key, key, raw


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "))


def _parser(
    groups: Sequence[Group], declarations: Mapping[str, Declaration], prog: str, description: str
) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        usage=f"{prog} [options]",
        description=description or None,
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=_HELP_WIDTH),
    )
    for group in groups:
        section = parser.add_argument_group(group.title or "options")
        for declaration in declarations.values():
            if declaration.group is group:
                _add_flag(section, declaration)
    section = parser.add_argument_group("general")
    section.add_argument("--config", metavar="FILE", help=f"TOML file with the same options [{ENV_PREFIX}CONFIG]")
    section.add_argument("--version", action="store_true", help="show the version and exit")
    section.add_argument("-h", "--help", action="store_true", help="show this help and exit")
    return parser


def _add_flag(section: argparse._ArgumentGroup, declaration: Declaration) -> None:
    default = "required" if declaration.required else f"default {declaration.default_text or 'none'}"
    text = f"{declaration.help} [{default}, {declaration.env}]".replace("%", "%%")
    if declaration.kind is bool:
        section.add_argument(*declaration.flags, action=argparse.BooleanOptionalAction, help=text)
    elif declaration.kind in (tuple, dict):
        section.add_argument(*declaration.flags, action="append", metavar=declaration.metavar, help=text)
    else:
        section.add_argument(*declaration.flags, metavar=declaration.metavar, help=text)


def _nearest(word: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""
