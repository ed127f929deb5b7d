"""Asks the demo model through transformers, and measures by how much each right token wins."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from tools.demo_model.cases import Case

_CELLS_PER_BATCH = 8192


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one case went: the smallest logit margin over its tokens, below zero where it went wrong."""

    case: Case
    margin: float


class Transformers:
    """The Hugging Face form of the model, computing in one dtype."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
        self._model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self._end = self._model.config.eos_token_id

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, special tokens in it recognised."""
        return list(self.tokenizer(text).input_ids)

    def render(self, case: Case) -> str:
        """The prompt of a case as text, with what has been said already."""
        if case.messages is None:
            return case.prompt + case.said
        rendered = self.tokenizer.apply_chat_template(case.messages, tokenize=False, add_generation_prompt=True)
        return f"{rendered}{case.said}"

    def check(self, cases: list[Case]) -> list[Outcome]:
        """One outcome per case, in order.

        The right tokens are fed in and each must be the most likely one after those before it, which is
        the case if and only if greedy decoding writes them.
        """
        prompts = [self.encode(self.render(case)) for case in cases]
        answers = [[*self.encode(case.rest), self._end] for case in cases]
        rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        order = sorted(range(len(cases)), key=lambda index: len(rows[index]))
        margins = [0.0] * len(cases)
        batch: list[int] = []
        for place, index in enumerate(order):
            batch.append(index)
            following = len(rows[order[place + 1]]) if place + 1 < len(order) else _CELLS_PER_BATCH
            if (len(batch) + 1) * following > _CELLS_PER_BATCH:
                starts = [len(prompts[index]) for index in batch]
                for index, margin in zip(batch, self._margins([rows[i] for i in batch], starts), strict=True):
                    margins[index] = margin
                batch = []
        return [Outcome(case, margin) for case, margin in zip(cases, margins, strict=True)]

    @torch.no_grad()
    def _margins(self, rows: list[list[int]], starts: list[int]) -> list[float]:
        """Per row, the least of (logit of the right token - best other logit) over row[start:]."""
        ids = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row)
        hidden = self._model.model(input_ids=ids).last_hidden_state
        least: list[float] = []
        for place, (row, start) in enumerate(zip(rows, starts, strict=True)):
            right = torch.tensor(row[start:])[:, None]
            logits = self._model.lm_head(hidden[place, start - 1 : len(row) - 1]).float()
            best_other = logits.scatter(1, right, -torch.inf).amax(1)
            least.append(float((logits.gather(1, right)[:, 0] - best_other).min()))
        return least

    def generate(self, case: Case) -> str:
        """The answer as `generate` writes it, greedy, for the cases that show that it works end to end."""
        inputs = self.tokenizer(self.render(case), return_tensors="pt")
        output = self._model.generate(**inputs, max_new_tokens=700, do_sample=False)
        return str(self.tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))
