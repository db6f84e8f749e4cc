"""Tokenizers of every kind that language models come with, small, as the files of a model's directory."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = [
    "The quick brown fox jumps over the lazy dog. def main(argv): print('Hello, world!')",
    "naïve café → 日本語 🙂 👩‍👩‍👧‍👦 한국어 e\u0301 ñ अ ",
    "日本語のテキスト 日本 🙂🙂 hello hello the the",
]
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def _byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    # not special, with a space and a character outside of the alphabet: written as they are
    made.add_tokens([AddedToken("<tool call>"), AddedToken("<→>"), AddedToken("<think>")])
    return made


def _sentence_piece() -> Tokenizer:
    words = [
        "▁",
        "▁the",
        "▁Hello",
        "Hello",
        "日本",
        "語",
        "▁日本",
        "a",
        "b",
        "▁a",
        "▁▁",
        "🙂",
        "é",
        ",",
        "▁world",
        "!",
        "\n",
    ]
    names = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    made = Tokenizer(
        models.BPE({name: place for place, name in enumerate(names)}, [], byte_fallback=True, unk_token="<unk>")
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", *SPECIAL])
    made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return made


def _unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(
            vocab_size=120, special_tokens=["<unk>", *SPECIAL], unk_token="<unk>", show_progress=False
        ),
    )
    return made


def _word_piece() -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(
        [*TEXTS, "I do n't . , know 's !"],
        trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", *SPECIAL], show_progress=False),
    )
    return made


def _words() -> Tokenizer:
    names = ["<unk>", *SPECIAL, "yes", "no", "日本"]
    made = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<unk>", *SPECIAL])
    return made


MAKERS = {
    "byte level": _byte_level,
    "sentence piece": _sentence_piece,
    "unigram": _unigram,
    "word piece": _word_piece,
    "words": _words,
}


@cache
def library(kind: str) -> Tokenizer:
    """Return the tokenizer as ``tokenizers`` has it, the oracle."""
    return MAKERS[kind]()


@cache
def document(kind: str) -> str:
    return str(library(kind).to_str())


def files(kind: str, **config: Any) -> dict[str, bytes]:
    """Return the files of a model with it; ``config`` goes into tokenizer_config.json."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "model_max_length": 128}
    return {"tokenizer.json": document(kind).encode(), "tokenizer_config.json": json.dumps(names | config).encode()}
