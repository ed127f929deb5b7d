"""Trains the demo model and writes it to `worker/demo`: `python -m tools.demo_model.train`.

Everything random comes from one seed, and torch is asked for deterministic kernels, so a second run on
the same machine writes the same weights.
"""

import argparse
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tools.demo_model.convert import convert
from tools.demo_model.data import Example, Sampler
from tools.demo_model.tokenizer import END, PAD, save_tokenizer, token_id, train_tokenizer
from worker.demo import GGUF_PATH, HF_PATH, load_faq

_BUCKETS: Final = ((192, 16), (384, 8), (768, 4), (1536, 2))
"""Length and number of the rows of one batch; a batch has 3,072 tokens whatever its shape."""

_SHARES: Final = (0.35, 0.25, 0.25, 0.15)
"""How often each bucket is drawn: a long answer needs a long row, a first question the beginning of one."""

_BRANCHING_BUCKET: Final = (1024, 3)
"""The shape of a batch with branches: room for a long answer and 64 of them."""

_BRANCHING_SHARE: Final = 0.4
"""The share of the batches whose examples have branches."""

_ADAM_RATE: Final = 3e-3
_MUON_RATE: Final = 0.02
_WARM_UP_STEPS: Final = 50
_CONSTANT_SHARE: Final = 0.2
"""The share of the steps after which the rates begin to fall."""

_IGNORE: Final = -100


def build_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """A fresh Llama. Deep and narrow: the way to go on from a seam needs several layers on top of one another."""
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=160,
        intermediate_size=384,
        num_hidden_layers=5,
        # Two heads of 64: every attention kernel knows this size, and two GPUs can share the model.
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=token_id(tokenizer, END),
        pad_token_id=token_id(tokenizer, PAD),
    )
    return LlamaForCausalLM(config)


def collate(examples: list[Example], length: int, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and targets, both [rows, length], padded on the right, where attention ignores it.

    The shape depends on nothing but the bucket, since a new shape costs the CPU kernels dear.
    """
    ids = torch.full((len(examples), length), pad)
    targets = torch.full((len(examples), length), _IGNORE)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        wanted = [token if learn else _IGNORE for token, learn in zip(example.ids, example.learn, strict=True)]
        targets[row, : len(wanted) - 1] = torch.tensor(wanted[1:])
    return ids, targets


def collate_branches(examples: list[Example], length: int) -> dict[str, torch.Tensor]:
    """Positions [rows, length] and attention mask [rows, 1, length, length] of examples with branches."""
    positions = torch.zeros((len(examples), length), dtype=torch.long)
    mask = torch.eye(length, dtype=torch.bool).repeat(len(examples), 1, 1, 1)
    for row, example in enumerate(examples):
        used = len(example.ids)
        position = torch.tensor(example.positions)
        branch = torch.tensor(example.branches)
        visible = torch.tensor(example.visible)
        trunk = (branch == 0) & (position < visible[:, None])
        own = (branch == branch[:, None]) & (branch > 0) & torch.ones((used, used), dtype=torch.bool).tril()
        positions[row, :used] = position
        mask[row, 0, :used, :used] = trunk | own
    return {"position_ids": positions, "attention_mask": mask}


def losses_of(
    model: LlamaForCausalLM, ids: torch.Tensor, targets: torch.Tensor, branches: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Cross entropy [rows, length] of the token after each position, 0 where nothing is to be learnt."""
    logits = model(input_ids=ids, use_cache=False, **branches).logits.float()
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORE, reduction="none"
    ).view_as(targets)


def grade(sampler: Sampler, examples: list[Example], losses: torch.Tensor) -> None:
    """Tell the sampler what was difficult."""
    for example, row in zip(examples, losses.tolist(), strict=True):
        for lesson in example.lessons:
            sampler.grade(lesson, max(row[lesson.first - 1 : lesson.last - 1]))


def rate_factor(step: int, steps: int) -> float:
    """The learning rate as a share of its highest: a short rise, a level stretch, half a cosine down to zero."""
    falling = max(0.0, (step / steps - _CONSTANT_SHARE) / (1 - _CONSTANT_SHARE))
    return min(1.0, (step + 1) / _WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * falling))


def train(model: LlamaForCausalLM, sampler: Sampler, steps: int, seed: int) -> None:
    """Run `steps` steps: Muon for the matrices inside the layers, Adam for embeddings and norms."""
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in model.named_parameters() if weight.ndim != 2 or "embed" in name]
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (torch.optim.AdamW(others, lr=_ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0), _ADAM_RATE),
        (torch.optim.Muon(matrices, lr=_MUON_RATE, weight_decay=0.01), _MUON_RATE),
    ]
    generator = torch.Generator().manual_seed(seed)
    started = time.monotonic()
    average = 0.0
    for step in range(steps):
        branching = float(torch.rand((), generator=generator)) < _BRANCHING_SHARE
        length, rows = (
            _BRANCHING_BUCKET
            if branching
            else _BUCKETS[int(torch.multinomial(torch.tensor(_SHARES), 1, generator=generator))]
        )
        examples = [sampler.example(length, branching) for _ in range(rows)]
        ids, targets = collate(examples, length, sampler.pad)
        branches = collate_branches(examples, length) if branching else {}
        for optimizer, rate in optimizers:
            optimizer.param_groups[0]["lr"] = rate * rate_factor(step, steps)
            optimizer.zero_grad(set_to_none=True)
        # Half the time where the CPU knows bfloat16, and its rounding errors teach wide margins.
        with torch.autocast("cpu", torch.bfloat16):
            losses = losses_of(model, ids, targets, branches)
        loss = losses.sum() / (targets != _IGNORE).sum()
        loss.backward()
        grade(sampler, examples, losses.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
        average = 0.95 * average + 0.05 * float(loss.detach())
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {average:.5f}, {time.monotonic() - started:.0f} s", flush=True)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path, gguf: Path) -> None:
    """Write both forms beside their places and move them in, so that a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    gguf.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        fresh = Path(name)
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id
        )
        model.to(dtype=torch.float16).save_pretrained(fresh)
        save_tokenizer(tokenizer, fresh)
        convert(fresh, fresh / "demo.gguf")
        for path in fresh.iterdir():
            os.chmod(path, 0o644)
            path.replace(gguf if path.suffix == ".gguf" else folder / path.name)


def main() -> None:
    """Parse arguments, train, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hf", type=Path, default=HF_PATH, help="folder to write")
    parser.add_argument("--gguf", type=Path, default=GGUF_PATH, help="file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    faq = load_faq()
    tokenizer = train_tokenizer(faq)
    model = build_model(tokenizer)
    print(f"{sum(weight.numel() for weight in model.parameters()):,} parameters", flush=True)
    train(model, Sampler(tokenizer, faq, args.seed), args.steps, args.seed)
    save(model, tokenizer, args.hf, args.gguf)


if __name__ == "__main__":
    main()
