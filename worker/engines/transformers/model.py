"""Loads a model with its tokenizer, and says in one line why one cannot be served. Needs torch."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # noqa: F401 - transformers asks it for the memory of the machine, and makes do without
import torch
import transformers
from transformers.generation.continuous_batching.utils import find_head_dim, find_num_key_value_heads

from lbcore.errors import ConfigError
from worker.engines.transformers.body import SamplingDefaults
from worker.engines.transformers.options import TransformersOptions
from worker.engines.transformers.vocabulary import Vocabulary

MAX_DEFAULT_CONTEXT = 8192
"""Tokens of context that a sequence gets unless told otherwise: models are trained for 128k and more by now, and the
cache is laid out for one context per sequence."""
MAX_DEFAULT_CPU_CACHE_BYTES = 2**30
"""What the cache may take of a machine's own memory unless told otherwise."""

SMALL_MODEL_PARAMETERS = 10_000_000
"""A step of a smaller model is so short that handing over between threads costs more than it gains."""

_LIBRARY_LOGS = ("transformers", "ContinuousBatchingLogger")
_REASON_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory, and what the engine must know of it."""

    model: Any
    vocabulary: Vocabulary
    context_length: int
    kv_blocks: int | None
    """None leaves it to the library, which takes what the accelerator has left."""
    end_tokens: tuple[int, ...]
    defaults: SamplingDefaults


def load_model(name: str, options: TransformersOptions) -> LoadedModel:
    """Takes as long as reading the weights. Raises ConfigError."""
    _be_quiet()
    _check_path(name)
    device = _device(options.device)
    found: dict[str, Any] = {"trust_remote_code": options.trust_remote_code}
    if options.revision:
        found["revision"] = options.revision
    try:
        config = transformers.AutoConfig.from_pretrained(name, **found)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, **found)
        if options.attention != "auto":
            found["attn_implementation"] = options.attention
        model = transformers.AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=_dtype(options.dtype, config, device), **found
        )
        return _described(name, config, tokenizer, model.to(device).eval(), options)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"--model: transformers cannot load {name}: {first_line(error)}") from None


def _described(name: str, config: Any, tokenizer: Any, model: Any, options: TransformersOptions) -> LoadedModel:
    if not hasattr(model, "init_continuous_batching"):
        raise ConfigError(f"--model: {name} is a {type(model).__name__}, which transformers cannot batch continuously")
    if model.device.type == "cpu" and (options.threads or model.num_parameters() < SMALL_MODEL_PARAMETERS):
        torch.set_num_threads(options.threads or 1)
    context_length = _context_length(config.get_text_config(), options)
    kv_blocks = _kv_blocks(model, context_length, options)
    if kv_blocks is not None:
        held = kv_blocks * options.block_size
        if options.context_length > held:
            raise ConfigError(
                f"--transformers-context-length: {options.context_length} tokens do not fit a cache of {held} tokens"
            )
        context_length = min(context_length, held)
    return LoadedModel(
        model=model,
        vocabulary=Vocabulary(tokenizer, _vocabulary_size(model)),
        context_length=context_length,
        kv_blocks=kv_blocks,
        end_tokens=_end_tokens(model, tokenizer),
        defaults=_defaults(model.generation_config),
    )


def _be_quiet() -> None:
    """The library's own log lines come without our form, and some quote tokens of a prompt."""
    transformers.utils.logging.disable_progress_bar()
    for name in _LIBRARY_LOGS:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _check_path(name: str) -> None:
    path = Path(name).expanduser()
    if path.is_file():
        raise ConfigError(f"--model: {name} is a file; the transformers engine wants a folder or a name on the hub")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ConfigError(f"--model: {name} has no config.json: it is no model of transformers")
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise ConfigError(f"--model: there is no folder {name}")


def _device(name: str) -> torch.device:
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:
        raise ConfigError(f"--transformers-device: torch cannot use {name}: {first_line(error)}") from None
    return device


def _dtype(name: str, config: Any, device: torch.device) -> Any:
    if name != "auto":
        return getattr(torch, name)
    own = getattr(config.get_text_config(), "dtype", None) or "auto"
    # CPUs compute float16 slowly or not at all.
    return torch.float32 if device.type == "cpu" and own in (torch.float16, "float16") else own


def _context_length(config: Any, options: TransformersOptions) -> int:
    trained = getattr(config, "max_position_embeddings", None)
    if not isinstance(trained, int) or trained < 2:
        if not options.context_length:
            raise ConfigError("--transformers-context-length: the model does not say what it was trained for")
        return options.context_length
    if options.context_length > trained:
        raise ConfigError(
            f"--transformers-context-length: the model was trained for {trained} tokens, not {options.context_length}"
        )
    return options.context_length or min(trained, MAX_DEFAULT_CONTEXT)


def _kv_blocks(model: Any, context_length: int, options: TransformersOptions) -> int | None:
    if options.kv_blocks:
        return options.kv_blocks
    wanted = options.max_num_seqs * -(-context_length // options.block_size)
    if model.device.type != "cpu":
        return None
    config = model.config.get_text_config()
    token_bytes = 2 * config.num_hidden_layers * find_num_key_value_heads(config) * find_head_dim(config)
    block_bytes = token_bytes * model.dtype.itemsize * options.block_size
    return max(2, min(wanted, MAX_DEFAULT_CPU_CACHE_BYTES // int(block_bytes)))


def _vocabulary_size(model: Any) -> int:
    """Tokens that may both be read and be written: some models pad the one or the other."""
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    return min(int(table.weight.shape[0]) for table in tables if table is not None)


def _end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    given = model.generation_config.eos_token_id
    given = tokenizer.eos_token_id if given is None else given
    tokens = given if isinstance(given, list | tuple) else [given]
    return tuple(token for token in tokens if isinstance(token, int) and token >= 0)


def _defaults(config: Any) -> SamplingDefaults:
    """What the model's generation_config.json recommends for sampling; one that recommends none says nothing of it."""
    if not getattr(config, "do_sample", None):
        return SamplingDefaults()
    plain = SamplingDefaults()

    def recommended(name: str, otherwise: float) -> float:
        value = getattr(config, name, None)
        return otherwise if value is None else value

    return SamplingDefaults(
        temperature=recommended("temperature", plain.temperature),
        top_p=recommended("top_p", plain.top_p),
        top_k=int(recommended("top_k", plain.top_k)),
        min_p=recommended("min_p", plain.min_p),
        repetition_penalty=recommended("repetition_penalty", plain.repetition_penalty),
    )


def first_line(error: Exception) -> str:
    """The first line of an error, short."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:_REASON_CHARACTERS].rstrip(" .:")
