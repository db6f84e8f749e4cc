"""Steps kept by content: done once, made again when damaged, never half there, and bounded."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time

import pytest

from compiler.cache import steps
from compiler.cache.steps import StepCache
from penstock.errors import StorageError


def write(text: str):
    def produce(out, work):
        (out / "result.txt").write_text(text)
        return {"length": len(text)}

    return produce


def test_an_unchanged_step_is_done_once(tmp_path):
    made = []

    def produce(out, work):
        made.append(out)
        return write("hello")(out, work)

    first = StepCache(tmp_path).run("greet", {"name": "x"}, produce)
    second = StepCache(tmp_path).run("greet", {"name": "x"}, produce)
    assert len(made) == 1
    assert (first.was_cached, second.was_cached) == (False, True)
    assert second.facts == {"length": 5}
    assert (second.directory / "result.txt").read_text() == "hello"
    assert first.content == second.content


@pytest.mark.parametrize(("step", "key"), [("greet", {"name": "y"}), ("part", {"name": "x"}), ("greet", {})])
def test_another_key_or_step_is_another_result(tmp_path, step, key):
    cache = StepCache(tmp_path)
    cache.run("greet", {"name": "x"}, write("hello"))
    assert not cache.run(step, key, write("bye")).was_cached


def test_no_reuse_makes_a_step_again_once(tmp_path):
    StepCache(tmp_path).run("greet", {}, write("old"))
    cache = StepCache(tmp_path, reuse=False)
    assert not cache.run("greet", {}, write("new")).was_cached
    again = cache.run("greet", {}, write("never"))
    assert again.was_cached
    assert (again.directory / "result.txt").read_text() == "new"


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "record"])
def test_a_damaged_result_is_noticed_and_made_again(tmp_path, damage):
    cache = StepCache(tmp_path)
    file = cache.run("greet", {}, write("hello")).directory / "result.txt"
    if damage == "flip":
        file.write_text("hellO")
    elif damage == "truncate":
        file.write_text("h")
    elif damage == "remove":
        file.unlink()
    else:
        (file.parent / steps.ENTRY_FILE).write_text("{")
    again = StepCache(tmp_path).run("greet", {}, write("hello"))
    assert not again.was_cached
    assert "damaged" in again.note
    assert (again.directory / "result.txt").read_text() == "hello"


def test_a_step_that_fails_leaves_nothing_but_its_work(tmp_path):
    def produce(out, work):
        (out / "half.txt").write_text("half")
        (work / "checkpoint").write_text("epoch 3")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        StepCache(tmp_path).run("train", {}, produce)
    assert not list((tmp_path / "steps").iterdir())
    assert not list(tmp_path.glob("making-*"))
    seen = []

    def resume(out, work):
        seen.append((work / "checkpoint").read_text())
        return {}

    StepCache(tmp_path).run("train", {}, resume)
    assert seen == ["epoch 3"]
    assert not list((tmp_path / "work").iterdir())  # done: nothing to resume


def test_a_full_disk_is_an_error_of_storage_and_leaves_nothing(tmp_path):
    def produce(out, work):
        (out / "half.txt").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="step big"):
        StepCache(tmp_path).run("big", {}, produce)
    assert not list(tmp_path.glob("making-*"))


def test_a_killed_step_leaves_no_result_and_is_made_the_next_time(tmp_path):
    program = (
        "import os, signal; from pathlib import Path; from compiler.cache.steps import StepCache\n"
        "def produce(out, work):\n"
        "    (out / 'half.txt').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        f"StepCache(Path({str(tmp_path)!r})).run('train', {{}}, produce)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -9
    again = StepCache(tmp_path).run("train", {}, write("whole"))
    assert not again.was_cached
    assert sorted(path.name for path in again.directory.iterdir()) == ["result.txt", steps.ENTRY_FILE]


def test_the_least_recently_used_results_go_first(tmp_path):
    cache = StepCache(tmp_path, max_bytes=2500)
    old = time.time() - 7200
    for number in range(3):
        directory = cache.run("greet", {"n": number}, write("x" * 1000)).directory
        os.utime(directory / steps.ENTRY_FILE, (old + number, old + number))
    cache = StepCache(tmp_path, max_bytes=2500)
    cache.run("greet", {"n": 9}, write("y" * 1000))
    assert [cache.run("greet", {"n": n}, write("x" * 1000)).was_cached for n in (9, 2, 0)] == [True, True, False]


def test_everything_is_looked_at_once_where_there_is_room(tmp_path, monkeypatch):
    """After each of twenty steps it took a second of the processor beside a cache that had grown."""
    looks = []
    evict = steps.evict
    monkeypatch.setattr(
        steps, "evict", lambda entries, *rest, **named: looks.append(1) or evict(entries, *rest, **named)
    )
    cache = StepCache(tmp_path, max_bytes=100_000)
    for number in range(5):
        cache.run("greet", {"n": number}, write("x" * 1000))
    assert len(looks) == 1
    cache.run("greet", {"n": 9}, write("x" * 100_000))  # this may be more than there is room for
    assert len(looks) == 2


def test_results_that_this_compilation_used_stay_however_long_a_later_step_takes(tmp_path):
    cache = StepCache(tmp_path, max_bytes=2500)
    old = time.time() - 7200
    used = [cache.run("greet", {"n": number}, write("x" * 1000)).directory for number in range(3)]
    for directory in used:
        os.utime(directory / steps.ENTRY_FILE, (old, old))
    cache.run("greet", {"n": 9}, write("y" * 1000))
    assert all((directory / "result.txt").exists() for directory in used)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({"PENSTOCK_CACHE": "/a"}, "/a/compile"), ({"XDG_CACHE_HOME": "/b"}, "/b/penstock/compile")],
)
def test_the_cache_is_where_the_environment_says(environment, expected):
    assert str(steps.default_root(environment)) == expected
