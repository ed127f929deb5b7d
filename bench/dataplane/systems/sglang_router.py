"""SGLang's router (sgl-model-gateway), a wheel with a server in Rust."""

from __future__ import annotations

from bench.dataplane.systems.rust_router import RustRouter

_ROUTER = RustRouter("sglang-router", "0.3.2", "sglang_router.launch_router")

CACHE_AWARE = _ROUTER.system("cache_aware")
ROUND_ROBIN = _ROUTER.system("round_robin")
