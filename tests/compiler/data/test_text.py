"""Text: what a tokenizer.json makes of it, cut and padded to the model's length, against the library's own encoding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from compiler.data import Dataset, text
from compiler.recipe.data_section import DataSection, TokenizerSection
from penstock.errors import ConfigError, InvalidInput
from penstock.wire.tensors import TensorSpec

Load = Callable[..., Dataset]
WORDS = [
    "the",
    "gate",
    "decides",
    "how",
    "much",
    "water",
    "goes",
    "on",
    "to",
    "turbine",
    "and",
    "rest",
    "stays",
    "in",
    "lake",
]
SENTENCES = [" ".join(WORDS[at % 13 : at % 13 + 1 + at % 5]) + f" {WORDS[at % 7]}" * (at % 3) for at in range(60)]


def specs(length: int = -1, *, datatype: str = "INT64", names: str = "input_ids attention_mask") -> list[TensorSpec]:
    return [TensorSpec(name=name, datatype=datatype, shape=(-1, length)) for name in names.split()]


@pytest.fixture
def tokenizer(tmp_path: Path, write_csv: Callable[..., Path]) -> Tokenizer:
    """A word-level tokenizer with BERT's special tokens in tokenizer.json, and sentences in table.csv."""
    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["[UNK]", "[CLS]", "[SEP]", "[PAD]"], show_progress=False)
    made.train_from_iterator([" ".join(WORDS)], trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", made.token_to_id("[CLS]")), ("[SEP]", made.token_to_id("[SEP]"))],
    )
    made.save(str(tmp_path / "tokenizer.json"))
    write_csv({"key": range(60), "text": SENTENCES, "other": SENTENCES[::-1], "y": [n % 2 for n in range(60)]})
    return made


def read(load: Load, inputs: list[TensorSpec], *, text: Any = "text", **settings: Any) -> dict[str, np.ndarray]:
    """All rows in the order of the file."""
    key = TensorSpec(name="key", datatype="INT64", shape=(-1,))
    section = TokenizerSection(file="tokenizer.json", **settings)
    loaded = load([*inputs, key], source="table.csv", text=text, tokenizer=section, classes=2)
    order = np.argsort(np.concatenate([split.inputs["key"] for split in loaded.by_use().values()]))
    return {
        spec.name: np.concatenate([split.inputs[spec.name] for split in loaded.by_use().values()])[order]
        for spec in inputs
    }


def test_rows_are_what_the_library_encodes(tokenizer: Tokenizer, load: Load) -> None:
    got = read(load, specs(names="input_ids attention_mask token_type_ids"), text=("text", "other"), max_length=12)
    tokenizer.enable_truncation(12)
    tokenizer.enable_padding(length=12, pad_id=tokenizer.token_to_id("[PAD]"), pad_token="[PAD]")
    for row, (one, two) in enumerate(zip(SENTENCES, SENTENCES[::-1], strict=True)):
        expected = tokenizer.encode(one, two)
        assert got["input_ids"][row].tolist() == expected.ids
        assert got["attention_mask"][row].tolist() == expected.attention_mask
        assert got["token_type_ids"][row].tolist() == expected.type_ids
    assert got["token_type_ids"].max() == 1


def test_the_models_fixed_length_and_datatype_win(tokenizer: Tokenizer, load: Load) -> None:
    got = read(load, specs(9, datatype="INT32"))["input_ids"]
    assert (got.shape, got.dtype) == ((60, 9), np.int32)
    with pytest.raises(ConfigError, match="data.tokenizer.max_length: 12 given, but the model takes exactly 9 tokens"):
        read(load, specs(9), max_length=12)


def test_lengths_without_a_fixed_dimension(tokenizer: Tokenizer, load: Load, tmp_path: Path) -> None:
    assert read(load, specs())["input_ids"].shape == (60, 128)
    longest = max(len(tokenizer.encode(text).ids) for text in SENTENCES)
    assert read(load, specs(), padding="longest")["input_ids"].shape == (60, longest)
    assert read(load, specs(), padding="longest", max_length=4)["input_ids"].shape == (60, 4)
    tokenizer.enable_truncation(17)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert read(load, specs())["input_ids"].shape == (60, 17)


def test_padding_is_where_and_what_the_tokenizer_says(tokenizer: Tokenizer, load: Load, tmp_path: Path) -> None:
    tokenizer.enable_padding(direction="left", pad_id=2, pad_token="[SEP]")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    got = read(load, specs(20))
    expected = tokenizer.encode(SENTENCES[0]).ids
    assert got["input_ids"][0].tolist() == [2] * (20 - len(expected)) + expected
    assert got["attention_mask"][0].tolist() == [0] * (20 - len(expected)) + [1] * len(expected)
    named = read(load, specs(20), pad_token="[PAD]")["input_ids"]
    assert named[0, 0] == tokenizer.token_to_id("[PAD]")


