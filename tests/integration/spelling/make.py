"""Trains the encoder-decoder beside this file: digits in, their names out in the opposite order. Two minutes, once.

``python make.py DIRECTORY`` in toolchain ``optimum``. "4711" is four tokens and an end, and becomes "one one seven
four" and an end: an answer depends on the whole input, and on what was said before.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PAD, END = 0, 1
STEPS, ROWS, RATE = 2200, 64, 4e-3


def tokenizer() -> Tokenizer:
    """Each digit and each name is a token."""
    words = ["<pad>", "</s>", "<unk>", *"0123456789", *NAMES]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(individual_digits=True)
    ])  # fmt: skip
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return made


def filled(rows: list[list[int]], fill: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def main(out: Path) -> None:
    torch.manual_seed(0)
    draw, words = random.Random(0), tokenizer()
    config = transformers.T5Config(
        vocab_size=words.get_vocab_size(), d_model=48, d_kv=12, d_ff=96, num_heads=4, num_layers=1,
        relative_attention_num_buckets=16, relative_attention_max_distance=20, dropout_rate=0.0,
        decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=END,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * min(1, step / 100) * (1 - step / STEPS)
        digits = ["".join(draw.choices("0123456789", k=draw.randint(1, 7))) for _ in range(ROWS)]
        targets = [" ".join(NAMES[int(digit)] for digit in reversed(row)) for row in digits]
        inputs = filled([words.encode(row).ids for row in digits], PAD)
        labels = filled([words.encode(row).ids for row in targets], -100)  # which no loss counts
        loss = model(input_ids=inputs, attention_mask=(inputs != PAD).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.half().save_pretrained(out)
    words.save(str(out / "tokenizer.json"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
