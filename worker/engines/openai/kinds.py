"""The servers we know, in one table: how each is recognised, what it is asked beyond OpenAI's API, what it tells. Pure.

A server that is none of them is served all the same, as `UNKNOWN`: with what OpenAI's API has and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from worker.engines.openai.llamacpp import adapt as adapt_to_llamacpp
from worker.engines.openai.page import PageNames, Series
from worker.engines.openai.vllm import adapt as adapt_to_vllm

if TYPE_CHECKING:
    from worker.engines.openai.body import Ask

Adapt = Callable[["Ask", "Facts"], Mapping[str, object]]
"""The fields to change for a request. Raises InvalidRequest for what the server cannot do."""


def _unchanged(ask: Ask, facts: Facts) -> Mapping[str, object]:
    return {}


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of server."""

    name: str
    owners: tuple[str, ...] = ()
    """What its models are `owned_by`, in lower case."""
    page_prefix: bytes = b""
    """What the names on its Prometheus page begin with."""
    page: PageNames | None = None
    page_lag_s: float = 0.5
    """How old the numbers on its page may be."""
    asks: Mapping[str, object] = field(default_factory=dict)
    """Fields that every request gets."""
    adapt: Adapt = _unchanged
    loses_text_at_stop: bool = False
    """Whether it loses what it holds back at a stop string, so that we look for those ourselves."""
    usage_per_choice: bool = False
    """Whether it tells the usage of each choice when that ends, and not of the request at its end."""
    knows_base64: bool = False
    """Whether it writes vectors in base64 when asked to, which is a third as long as numbers and read far faster."""
    goes_on: Mapping[str, object] | None = None
    """Fields with which it goes on with a chat's last message when that is the assistant's. None for a server that is
    not known to, or does not tell tokens."""
    completion_tokens: int = 0
    """Limit of a completion whose client set none; 0 for the context's."""
    more_limits: tuple[str, ...] = ()
    """Names of its own for the client's limit."""
    output_penalties: Mapping[str, float] = field(default_factory=dict)
    """Fields by which a token depends on those of the answer before it but not on the prompt's, and what switches them
    off."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server said of itself when it was asked."""

    kind: Kind
    context_length: int = 0
    """0 when it does not say."""
    sequences: int = 0
    """Choices that it generates at once; 0 when it does not say."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters of the model."""
    knows_tools: bool = True
    """Whether its chat template has tools."""


UNKNOWN = Kind("unknown")

_PENALTIES: Mapping[str, float] = {"frequency_penalty": 0, "presence_penalty": 0}

KINDS = (
    Kind(
        "vllm",
        owners=("vllm",),
        page_prefix=b"vllm:",
        page=PageNames(
            running=(Series("vllm:num_requests_running"),),
            waiting=(Series("vllm:num_requests_waiting"),),
            kv_usage=(Series("vllm:kv_cache_usage_perc"), Series("vllm:gpu_cache_usage_perc")),
            kv_info="vllm:cache_config_info",
            kv_info_labels=("num_gpu_blocks", "block_size"),
        ),
        asks={"return_token_ids": True},
        adapt=adapt_to_vllm,
        knows_base64=True,
        goes_on={"add_generation_prompt": False, "continue_final_message": True},
        completion_tokens=16,
        output_penalties=_PENALTIES,
    ),
    Kind(
        "sglang",
        owners=("sglang",),
        page_prefix=b"sglang:",
        page=PageNames(
            running=(Series("sglang:num_running_reqs"),),
            waiting=(Series("sglang:num_queue_reqs"),),
            kv_usage=(Series("sglang:token_usage"),),
            kv_tokens=Series("sglang:max_total_num_tokens"),
            kv_block_tokens=Series("sglang:page_size"),
            kv_info="sglang:cache_config_info",
            kv_info_labels=("num_pages", "page_size"),
        ),
        # It writes them every 40 decoding steps, and up to 30 s later when it has nothing to do.
        page_lag_s=31.0,
        goes_on={"continue_final_message": True},
        completion_tokens=16,
        output_penalties={**_PENALTIES, "repetition_penalty": 1},
    ),
    Kind(
        "llamacpp",
        owners=("llamacpp",),
        page_prefix=b"llamacpp:",
        page=PageNames(
            running=(Series("llamacpp:requests_processing"),),
            waiting=(Series("llamacpp:requests_deferred"),),
        ),
        asks={"return_progress": True},
        adapt=adapt_to_llamacpp,
        loses_text_at_stop=True,
        usage_per_choice=True,
        knows_base64=True,
        goes_on={},
        more_limits=("n_predict",),
    ),
    Kind(
        "lmdeploy",
        owners=("lmdeploy",),
        page_prefix=b"lmdeploy:",
        page=PageNames(
            running=(Series("lmdeploy:num_requests_running"),),
            waiting=(Series("lmdeploy:num_requests_waiting"),),
            kv_usage=(Series("lmdeploy:gpu_cache_usage_perc"),),
        ),
        # It writes them every 10 s.
        page_lag_s=11.0,
    ),
    Kind(
        "tensorrt-llm",
        owners=("tensorrt_llm", "tensorrt-llm"),
        page_prefix=b"trtllm_",
        page=PageNames(
            running=(Series("trtllm_num_requests_running"),),
            waiting=(Series("trtllm_num_requests_waiting"),),
            kv_usage=(Series("trtllm_kv_cache_utilization"),),
            kv_blocks=Series("trtllm_kv_cache_max_blocks"),
            kv_block_tokens=Series("trtllm_kv_cache_tokens_per_block"),
        ),
    ),
    Kind(
        "text-generation-inference",
        page_prefix=b"tgi_",
        page=PageNames(running=(Series("tgi_batch_current_size"),), waiting=(Series("tgi_queue_size"),)),
    ),
    Kind(
        "triton",
        page_prefix=b"nv_trt_llm_",
        page=PageNames(
            running=(Series("nv_trt_llm_request_metrics", ("request_type", "scheduled")),),
            waiting=(Series("nv_trt_llm_request_metrics", ("request_type", "waiting")),),
            kv_usage=(Series("nv_trt_llm_kv_cache_block_metrics", ("kv_cache_block_type", "fraction")),),
            kv_blocks=Series("nv_trt_llm_kv_cache_block_metrics", ("kv_cache_block_type", "max")),
            kv_block_tokens=Series("nv_trt_llm_kv_cache_block_metrics", ("kv_cache_block_type", "tokens_per")),
        ),
    ),
)
"""The names are those of the Gateway API's model server protocol where it has any."""

