"""Load balancing for LLM serving: the pure core that decides, the wire around it, the scheduler, and the client.

docs/architecture.md is the map.
"""
