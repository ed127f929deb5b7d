"""Checks the demo model in transformers and in llama.cpp: `python -m tools.demo_model.verify`.

Prints a table and ends with status 1 if any answer, prompt or token id is not what it has to be.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers

from tools.demo_model.cases import BY_IDS, Case, make_cases, token_texts
from tools.demo_model.check_llamacpp import LlamaCpp
from tools.demo_model.check_transformers import Transformers
from worker.demo import GGUF_PATH, HF_PATH, load_faq

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Report:
    """Collects one line per check, and whether all were well."""

    def __init__(self) -> None:
        self.failed = False
        print(f"{'engine':24} {'form':18} {'cases':>6} {'wrong':>6} {'least margin':>13}")

    def line(self, engine: str, form: str, cases: int, wrong: Iterable[str], margin: float | None = None) -> None:
        """Print one line, and the first few things that went wrong below it."""
        details = list(wrong)
        self.failed = self.failed or bool(details)
        shown = "" if margin is None else f"{margin:13.2f}"
        print(f"{engine:24} {form:18} {cases:6} {len(details):6} {shown}")
        for detail in details[:5]:
            print(f"    {detail}")
        sys.stdout.flush()


def _name(case: Case) -> str:
    question = case.messages[-1]["content"] if case.messages else case.prompt
    return f"{question[-60:]!r} after {case.said[-20:]!r}"


def _by_form(cases: list[Case]) -> dict[str, list[Case]]:
    forms: dict[str, list[Case]] = {}
    for case in cases:
        forms.setdefault(case.form, []).append(case)
    return forms


def check_transformers(report: Report, cases: list[Case], folder: Path, dtype: str) -> None:
    """All cases token by token, and the plain chats also through `generate`."""
    engine = Transformers(folder, _DTYPES[dtype])
    for form, group in _by_form(cases).items():
        outcomes = engine.check(group)
        wrong = (f"{_name(o.case)}: margin {o.margin:.2f}" for o in outcomes if o.margin <= 0)
        report.line(f"transformers {dtype}", form, len(group), wrong, min(o.margin for o in outcomes))
    chats = [case for case in cases if case.form == "chat"]
    wrong = (f"{_name(case)}: {text!r}" for case in chats if (text := engine.generate(case)) != case.answer)
    report.line(f"transformers {dtype}", "chat, generate", len(chats), wrong)


def check_llamacpp(report: Report, cases: list[Case], hf: Transformers, path: Path, slots: int) -> None:
    """All cases, `slots` at a time."""
    engine = LlamaCpp(path, slots)
    name = f"llama.cpp, {slots} at a time"
    for form, group in _by_form(cases).items():
        prompts = [hf.encode(hf.render(case)) if form == BY_IDS else hf.render(case) for case in group]
        texts = engine.ask(group, prompts)
        pairs = zip(group, texts, strict=True)
        report.line(name, form, len(group), (f"{_name(c)}: {text!r}" for c, text in pairs if text != c.rest))
    continued = [case for case in cases if case.form == "continued chat"]
    wrong = [_name(c) for c in continued if engine.continue_chat(c) not in (c.answer, c.rest)]
    report.line(name, "last role asst.", len(continued), wrong)


def check_tokens(report: Report, cases: list[Case], texts: list[str], hf: Transformers, path: Path) -> None:
    """Equal token ids for equal text, equal prompts for equal chats, and text that survives the round trip."""
    llama = LlamaCpp(path, 1)
    wrong = (repr(text) for text in texts if hf.encode(text) != llama.encode(text))
    report.line("both", "token ids", len(texts), wrong)
    back = (repr(text) for text in texts if hf.tokenizer.decode(hf.encode(text)) != text)
    report.line("transformers", "decoded again", len(texts), back)
    chats = [case for case in cases if case.messages is not None and not case.said]
    wrong = (_name(case) for case in chats if llama.render(case.messages or []) != hf.render(case))
    report.line("both", "chat prompts", len(chats), wrong)
    ids = (_name(case) for case in chats if llama.encode(hf.render(case)) != hf.encode(hf.render(case)))
    report.line("both", "chat token ids", len(chats), ids)


def main() -> None:
    """Parse arguments, run every check, exit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=7, help="draws cuts, system prompts and histories")
    parser.add_argument(
        "--cuts",
        type=int,
        default=6,
        help="seams per short answer, six times as many per long one; 9999 for every seam there is",
    )
    parser.add_argument("--slots", type=int, nargs="*", default=[1, 8], help="how many at a time in llama.cpp")
    parser.add_argument("--dtypes", nargs="*", default=list(_DTYPES), choices=list(_DTYPES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hf", type=Path, default=HF_PATH)
    parser.add_argument("--gguf", type=Path, default=GGUF_PATH)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    faq = load_faq()
    cases = make_cases(faq, args.seed, args.cuts)
    report = Report()
    hf = Transformers(args.hf)
    check_tokens(report, cases, token_texts(faq, args.seed), hf, args.gguf)
    for dtype in args.dtypes:
        check_transformers(report, cases, args.hf, dtype)
    for slots in args.slots:
        check_llamacpp(report, cases, hf, args.gguf, slots)
    sys.exit(report.failed)


if __name__ == "__main__":
    main()
