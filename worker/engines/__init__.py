"""The engines, one line each. A new engine is one new file here and one line in `ENGINES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from lbcore.clock import Clock
from worker import demo
from worker.engine import Engine
from worker.engines.llamacpp.engine import LlamaCppEngine, LlamaCppOptions
from worker.engines.openai.engine import OpenAIEngine, UpstreamOptions
from worker.engines.sim.engine import SimEngine, SimOptions
from worker.engines.transformers.engine import TransformersEngine, TransformersOptions
from worker.engines.vllm.engine import VllmEngine, VllmOptions


@dataclass(frozen=True, slots=True)
class Assignment:
    """What an engine is to serve."""

    model: str
    """As the operator named it: a name, a path, or `DEMO`."""
    names: tuple[str, ...]
    """The names by which clients ask for it, at least one."""


@dataclass(frozen=True, slots=True)
class EngineKind:
    """An engine's options (a dataclass for `lbcore.config`) and how it is made.

    `create` takes what to serve, the options and the clock; it loads nothing yet. The options stand under the engine's
    name as prefix, unless they are `plain`: then they carry names of their own.
    """

    options: type
    create: Callable[[Assignment, Any, Clock], Engine]
    plain: bool = False

    def prefix(self, name: str) -> str:
        """What the options' names begin with, given the engine's name."""
        return "" if self.plain else name


ENGINES: Mapping[str, EngineKind] = {
    "llamacpp": EngineKind(
        LlamaCppOptions, lambda given, options, clock: LlamaCppEngine(gguf_path(given.model), options, clock)
    ),
    "vllm": EngineKind(
        VllmOptions, lambda given, options, clock: VllmEngine(hf_name(given.model), given.names, options, clock)
    ),
    "transformers": EngineKind(
        TransformersOptions, lambda given, options, clock: TransformersEngine(hf_name(given.model), options, clock)
    ),
    "openai": EngineKind(
        UpstreamOptions,
        lambda given, options, clock: OpenAIEngine(given.model, options, clock, Random()),
        plain=True,
    ),
    "sim": EngineKind(SimOptions, lambda given, options, clock: SimEngine(options, clock, given.names)),
}

DEFAULT_ENGINE = "llamacpp"

DEMO = "demo"
"""The model name that stands for the small model that ships with the project."""


def gguf_path(model: str) -> Path:
    """Where the GGUF file of a model is."""
    return demo.GGUF_PATH if model == DEMO else Path(model)


def hf_name(model: str) -> str:
    """The folder or the name on the Hugging Face hub of a model."""
    return str(demo.HF_PATH) if model == DEMO else model


def model_name(model: str) -> str:
    """The name clients ask for unless the operator says otherwise: a path's last part without its suffix."""
    return Path(model).name.removesuffix(".gguf")
