"""The demo model's tokenizer: a byte-level BPE with GPT-2's splitting rule, trained on the FAQ."""

import json
import re
from pathlib import Path
from typing import Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from worker.demo import UNKNOWN_ANSWER, FaqEntry

VOCAB_SIZE: Final = 768

END: Final = "<|end|>"
PAD: Final = "<|pad|>"
SYSTEM: Final = "<|system|>"
USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"
SPECIAL: Final = (END, PAD, SYSTEM, USER, ASSISTANT)
"""Token ids 0 to 4, in this order."""

TEMPLATE_PATH: Final = Path(__file__).with_name("chat_template.jinja")


def train_tokenizer(faq: list[FaqEntry]) -> Tokenizer:
    """Train the BPE on the FAQ; the 256 bytes are in the vocabulary, so that any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        show_progress=False,
        special_tokens=[AddedToken(text, normalized=False, special=True) for text in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    texts = [f"Q: {entry.question}\nA: {entry.answer}" for entry in faq]
    # GPT-2's rule splits off 's and the like unless a symbol stands before them, and libraries with other
    # Unicode tables disagree on what is a symbol. Without tokens such as 's the split makes no difference.
    texts = [re.sub(r"'(s|t|re|ve|m|ll|d)\b", " ", text) for text in (*texts, UNKNOWN_ANSWER)]
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"the FAQ yields only {tokenizer.get_vocab_size()} tokens, not {VOCAB_SIZE}")
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that must exist."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(token)
    return int(found)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer and the chat template as transformers and vLLM want them. There is no BOS token."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    wrapped.chat_template = TEMPLATE_PATH.read_text(encoding="utf-8").rstrip("\n")
    wrapped.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # transformers 5 writes a name that 4 does not know, and reads this one as well.
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