def test_labels_that_are_texts_become_their_tokens_without_special_ones(tokenizer: Tokenizer, tmp_path: Path) -> None:
    section = DataSection(source="table.csv", tokenizer=TokenizerSection(file="tokenizer.json", max_length=2))
    found = text.label_tokens(np.array(["the gate decides", "water"]), section, tmp_path)
    assert found is not None
    ids = [tokenizer.token_to_id(word) for word in ("the", "gate", "decides", "water")]
    assert found.tolist() == [ids[:3], [ids[3], -1, -1]], "nothing is cut: it is what the answer should be"
    numbers = np.array([[1, 2], [3, -1]])
    assert text.label_tokens(numbers, section, tmp_path) is numbers
    assert text.label_tokens(None, section, tmp_path) is None


def test_a_row_that_is_too_long_is_named_where_nothing_may_be_cut(tokenizer: Tokenizer, load: Load) -> None:
    row = next(row for row, text in enumerate(SENTENCES) if len(tokenizer.encode(text).ids) > 6)
    count = len(tokenizer.encode(SENTENCES[row]).ids)
    with pytest.raises(InvalidInput, match=f"data.text: row {row} has {count} tokens, more than 6; raise data.token"):
        read(load, specs(), max_length=6, truncation="none")
    assert read(load, specs(), max_length=40, truncation="none")["input_ids"].shape == (60, 40)


def test_an_iterator_may_give_text(tokenizer: Tokenizer, load: Load, tmp_path: Path) -> None:
    (tmp_path / "rows.py").write_text(
        f"def rows():\n    for n, words in enumerate({SENTENCES!r}):\n        yield {{'text': words + str(n)}}, n % 2\n"
    )
    section = TokenizerSection(file="tokenizer.json", max_length=10)
    with pytest.raises(InvalidInput, match="leave none for"):  # every number is [UNK], so that many rows are equal
        load(
            specs(),
            source="rows.py:rows",
            text="text",
            tokenizer=TokenizerSection(file="tokenizer.json", max_length=2),
            classes=2,
        )
    loaded = load(specs(), source="rows.py:rows", text="text", tokenizer=section, classes=2)
    assert loaded.certify.inputs["attention_mask"].shape[1] == 10


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (specs(names="x"), "a tokenizer makes input_ids, attention_mask, token_type_ids, but the model takes x, key"),
        ([*specs(8, names="input_ids"), *specs(9, names="attention_mask")], "the model takes exactly 8, 9 tokens"),
    ],
)
def test_a_model_that_takes_no_such_tokens(
    tokenizer: Tokenizer, load: Load, write_csv: Callable[..., Path], inputs: list[TensorSpec], message: str
) -> None:
    write_csv({"key": range(60), "text": SENTENCES, "x": range(60), "y": [0, 1] * 30})
    inputs = [TensorSpec(name="x", datatype="INT64", shape=(-1,))] if inputs[0].name == "x" else inputs
    with pytest.raises(ConfigError, match=message):
        read(load, inputs)


def test_a_tokenizer_without_a_token_to_pad_with(tmp_path: Path, tokenizer: Tokenizer, load: Load) -> None:
    bare = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    bare.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"pad_token: the tokenizer has no token \[PAD\], <pad>, .*; name one"):
        read(load, specs(8))
    with pytest.raises(ConfigError, match="pad_token: the tokenizer has no token b; name one that it has"):
        read(load, specs(8), pad_token="b")
    assert read(load, specs(8), pad_token="a")["input_ids"].shape == (60, 8)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": {"type": "Surprise"}}'])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, tokenizer: Tokenizer, load: Load, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InvalidInput, match="tokenizer.json: not (a tokenizer.json of|readable)"):
        read(load, specs(8))


def test_a_tokenizer_that_is_not_there_or_huge(
    tmp_path: Path, tokenizer: Tokenizer, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compiler.data import text

    monkeypatch.setattr(text, "_MAX_TOKENIZER_BYTES", 10)
    with pytest.raises(InvalidInput, match="tokenizer.json: .* bytes, at most 10"):
        read(load, specs(8))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(InvalidInput, match="tokenizer.json: no such file"):
        read(load, specs(8))


def test_the_library_is_one_that_reads_what_it_wrote() -> None:
    """A new version that changes the document's form would change every digest of preprocessing."""
    assert tokenizers.__version__.startswith("0.")
