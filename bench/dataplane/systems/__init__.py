"""The systems that are compared, one file for each."""

from __future__ import annotations

from bench.dataplane.systems import (
    direct,
    fastchat,
    haproxy,
    litellm,
    lmdeploy,
    nginx,
    ours,
    sglang_router,
    vllm_router,
)

_ALL = (
    direct.SYSTEM,
    nginx.SYSTEM,
    haproxy.SYSTEM,
    ours.SYSTEM,
    ours.SYSTEM_2,
    sglang_router.CACHE_AWARE,
    sglang_router.ROUND_ROBIN,
    vllm_router.CACHE_AWARE,
    vllm_router.ROUND_ROBIN,
    litellm.SYSTEM,
    lmdeploy.SYSTEM,
    fastchat.SYSTEM,
)

SYSTEMS = {system.name: system for system in _ALL}
"""By name, in the order of the table."""
