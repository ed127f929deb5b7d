"""The options of the transformers engine. Nothing here needs its packages: the worker's help shows them without."""

from __future__ import annotations

from dataclasses import dataclass

from lbcore.config import at_least, between, option, positive


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersOptions:
    """What a model is loaded as, and how much of it may run at once."""

    dtype: str = option(
        "auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="type of the weights; auto takes the model's own, and float32 instead of float16 on a CPU",
    )
    device: str = option("auto", help="device as torch names it, like cuda:0 or cpu; auto takes an accelerator if any")
    attention: str = option(
        "auto",
        choices=("auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"),
        help="implementation of attention; auto leaves it to transformers",
    )
    context_length: int = option(
        0,
        help="longest prompt plus answer, in tokens; 0 takes what the model was trained for, at most 8192",
        check=at_least(0),
    )
    max_num_seqs: int = option(16, help="sequences that run at once", check=between(1, 1024))
    max_batch_tokens: int = option(
        512,
        help="most tokens computed in one step, prompts and decoding together; nothing interrupts a step",
        check=at_least(1),
    )
    step_budget_ms: float = option(
        80.0,
        help="how long a step with prompts may take; where they are slow, fewer tokens than the most go in",
        check=positive,
    )
    kv_blocks: int = option(
        0,
        help="KV blocks in the cache; 0 takes what an accelerator has left, and up to 1 GiB on a CPU",
        check=at_least(0),
    )
    block_size: int = option(16, help="tokens in one KV block", check=at_least(4))
    threads: int = option(
        0,
        help="threads that compute on a CPU; 0 leaves it to torch, and takes a single one for a small model",
        check=at_least(0),
    )
    revision: str = option("", help="branch, tag or commit of a model on the Hugging Face hub")
    trust_remote_code: bool = option(False, help="run the Python code that comes with a model")
    seed: int = option(-1, help="what requests that bring no seed draw theirs from; -1 is chance", check=at_least(-1))
    hang_timeout_s: float = option(
        60.0,
        help="seconds with work and without a finished step, after which the engine counts as hung",
        check=positive,
    )