_CONTEXT_FIELDS = ("max_model_len", "context_length", "max_context_length", "context_window")


@dataclass(frozen=True, slots=True)
class Listing:
    """What `/v1/models` tells."""

    names: tuple[str, ...]
    card: Mapping[str, Any]
    """What it says of our model; empty when our model is not listed."""
    adapters: tuple[str, ...]


def read_models(answer: object, model: str) -> Listing:
    """Reads the answer of `/v1/models`, of which nothing can be taken for granted."""
    data = answer.get("data") if isinstance(answer, dict) else None
    cards = [card for card in data if isinstance(card, dict)] if isinstance(data, list) else []
    names = tuple(dict.fromkeys(name for card in cards for name in _names(card)))
    ours = next((card for card in cards if model in _names(card)), {})
    adapters = tuple(card["id"] for card in cards if card.get("parent") == model and isinstance(card.get("id"), str))
    return Listing(names, ours, adapters)


def recognise(listing: Listing, page: bytes) -> Kind:
    """The kind of a server, by whose its models are, or else by the names on its Prometheus page."""
    owner = str(listing.card.get("owned_by", "")).lower()
    for kind in KINDS:
        if owner in kind.owners:
            return kind
    for kind in KINDS:
        if re.search(rb"^" + re.escape(kind.page_prefix), page, re.MULTILINE):
            return kind
    return UNKNOWN


def facts(kind: Kind, listing: Listing, props: object) -> Facts:
    """What a server tells of itself. `props` is llama.cpp's answer to `/props`, None for others."""
    meta = listing.card.get("meta")
    props = props if isinstance(props, dict) else {}
    settings = props.get("default_generation_settings")
    capabilities = props.get("chat_template_caps")
    lengths = [
        *(listing.card.get(name) for name in _CONTEXT_FIELDS),
        settings.get("n_ctx") if isinstance(settings, dict) else None,
        meta.get("n_ctx") if isinstance(meta, dict) else None,
        meta.get("n_ctx_train") if isinstance(meta, dict) else None,
    ]
    return Facts(
        kind,
        context_length=_first_positive(lengths),
        sequences=_first_positive([props.get("total_slots")]),
        adapters=listing.adapters,
        knows_tools=bool(capabilities.get("supports_tools")) if isinstance(capabilities, dict) else True,
    )


def _names(card: Mapping[str, Any]) -> Iterable[str]:
    aliases = card.get("aliases")
    names = [card.get("id"), *(aliases if isinstance(aliases, list) else ())]
    return [name for name in names if isinstance(name, str)]


def _first_positive(values: Iterable[object]) -> int:
    return next((value for value in values if isinstance(value, int) and value > 0), 0)
