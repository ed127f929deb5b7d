"""Before a model is served: whether it says in a batch what it says alone. Needs torch.

Models must hand on what continuous batching tells their layers, and not all do. Those that place tokens by a bias on
attention (Bloom, MPT) ignore where in the batch a sequence begins, raise no error, and answer nonsense.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from worker.engines.transformers.sampling import RawLogprob

PROMPT_TOKENS = (24, 40)
"""Of the two sequences that are tried side by side: of unlike length, and longer than a KV block."""
ANSWER_TOKENS = 8

MAX_DEVIATION = 0.1
"""By how much, in nats, log probabilities may differ in the median. Measured with small models of random weights:
0.000001 in float32 and 0.0015 in bfloat16; 0.3 and 1.4 for Bloom and MPT."""


def trial_prompts(vocabulary_size: int, cache_tokens: int) -> list[list[int]]:
    """Tokens without meaning, as many as leave a small cache room for the answer."""
    lengths = [max(1, min(length, cache_tokens - answer_tokens(cache_tokens))) for length in PROMPT_TOKENS]
    return [[7919 * (place + 3 * length) % vocabulary_size for place in range(length)] for length in lengths]


def answer_tokens(cache_tokens: int) -> int:
    return max(1, min(ANSWER_TOKENS, cache_tokens // 2))


def deviation(model: Any, prompts: Sequence[list[int]], answers: Sequence[Sequence[RawLogprob]]) -> float:
    """How far the log probabilities of greedy answers are from those of the model alone: the median, in nats."""
    differences = []
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens = [token for token, _, _ in answer]
        with torch.no_grad():
            whole = torch.tensor([prompt + tokens[:-1]], device=model.device)
            scores = model(input_ids=whole, use_cache=False).logits[0, len(prompt) - 1 :].float()
        alone = torch.log_softmax(scores, dim=-1).gather(-1, torch.tensor(tokens, device=model.device).unsqueeze(-1))
        differences += [abs(one - logprob) for one, (_, logprob, _) in zip(alone[:, 0].tolist(), answer, strict=True)]
    return float(median(differences))
