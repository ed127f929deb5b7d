"""Options: one declaration, three sources, one line when something is wrong."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import pytest

from lbcore.config import (
    Asked,
    Group,
    Loaded,
    Source,
    at_least,
    between,
    command_line,
    declare,
    host_port,
    load,
    load_groups,
    option,
    port_number,
    positive,
)
from lbcore.errors import ConfigError


class Colour(StrEnum):
    RED = "red"
    DARK_BLUE = "dark-blue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    host: str = option("127.0.0.1", help="address to listen on", metavar="HOST")
    port: int = option(8000, help="port to listen on", check=port_number)
    metrics_port: int | None = option(None, help="port for metrics", check=port_number)
    patience_s: float = option(1.5, help="seconds to wait, 100% of them", check=positive)
    verbose: bool = option(False, help="say more")
    tags: tuple[str, ...] = option((), help="free words")
    colour: Colour = option(Colour.RED, help="colour of the lamp")
    policy: str = option("best", help="how to pick", choices=("best", "two-choices"))
    peer: str | None = option(None, help="address of the peer", metavar="HOST:PORT", check=host_port)
    key: str | None = option(
        None, help="the key", secret=True, check=lambda text: "is too short" if len(text) < 4 else None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    model: str = option(help="model to serve", metavar="NAME")
    engine: str = option("llama", help="what generates", choices=("llama", "sim"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SimOptions:
    step_ms: float = option(10.0, help="milliseconds of one step", check=positive)
    stamp: bool = option(False, help="stamp tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaOptions:
    file: str = option(help="file with the weights")


WORKER_GROUPS = (
    Group(WorkerOptions, title="worker"),
    Group(SimOptions, prefix="sim", title="--engine sim", only_with=("engine", "sim")),
    Group(LlamaOptions, prefix="llama", title="--engine llama", only_with=("engine", "llama")),
)


def options(argv: Sequence[str] = (), environ: Mapping[str, str] | None = None, toml: str | None = None) -> Options:
    paths = [] if toml is None else ["--config", "lb.toml"]
    return load(Options, "lb-test", [*paths, *argv], environ or {}, read_file=lambda path: (toml or "").encode())


def worker(argv: Sequence[str] = (), environ: Mapping[str, str] | None = None, toml: str | None = None) -> Loaded:
    paths = [] if toml is None else ["--config", "lb.toml"]
    argv = [*paths, *argv]
    return load_groups(WORKER_GROUPS, "lb-test", argv, environ or {}, read_file=lambda path: (toml or "").encode())


def test_defaults() -> None:
    assert options() == Options()
    assert Options().port == 8000


def test_every_type_from_flags() -> None:
    argv = ["--host", "0.0.0.0", "--port", "0", "--metrics-port=9000", "--patience-s", "2", "--verbose"]
    argv += ["--tags", "a,b", "--tags", "c", "--colour", "dark-blue", "--policy", "two-choices"]
    argv += ["--peer", "[::1]:50050", "--key", "hush-hush"]
    assert options(argv) == Options(
        host="0.0.0.0",
        port=0,
        metrics_port=9000,
        patience_s=2.0,
        verbose=True,
        tags=("a", "b", "c"),
        colour=Colour.DARK_BLUE,
        policy="two-choices",
        peer="[::1]:50050",
        key="hush-hush",
    )
    assert isinstance(options(argv).colour, Colour)
    assert isinstance(options(argv).patience_s, float)


def test_every_type_from_the_environment() -> None:
    environ = {
        "LB_PORT": "81",
        "LB_METRICS_PORT": "82",
        "LB_PATIENCE_S": "0.25",
        "LB_VERBOSE": "Yes",
        "LB_TAGS": "a, b,,",
        "LB_COLOUR": "dark-blue",
        "LB_SOMEBODY_ELSES": "x",
    }
    assert options(environ=environ) == Options(
        port=81, metrics_port=82, patience_s=0.25, verbose=True, tags=("a", "b"), colour=Colour.DARK_BLUE
    )


def test_every_type_from_the_file_in_kebab_and_snake() -> None:
    toml = """
        port = 81
        metrics-port = 82
        patience_s = 3
        verbose = true
        tags = ["a", "b"]
        colour = "dark-blue"
    """
    assert options(toml=toml) == Options(
        port=81, metrics_port=82, patience_s=3.0, verbose=True, tags=("a", "b"), colour=Colour.DARK_BLUE
    )


def test_flag_beats_environment_beats_file() -> None:
    toml = "port = 1\npatience_s = 1\nhost = 'file'"
    loaded = options(["--port", "3"], {"LB_PORT": "2", "LB_PATIENCE_S": "2"}, toml)
    assert (loaded.port, loaded.patience_s, loaded.host) == (3, 2.0, "file")


def test_an_empty_variable_counts_as_absent() -> None:
    assert options(environ={"LB_PORT": "", "LB_CONFIG": ""}).port == 8000


def test_the_environment_can_name_the_file() -> None:
    read: list[str] = []

    def read_file(path: str) -> bytes:
        read.append(path)
        return b"port = 7"

    assert load(Options, "lb-test", [], {"LB_CONFIG": "/etc/lb.toml"}, read_file=read_file).port == 7
    assert read == ["/etc/lb.toml"]


def test_a_flag_can_be_taken_back() -> None:
    assert not options(["--no-verbose"], {"LB_VERBOSE": "1"}).verbose


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherOptions:
    model: str = option("", aliases=("model-path",), help="model to serve")
    args: str = option("", takes_rest=True, help="words for somebody else")


def other(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> OtherOptions:
    return load(OtherOptions, "lb-test", argv, environ or {})


def test_an_alias_is_the_same_option() -> None:
    assert other(["--model-path", "x"]).model == "x"


def test_an_option_has_one_name_in_the_environment() -> None:
    assert other([], {"LB_MODEL_PATH": "x"}).model == ""


def test_a_flag_stands_for_one_option() -> None:
    @dataclass(frozen=True)
    class Twice:
        model: str = option("", help="one")
        name: str = option("", aliases=("model",), help="another")

    with pytest.raises(ValueError, match="declared twice"):
        declare([Group(Twice)])


def test_what_stands_behind_the_dashes_belongs_to_somebody_else() -> None:
    words = ["--model", "m", "--json", '{"a": 1}', "--", "it's"]
    assert shlex.split(other(["--model", "x", "--", *words]).args) == words


def test_words_behind_the_dashes_are_added_to_those_of_the_flag() -> None:
    assert other(["--args", "--seed 1", "--", "--size", "2"]).args == "--seed 1 --size 2"


def test_words_behind_the_dashes_are_added_to_those_of_the_environment() -> None:
    assert other(["--", "--size", "2"], {"LB_ARGS": "--seed 1"}).args == "--seed 1 --size 2"


def test_nothing_stands_behind_the_dashes_where_nobody_takes_it() -> None:
    with pytest.raises(ConfigError, match=r"^--: --size follows it, and nothing may$"):
        options(["--port", "1", "--", "--size", "2"])


def test_dashes_with_nothing_behind_them_are_nothing() -> None:
    assert options(["--port", "1", "--"]).port == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--port 70000", "--port: 70000 is not between 0 and 65535"),
        ("--port x", "--port: x is not an integer"),
        ("--port 1.5", "--port: 1.5 is not an integer"),
        ("--port", "--port: expected one argument"),
        ("--port=", "--port: an empty text is not an integer"),
        ("--patience-s 0", "--patience-s: 0 is not greater than 0"),
        ("--patience-s nan", "--patience-s: nan is not a number"),
        ("--patience-s -1", "--patience-s: -1 is not greater than 0"),
        ("--prot 5", "--prot: no such option; did you mean --port?"),
        ("--prot=5", "--prot: no such option; did you mean --port?"),
        ("--por 5", "--por: no such option; did you mean --port?"),
        ("--qqqqq", "--qqqqq: no such option"),
        ("serve", "serve: every argument belongs after an option"),
        ("--colour blue", "--colour: blue is not one of red, dark-blue"),
        ("--policy worst", "--policy: worst is not one of best, two-choices"),
        ("--peer localhost", "--peer: localhost is not HOST:PORT"),
        ("--key abc", "--key: the value is too short"),
    ],
)
def test_a_bad_flag_is_named_in_one_line(argv: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options(argv.split())
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("LB_PORT", "70000", "LB_PORT: 70000 is not between 0 and 65535"),
        ("LB_VERBOSE", "perhaps", "LB_VERBOSE: perhaps is neither true nor false"),
        ("LB_PORT", "9" * 500, f"LB_PORT: {'9' * 100} is not between 0 and 65535"),
    ],
)
def test_a_bad_variable_is_named(variable: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options(environ={variable: text})
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("port = 70000", "lb.toml: port: 70000 is not between 0 and 65535"),
        ("port = '80'", "lb.toml: port: 80 is not an integer"),
        ("port = true", "lb.toml: port: true is not an integer"),
        ("port = 80.0", "lb.toml: port: 80.0 is not an integer"),
        ("patience_s = inf", "lb.toml: patience_s: inf is not a number"),
        ("verbose = 'true'", "lb.toml: verbose: true is neither true nor false"),
        ("tags = [1]", "lb.toml: tags: 1 is not a list of texts"),
        ("host = 5", "lb.toml: host: 5 is not a text"),
        ("metrics_prot = 5", "lb.toml: metrics_prot: no such option; did you mean metrics-port?"),
        ("[server]\nport = 5", "lb.toml: server: no such option"),
        ("metrics-port = 1\nmetrics_port = 1", "lb.toml: metrics_port: given twice"),
    ],
)
def test_a_bad_key_in_the_file_is_named(toml: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        options(toml=toml)
    assert caught.value.message == message


def test_a_bad_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^lb\.toml: not a TOML file: .*line 1"):
        options(toml="port = 5 5")

    def missing(path: str) -> bytes:
        raise FileNotFoundError(2, "No such file or directory", path)

    with pytest.raises(ConfigError, match=r"^--config: cannot read lb\.toml: No such file or directory$"):
        load(Options, "lb-test", ["--config", "lb.toml"], {}, read_file=missing)


def test_files_are_read_from_disk_unless_told_otherwise(tmp_path: pytest.TempPathFactory) -> None:
    file = f"{tmp_path}/lb.toml"
    with open(file, "w") as out:
        out.write("port = 5")
    assert load(Options, "lb-test", ["--config", file], {}).port == 5


def test_a_secret_stays_out_of_repr_and_help() -> None:
    assert "hush" not in repr(options(["--key", "hush-hush"]))


def test_the_help_shows_every_option_with_default_and_variable() -> None:
    with pytest.raises(Asked) as asked:
        load(Options, "lb-test", ["--port", "70000", "--help"], {}, description="A test.")
    text = " ".join(asked.value.text.split())
    assert text.startswith("usage: lb-test [options] A test.")
    assert "--port N port to listen on [default 8000, LB_PORT]" in text
    assert "--verbose, --no-verbose say more [default false, LB_VERBOSE]" in text
    assert "--metrics-port N port for metrics [default none, LB_METRICS_PORT]" in text
    assert "--colour red|dark-blue colour of the lamp [default red, LB_COLOUR]" in text
    assert "seconds to wait, 100% of them" in text
    assert "--config FILE" in text


def test_the_version_is_shown() -> None:
    with pytest.raises(Asked, match=r"^lb-test \d+\.\d+"):
        options(["--version"])


def test_the_chosen_group_gets_its_options() -> None:
    loaded = worker(
        ["--engine", "sim", "--sim-step-ms", "5"], {"LB_MODEL": "demo", "LB_SIM_STAMP": "1"}, "[sim]\nstep-ms = 7"
    )
    assert loaded[WorkerOptions] == WorkerOptions(model="demo", engine="sim")
    assert loaded[SimOptions] == SimOptions(step_ms=5.0, stamp=True)
    assert loaded.explicit == {
        "engine": Source.FLAG,
        "model": Source.ENVIRONMENT,
        "sim-step-ms": Source.FLAG,
        "sim-stamp": Source.ENVIRONMENT,
    }


def test_a_group_that_was_not_chosen_has_no_values_and_requires_none() -> None:
    loaded = worker(["--model", "demo", "--engine", "sim"])
    with pytest.raises(KeyError):
        loaded[LlamaOptions]


def test_a_table_of_the_file_belongs_to_a_group() -> None:
    assert worker([], toml="model = 'm'\nengine = 'sim'\n[sim]\nstep_ms = 7")[SimOptions].step_ms == 7.0


@pytest.mark.parametrize(
    ("argv", "environ", "toml", "message"),
    [
        (["--sim-stamp"], {}, "", "--sim-stamp: belongs to --engine sim, and this is --engine llama"),
        ([], {"LB_SIM_STEP_MS": "5"}, "", "LB_SIM_STEP_MS: belongs to --engine sim, and this is --engine llama"),
        ([], {}, "[sim]\nstep_ms = 5", "lb.toml: [sim] step_ms: belongs to --engine sim, and this is --engine llama"),
        ([], {}, "[sim]\nstep = 5", "lb.toml: [sim] step: no such option; did you mean sim-step-ms?"),
        ([], {}, "", "--llama-file: must be given (or LB_LLAMA_FILE, or [llama] file in the file)"),
        (["--engine", "simm"], {}, "", "--engine: simm is not one of llama, sim"),
    ],
)
def test_options_of_groups_are_held_to_their_group(
    argv: list[str], environ: dict[str, str], toml: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        worker(["--model", "demo", *argv], environ, toml)
    assert caught.value.message == message


def test_the_help_shows_all_groups_under_their_titles() -> None:
    with pytest.raises(Asked) as asked:
        worker(["-h"])
    text = asked.value.text
    assert (
        text.index("\nworker:") < text.index("\n--engine sim:") < text.index("--sim-step-ms") < text.index("\ngeneral:")
    )
    assert "model to serve [required, LB_MODEL]" in text


def test_declarations_tell_every_name() -> None:
    step = declare(WORKER_GROUPS)["sim-step-ms"]
    assert (step.flag, step.env, step.file_key) == ("--sim-step-ms", "LB_SIM_STEP_MS", "[sim] step-ms")
    assert (step.default_text, step.metavar, step.help) == ("10.0", "X", "milliseconds of one step")


def test_wrong_declarations_fail_loudly() -> None:
    @dataclass(frozen=True)
    class NoOption:
        port: int = 5

    @dataclass(frozen=True)
    class NoType:
        port: bytes = option(b"", help="ports")

    @dataclass(frozen=True)
    class Reserved:
        config: str = option("", help="taken")

    with pytest.raises(TypeError, match=r"NoOption\.port is not declared"):
        declare([Group(NoOption)])
    with pytest.raises(TypeError, match=r"NoType\.port: .*bytes.* cannot be"):
        declare([Group(NoType)])
    with pytest.raises(ValueError, match="config is declared twice"):
        declare([Group(Reserved)])
    with pytest.raises(ValueError, match="host is declared twice"):
        declare([Group(Options), Group(Options)])


def test_the_command_line_prints_one_line_and_exits(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, command_line("lb-test"):
        raise ConfigError("--port: 70000 is not\nbetween 0 and 65535")
    assert left.value.code == 2
    assert capsys.readouterr().err == "lb-test: --port: 70000 is not between 0 and 65535\n"
    with pytest.raises(SystemExit) as left, command_line("lb-test"):
        raise Asked("lb-test 1.0")
    assert left.value.code == 0
    assert capsys.readouterr().out == "lb-test 1.0\n"


def test_the_command_line_lets_everything_else_pass() -> None:
    with command_line("lb-test"):
        pass
    with pytest.raises(ZeroDivisionError), command_line("lb-test"):
        raise ZeroDivisionError


@pytest.mark.parametrize("value", ["localhost:1", "10.0.0.1:65535", "[::1]:50050", "worker-0.lb:80"])
def test_good_addresses(value: str) -> None:
    assert host_port(value) is None


@pytest.mark.parametrize(
    "value", ["", "localhost", ":80", "[]:80", "::1:80", "a b:80", "host:0", "host:65536", "host:x", "host:", "h:²"]
)
def test_bad_addresses(value: str) -> None:
    assert host_port(value) == "is not HOST:PORT"


def test_ranges_include_their_ends() -> None:
    assert [between(1, 3)(number) is None for number in (0, 1, 3, 4)] == [False, True, True, False]
    assert at_least(1)(1) is None
    assert at_least(1)(0.5) == "is less than 1"
    assert positive(0) == "is not greater than 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lamps:
    lamps: tuple[tuple[str, str], ...] = option((("hall", "red"), ("a:b/c.d", "x(y=1, z=2)")), help="colours by lamp")


def lamps(argv: Sequence[str] = (), environ: Mapping[str, str] | None = None, toml: str = "") -> Lamps:
    file = ["--config", "lb.toml"] if toml else []
    return load(Lamps, "lb-test", [*file, *argv], environ or {}, read_file=lambda path: toml.encode())


def test_texts_by_name_are_read_as_their_default_is_shown() -> None:
    shown = declare([Group(Lamps)])["lamps"].default_text
    assert shown == "hall=red;a:b/c.d=x(y=1, z=2)"
    assert lamps(["--lamps", shown]) == lamps(environ={"LB_LAMPS": f" {shown} ; "}) == Lamps()
    assert lamps(["--lamps", "hall=red", "--lamps", "a:b/c.d=x(y=1, z=2)"]) == Lamps()


def test_texts_by_name_are_a_table_in_the_file() -> None:
    assert lamps(toml='[lamps]\nhall = "red"\n"a:b/c.d" = "x(y=1, z=2)"') == Lamps()
    assert lamps(toml='lamps = { "k=v;w" = "" }').lamps == (("k=v;w", ""),)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hall", "has 'hall', which is not written as NAME=TEXT"),
        ("=red", "has '=red', which is not written as NAME=TEXT"),
        ("hall=red; hall =blue", "gives hall twice"),
    ],
)
def test_texts_that_are_not_by_name_are_refused(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lamps(["--lamps", text])
    assert caught.value.message == f"--lamps: {text} {problem}"


@pytest.mark.parametrize("toml", ['lamps = "hall=red"', "lamps = { hall = 1 }", "[lamps]\nhall.left = 'red'"])
def test_the_file_has_no_other_form_for_texts_by_name(toml: str) -> None:
    with pytest.raises(ConfigError, match=r"lb\.toml: lamps: .* is not a table of texts"):
        lamps(toml=toml)
