"""A teacher's answers on disk: asked once, found by content, mended, bounded, and picked up after an interruption."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from compiler.distill.cache import AnswerCache, Answered, inputs_digest
from penstock.errors import CompileError, InvalidInput, StorageError, Unavailable
from penstock.wire.tensors import Array
from tests.compiler.distill.conftest import FakeTeacher

X: Array = np.random.default_rng(1).normal(size=(35, 4)).astype(np.float32)


class Asker:
    """One cache, asked again and again."""

    def __init__(self, root: Path, *, max_bytes: int = 10**9) -> None:
        self.root = root / "answers"
        self.cache = AnswerCache(self.root, max_bytes=max_bytes)
        self.out = root / "teacher.npy"
        self.shares: list[float] = []

    def ask(self, teacher: FakeTeacher, x: Array = X) -> Answered:
        return self.cache.answers(teacher, {"x": x}, self.out, lambda share, note: self.shares.append(share))

    def chunks(self) -> list[Path]:
        return sorted(self.root.glob("*/chunk-*"))


@pytest.fixture
def asker(tmp_path: Path) -> Asker:
    return Asker(tmp_path)


def test_each_row_is_asked_once(asker: Asker, linear_teacher: FakeTeacher) -> None:
    first = asker.ask(linear_teacher)
    assert linear_teacher.asked == [10, 10, 10, 5]
    assert asker.shares == pytest.approx([10 / 35, 20 / 35, 30 / 35, 1.0])
    again = asker.ask(linear_teacher)
    assert linear_teacher.asked == [10, 10, 10, 5]
    assert (first.asked, again.asked) == (35, 0)
    assert first.digest == again.digest
    assert again.classes == 3
    np.testing.assert_array_equal(np.load(asker.out), X @ linear_teacher.weight)


def test_other_rows_and_other_teachers_are_asked_afresh(asker: Asker, linear_teacher: FakeTeacher) -> None:
    asker.ask(linear_teacher)
    assert asker.ask(linear_teacher, X + 1).asked == 35
    assert asker.ask(linear_teacher, X[::-1]).asked == 35
    other = FakeTeacher(weight=linear_teacher.weight * 2, fingerprint="sha256:other")
    asker.ask(other)
    np.testing.assert_array_equal(np.load(asker.out), X @ other.weight)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "of another place"])
def test_a_damaged_chunk_is_asked_for_again(asker: Asker, linear_teacher: FakeTeacher, damage: str) -> None:
    whole = asker.ask(linear_teacher)
    chunk, other = asker.chunks()[1:3]
    data = chunk.read_bytes()
    damaged = {
        "flipped": data[:-1] + bytes([data[-1] ^ 1]),
        "truncated": data[:-4],
        "empty": b"",
        "of another place": other.read_bytes(),
    }
    chunk.write_bytes(damaged[damage])
    mended = asker.ask(linear_teacher)
    assert mended.digest == whole.digest
    assert mended.asked == 10
    assert mended.notes == ("kept answers to rows 10 to 19 were damaged; they are asked for again",)


def test_a_teacher_that_goes_away_is_asked_for_the_rest(asker: Asker, linear_teacher: FakeTeacher) -> None:
    linear_teacher.fail = lambda calls: Unavailable("the core is gone.", retry_after_s=1.0) if calls == 2 else None
    with pytest.raises(Unavailable, match="the core is gone. 20 of 35 rows are answered and kept: run") as gone:
        asker.ask(linear_teacher)
    assert gone.value.retry_after_s == 1.0
    assert not asker.out.exists()
    linear_teacher.fail = lambda calls: None
    assert asker.ask(linear_teacher).asked == 15


def test_a_name_that_moved_to_another_model_is_noticed(asker: Asker, linear_teacher: FakeTeacher) -> None:
    linear_teacher.is_pinned = False
    asker.ask(linear_teacher)
    linear_teacher.weight = linear_teacher.weight + 1e-6
    assert asker.ask(linear_teacher).asked == 0, "the last bits differ between machines and batch sizes"
    linear_teacher.weight = linear_teacher.weight * 1.1
    moved = asker.ask(linear_teacher)
    assert moved.asked == 35
    assert "answers otherwise than before" in moved.notes[0]
    np.testing.assert_array_equal(np.load(asker.out), X @ linear_teacher.weight)


def test_kept_answers_serve_without_the_core(asker: Asker, linear_teacher: FakeTeacher) -> None:
    linear_teacher.is_pinned = False
    asker.ask(linear_teacher)
    linear_teacher.fail = lambda calls: Unavailable("nobody there")
    alone = asker.ask(linear_teacher)
    assert alone.asked == 0
    assert alone.notes == ("the teacher cannot be reached; its kept answers are used as they are",)
    asker.chunks()[2].unlink()
    with pytest.raises(Unavailable):
        asker.ask(linear_teacher)


def test_the_least_recently_used_go_first(tmp_path: Path, linear_teacher: FakeTeacher) -> None:
    asker = Asker(tmp_path, max_bytes=1700)  # room for two of these, not for three
    for index in range(3):
        asker.ask(linear_teacher, X + index)
        for entry in asker.root.iterdir():
            os.utime(entry, (0, os.stat(entry).st_mtime - 10))
    assert len(list(asker.root.iterdir())) == 2
    assert asker.ask(linear_teacher, X + 2).asked == 0
    assert asker.ask(linear_teacher, X).asked == 35


def test_one_entry_larger_than_the_limit_still_serves(tmp_path: Path, linear_teacher: FakeTeacher) -> None:
    asker = Asker(tmp_path, max_bytes=1)
    assert asker.ask(linear_teacher).asked == 35
    assert asker.ask(linear_teacher).asked == 0


def test_answers_that_are_none_are_refused(asker: Asker, linear_teacher: FakeTeacher) -> None:
    linear_teacher.weight = linear_teacher.weight[:, :1]
    with pytest.raises(CompileError, match="two classes or more"):
        asker.ask(linear_teacher)
    linear_teacher.weight = np.full((4, 3), np.nan, dtype=np.float32)
    with pytest.raises(CompileError, match="10 of 10 rows with NaN or infinite values, first row 0"):
        asker.ask(linear_teacher)
    assert asker.chunks() == []
    with pytest.raises(InvalidInput, match="no rows"):
        asker.ask(linear_teacher, X[:0])


def test_a_disk_that_says_no_is_a_storage_error(asker: Asker, linear_teacher: FakeTeacher) -> None:
    asker.root.write_text("a file where the directory should be")
    with pytest.raises(StorageError):
        asker.ask(linear_teacher)


def test_digests_tell_names_types_shapes_and_values_apart() -> None:
    variants: list[dict[str, Array]] = [
        {"x": X},
        {"y": X},
        {"x": X.astype(np.float64)},
        {"x": X.reshape(4, 35)},
        {"x": X[::-1]},
        {"x": X, "y": X},
    ]
    assert len({inputs_digest(inputs) for inputs in variants}) == len(variants)
    assert inputs_digest({"x": X, "y": X * 2}) == inputs_digest({"y": X * 2, "x": np.asfortranarray(X)})
