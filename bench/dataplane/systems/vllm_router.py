"""The vLLM project's router, a wheel with a server in Rust.

Its policy cache_aware takes a session's key from headers or from the body's `user`, and only then looks at the prompt:
requests that name neither are told apart by their prompts.
"""

from __future__ import annotations

from bench.dataplane.systems.rust_router import RustRouter

_ROUTER = RustRouter("vllm-router", "0.1.17", "vllm_router.launch_router")

CACHE_AWARE = _ROUTER.system("cache_aware")
ROUND_ROBIN = _ROUTER.system("round_robin")
