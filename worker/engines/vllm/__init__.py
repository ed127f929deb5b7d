"""vLLM in this process: AsyncLLM here, its engine core in a process of its own."""
