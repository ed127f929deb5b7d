"""The engines, one line each. A new engine is one new file here and one line in `ENGINES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lbcore.clock import Clock
from worker import demo
from worker.engine import Engine
from worker.engines.llamacpp.engine import LlamaCppEngine, LlamaCppOptions
from worker.engines.sim.engine import SimEngine, SimOptions


@dataclass(frozen=True, slots=True)
class EngineKind:
    """An engine's options (a dataclass for `lbcore.config`, under the engine's name as prefix) and how it is made.

    `create` takes the model as the operator named it, the options and the clock; it loads nothing yet.
    """

    options: type
    create: Callable[[str, Any, Clock], Engine]


ENGINES: Mapping[str, EngineKind] = {
    "llamacpp": EngineKind(
        LlamaCppOptions, lambda model, options, clock: LlamaCppEngine(gguf_path(model), options, clock)
    ),
    "sim": EngineKind(SimOptions, lambda model, options, clock: SimEngine(options, clock)),
}

DEFAULT_ENGINE = "llamacpp"

DEMO = "demo"
"""The model name that stands for the small model that ships with the project."""


def gguf_path(model: str) -> Path:
    """Where the GGUF file of a model is."""
    return demo.GGUF_PATH if model == DEMO else Path(model)


def model_name(model: str) -> str:
    """The name clients ask for unless the operator says otherwise: a path's last part without its suffix."""
    return Path(model).name.removesuffix(".gguf")
