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

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tools.demo_model.convert import convert
from tools.demo_model.data import Example, Sampler
from tools.demo_model.tokenizer import END, PAD, token_id, train_tokenizer, wrap
from worker.demo import GGUF_PATH, HF_PATH, load_faq

BUCKETS = ((192, 16), (384, 8), (768, 4), (1536, 2))
"""Length and number of the rows of one batch; a batch has 3,072 tokens whatever its shape."""

_SHARES = (0.3, 0.25, 0.3, 0.15)
"""How often each bucket is drawn: a long answer needs a long row, a first question the beginning of one."""

_IGNORE = -100


def build_model(
    vocab_size: int, end: int, pad: int, hidden: int, layers: int, ffn: int, heads: int
) -> LlamaForCausalLM:
    """A fresh Llama with two key-value heads, so that two-way tensor parallelism is possible."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    return LlamaForCausalLM(config)


def collate(examples: list[Example], length: int, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and targets, both [rows, length], padded on the right, where causal attention ignores it.

    The shape depends on nothing but the bucket, since a new shape costs the CPU kernels dear.
    """
    ids = torch.full((len(examples), length), pad)
    targets = torch.full((len(examples), length), _IGNORE)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        wanted = [token if learn else _IGNORE for token, learn in zip(example.ids, example.learn, strict=True)]
        targets[row, : len(wanted) - 1] = torch.tensor(wanted[1:])
    return ids, targets


def losses_of(model: LlamaForCausalLM, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy [rows, length] of the token after each position, 0 where nothing is to be learnt."""
    logits = model(input_ids=ids, use_cache=False).logits.float()
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORE, reduction="none"
    ).view_as(targets)


def grade(sampler: Sampler, examples: list[Example], losses: torch.Tensor) -> None:
    """Tell the sampler what was difficult."""
    rows = losses.tolist()
    for example, row in zip(examples, rows, strict=True):
        for lesson in example.lessons:
            sampler.grade(lesson, max(row[lesson.first - 1 : lesson.last - 1], default=0.0))


def train(model: LlamaForCausalLM, sampler: Sampler, pad: int, args: argparse.Namespace) -> None:
    """Adam for embeddings and norms, Muon for matrices, on a schedule that ends at zero."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=args.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
        torch.optim.Muon(matrices, lr=args.muon_rate, weight_decay=0.01),
    ]
    base = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    started = time.monotonic()
    step = 0
    generator = torch.Generator().manual_seed(args.seed)
    running = 0.0
    while step < args.steps:
        pick = int(torch.multinomial(torch.tensor(_SHARES), 1, generator=generator))
        length, rows = BUCKETS[pick]
        examples = [sampler.example(length) for _ in range(rows)]
        ids, targets = collate(examples, length, pad)
        done = step / args.steps
        factor = min(1.0, (step + 1) / 50) * (1.0 if done < 0.4 else 0.5 * (1 + math.cos(math.pi * (done - 0.4) / 0.6)))
        for optimizer, rate in zip(optimizers, base, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.zero_grad(set_to_none=True)
        # Half the time where the CPU knows bfloat16, and its rounding errors teach wide margins.
        with torch.autocast("cpu", torch.bfloat16):
            losses = losses_of(model, ids, targets)
        loss = losses.sum() / (targets != _IGNORE).sum()
        loss.backward()
        grade(sampler, examples, losses.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        running = 0.95 * running + 0.05 * float(loss.detach())
        if step % 50 == 0:
            print(f"step {step} loss {running / (1 - 0.95**step):.5f} {time.monotonic() - started:.0f} s", flush=True)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path, gguf: Path) -> None:
    """Write both forms beside their places and move them in, so that a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        fresh = Path(name)
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id
        )
        model.to(torch.float16).save_pretrained(fresh)
        wrap(tokenizer).save_pretrained(fresh)
        convert(fresh, fresh / "demo.gguf")
        (fresh / "demo.gguf").replace(gguf)
        for path in fresh.iterdir():
            os.chmod(path, 0o644)
            path.replace(folder / path.name)
    os.chmod(gguf, 0o644)


def main() -> None:
    """Parse arguments, train, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--ffn", type=int, default=512)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--adam-rate", type=float, default=3e-3)
    parser.add_argument("--muon-rate", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hf", type=Path, default=HF_PATH)
    parser.add_argument("--gguf", type=Path, default=GGUF_PATH)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    faq = load_faq()
    tokenizer = train_tokenizer(faq)
    end, pad = token_id(tokenizer, END), token_id(tokenizer, PAD)
    model = build_model(tokenizer.get_vocab_size(), end, pad, args.hidden, args.layers, args.ffn, args.heads)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    train(model, Sampler(tokenizer, faq, args.seed), pad, args)
    save(model, tokenizer, args.hf, args.gguf)


if __name__ == "__main__":
    main()
