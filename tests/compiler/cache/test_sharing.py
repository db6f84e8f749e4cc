"""Compilations that share a cache, as real processes: one waits for the other and leaves its results alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from compiler.cache import steps
from compiler.cache.sharing import Users, is_free, locked
from compiler.cache.steps import StepCache
from penstock.artifact.layout import Layout

PROGRAM = """
import sys, time
from pathlib import Path
from compiler.cache.steps import StepCache

root, text, seconds, reuse = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4] == "reuse"

def produce(out, work):
    (work / "part").write_text(text)
    print("making", flush=True)
    time.sleep(seconds)
    (out / "result.txt").write_text((work / "part").read_text())
    return {"text": text}

found = StepCache(root, reuse=reuse)
step = found.run("greet", {}, produce, waiting=lambda words: print(words, flush=True))
print("cached" if step.was_cached else "made", step.facts["text"], flush=True)
sys.stdin.read()
print((step.directory / "result.txt").read_text(), flush=True)
"""


@contextmanager
def process(root: Path, text: str, *, seconds: float = 0.0, reuse: bool = True) -> Iterator[subprocess.Popen[str]]:
    """A compilation of one step; it keeps using what it has until its input ends."""
    command = [sys.executable, "-c", PROGRAM, str(root), text, str(seconds), "reuse" if reuse else "again"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def line(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    return running.stdout.readline().strip()


def ended(running: subprocess.Popen[str]) -> str:
    return running.communicate(timeout=30)[0].strip()


def write(text: str) -> steps.Produce:
    def produce(out: Path, work: Path) -> dict[str, str]:
        (out / "result.txt").write_text(text)
        return {"text": text}

    return produce


def test_a_step_that_another_process_makes_is_waited_for_and_found(tmp_path: Path) -> None:
    with process(tmp_path, "first", seconds=1.5) as first:
        assert line(first) == "making"
        with process(tmp_path, "second") as second:
            assert line(second) == f"process {first.pid} is making it; waiting"
            assert line(first) == "made first"
            assert line(second) == "cached first"
            assert (ended(first), ended(second)) == ("first", "first")


def test_a_process_that_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    with process(tmp_path, "first", seconds=60) as first:
        assert line(first) == "making"
        with process(tmp_path, "second") as second:
            assert "waiting" in line(second)
            first.send_signal(signal.SIGKILL)
            assert line(second) == "making"
            assert line(second) == "made second"


def test_what_another_process_uses_is_neither_evicted_nor_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "_RECENT_S", -1.0)
    with process(tmp_path, "theirs") as other:
        assert [line(other), line(other)] == ["making", "made theirs"]
        mine = StepCache(tmp_path, reuse=False).run("greet", {}, write("mine"))
        assert (mine.directory / "result.txt").read_text() == "mine"
        StepCache(tmp_path, max_bytes=1).run("other", {}, write("large"))
        assert ended(other) == "theirs"
    StepCache(tmp_path, max_bytes=1).run("another", {}, write("large"))
    assert [path.name for path in (tmp_path / "steps").glob("*/result.txt")] == ["result.txt"]  # the last one's


def test_an_equal_result_is_left_where_it_is(tmp_path: Path) -> None:
    first = StepCache(tmp_path).run("greet", {}, write("same"))
    inode = (first.directory / "result.txt").stat().st_ino
    again = StepCache(tmp_path, reuse=False).run("greet", {}, write("same"))
    assert (again.directory, again.was_cached) == (first.directory, False)
    assert (again.directory / "result.txt").stat().st_ino == inode
    assert not list(tmp_path.glob("making-*"))


def test_a_lock_that_was_tidied_away_while_it_was_waited_for_is_taken_anew(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locked(lock) as waited:
        assert not waited
        assert not is_free(lock)
        lock.unlink()
        with locked(lock) as again:  # another file, and another lock
            assert not again
    assert is_free(lock)


def test_notes_end_with_their_cache_and_those_of_the_dead_are_removed(tmp_path: Path) -> None:
    users, other = Users(tmp_path), Users(tmp_path)
    other.note("theirs")
    users.note("mine")
    assert users.in_use() == {"mine", "theirs"}
    assert users.of_others() == {"theirs"}
    del other
    assert users.in_use() == {"mine"}
    (tmp_path / "left").write_text("dead\n")
    assert users.in_use() == {"mine"}
    assert not (tmp_path / "left").exists()


def test_two_compilations_of_one_recipe_into_one_directory_at_once(workspace: Path, cache: Path) -> None:
    command = [sys.executable, "-m", "penstock", "compile", "recipe.toml", "-o", "out"]
    running = [
        subprocess.Popen(
            command, cwd=workspace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
        )
        for _ in range(2)
    ]
    said = [one.communicate(timeout=300) for one in running]
    assert [one.returncode for one in running] == [0, 0], said
    assert Layout(workspace / "out").verify() == []
    assert sum("nothing had changed" in out for out, _ in said) == 1  # one of them made it
