"""Prompts: what is read, what is refused, and where each goes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compiler.generation import prompts
from compiler.generation.prompts import Prompt, PromptSet
from penstock.errors import InvalidInput


def jsonl(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.name


def test_jsonl_with_answers_and_groups(tmp_path: Path) -> None:
    name = jsonl(
        tmp_path / "p.jsonl",
        {"prompt": "1 + 1 =", "answer": "2", "group": "a"},
        {"prompt": "x", "answer": "", "group": "b"},
    )
    found = prompts.load(name, base=tmp_path)
    assert found.prompts == ("1 + 1 =", "x")
    assert found.answers == ("2", "")
    assert found.groups is not None
    assert found.groups.tolist() == ["a", "b"]


def test_text_is_split_at_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n\none\ntwo\n\n  \nthree", encoding="utf-8")
    found = prompts.load("p.txt", base=tmp_path)
    assert found.prompts == ("one\ntwo", "three")
    assert found.answers is None
    assert found.groups is None


def test_an_iterator_gives_rows(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def rows():\n    yield {'prompt': 'a', 'answer': 'b'}\n    yield {'prompt': 'c'}, 'd'\n", encoding="utf-8"
    )
    found = prompts.load("mine.py:rows", base=tmp_path)
    assert (found.prompts, found.answers) == (("a", "c"), ("b", "d"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "anwser": "b"}], "row 0: unknown column 'anwser'; did you mean 'answer'"),
        ([{"answer": "b"}], "row 0: .*prompt"),
        ([{"prompt": "a"}, {"prompt": " "}], "row 1: the prompt is empty"),
        ([{"prompt": "a", "answer": "b"}, {"prompt": "c"}], "1 of 2 rows have no answer"),
        ([{"prompt": "a", "answer": 2}], "row 0: .*expected texts"),
        ([{"prompt": "a", "group": "g"}, {"prompt": "c"}], "some rows have a group and some do not"),
        ([["a"]], "row 0 is list; expected an object with 'prompt'"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        prompts.load(jsonl(tmp_path / "p.jsonl", *rows), base=tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n{oops\n', "line 2 is not JSON"),
        ("p.jsonl", b"  \n", "the file is empty"),
        ("p.txt", b"\xff\xfe\x00", "cannot be read as UTF-8"),
        ("p.csv", b"a,b", "expected a .jsonl or .txt file, or module:function"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        prompts.load(name, base=tmp_path)


def test_a_file_that_is_not_there_or_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="no such file"):
        prompts.load("none.txt", base=tmp_path)
    name = jsonl(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "b"})
    monkeypatch.setattr(prompts, "MAX_ROWS", 1)
    with pytest.raises(InvalidInput, match="more than 1 rows"):
        prompts.load(name, base=tmp_path)
    monkeypatch.setattr(prompts, "MAX_FILE_BYTES", 3)
    with pytest.raises(InvalidInput, match="more than 3 bytes"):
        prompts.load(name, base=tmp_path)


def test_texts_for_perplexity(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one\n\ntwo", encoding="utf-8")
    assert prompts.load_texts("t.txt", base=tmp_path) == ("one\n\ntwo",)
    assert prompts.load_texts(jsonl(tmp_path / "t.jsonl", {"text": "a"}, {"text": "b"}), base=tmp_path) == ("a", "b")
    with pytest.raises(InvalidInput, match="row 0: text is empty"):
        prompts.load_texts(jsonl(tmp_path / "u.jsonl", {"text": ""}), base=tmp_path)


def some(*texts: str, **columns: str) -> PromptSet:
    return PromptSet(name="all", rows=tuple(Prompt(prompt=text, **columns) for text in texts))


def test_every_prompt_goes_to_one_use_whatever_its_place() -> None:
    texts = [f"prompt {number}" for number in range(200)]
    found = prompts.split(some(*texts), seed=0)[0]
    assert sorted(text for part in found.values() for text in part.prompts) == sorted(texts)
    assert {use: len(part.rows) for use, part in found.items()} == {"tune": 60, "certify": 100, "test": 40}
    shuffled = prompts.split(some(*reversed(texts)), seed=0)[0]
    assert {use: set(part.prompts) for use, part in found.items()} == {
        use: set(part.prompts) for use, part in shuffled.items()
    }
    assert set(prompts.split(some(*texts), seed=1)[0]["certify"].prompts) != set(found["certify"].prompts)


def test_equal_prompts_are_never_on_both_sides() -> None:
    found = prompts.split(some(*[f"p{number % 40}" for number in range(200)]), seed=0)[0]
    parts = [set(part.prompts) for part in found.values()]
    assert sum(len(part) for part in parts) == len(set().union(*parts))


def test_copies_of_a_prompt_count_once_and_those_that_repeat_by_nature_each() -> None:
    texts = [f"p{number % 40}" for number in range(200)]
    found, repeats = prompts.split(some(*texts), seed=0)
    assert {use: len(part) for use, part in found.items()} == {"tune": 12, "certify": 20, "test": 8}
    assert found["certify"].stands_for == 100
    assert repeats.words.startswith("200 rows, 40 distinct (one of them 5 times), taken for copies")
    natural, told = prompts.split(some(*texts), seed=0, repeats="natural")
    assert {use: len(part) for use, part in natural.items()} == {"tune": 60, "certify": 100, "test": 40}
    assert told.words.endswith("each a draw by itself")
    rows = tuple(Prompt(prompt="a", split=use) for use in ["tune", "certify", "test"])
    assert len(prompts.split(PromptSet(name="all", rows=rows), seed=0, repeats="natural")[0]["certify"]) == 1


def test_prompts_of_a_cluster_stay_together_and_one_in_two_splits_is_refused() -> None:
    rows = tuple(Prompt(prompt=f"p{number}", cluster=f"user {number % 40}") for number in range(200))
    found, repeats = prompts.split(PromptSet(name="all", rows=rows), seed=0)
    assert {use: part.units for use, part in found.items()} == {"tune": 12, "certify": 20, "test": 8}
    assert sum(len({row.cluster for row in part.rows}) for part in found.values()) == 40
    assert (repeats.clusters, repeats.words) == (40, "200 rows in 40 clusters by 'cluster', certified as wholes")
    apart = tuple(
        Prompt(prompt=text, cluster=cluster, split=use)
        for text, cluster, use in [("a", "x", "tune"), ("b", "y", "test"), ("c", "x", "certify")]
    )
    with pytest.raises(InvalidInput, match="row 2 of cluster 'x' is in split 'certify', and others of it in 'tune'"):
        prompts.split(PromptSet(name="all", rows=apart), seed=0)


def test_splits_that_the_rows_name() -> None:
    rows = tuple(Prompt(prompt=f"p{n}", split=use) for n, use in enumerate(["tune", "certify", "test", "certify"]))
    found = prompts.split(PromptSet(name="all", rows=rows), seed=0)[0]
    assert found["certify"].prompts == ("p1", "p3")


@pytest.mark.parametrize(
    ("uses", "message"),
    [
        (["tune", "certfy", "test"], "no split is called 'certfy'; did you mean 'certify'"),
        (["tune", "certify", "certify"], "no row has split 'test'"),
    ],
)
def test_splits_that_are_no_uses(uses: list[str], message: str) -> None:
    rows = tuple(Prompt(prompt=f"p{n}", split=use) for n, use in enumerate(uses))
    with pytest.raises(InvalidInput, match=message):
        prompts.split(PromptSet(name="all", rows=rows), seed=0)[0]


def test_one_prompt_in_two_splits_is_refused() -> None:
    rows = tuple(Prompt(prompt=text, split=use) for text, use in [("a", "tune"), ("b", "test"), ("a", "certify")])
    with pytest.raises(InvalidInput, match="row 2 is in split 'certify', and the same prompt in 'tune'"):
        prompts.split(PromptSet(name="all", rows=rows), seed=0)[0]


def test_too_few_prompts_for_every_use() -> None:
    with pytest.raises(InvalidInput, match="1 are too few to have some for"):
        prompts.split(some("a"), seed=0)[0]


def test_the_digest_is_of_everything() -> None:
    assert some("a", "b").digest == some("a", "b").digest
    assert len({some("a", "b").digest, some("b", "a").digest, some("a", "b", answer="x").digest}) == 3
