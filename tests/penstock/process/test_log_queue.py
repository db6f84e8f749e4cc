"""A queue of log lines over real pipes and files: nobody who logs ever waits, and what is missing is said."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from penstock.process.log_queue import QueuedStream
from tests.waiting import PATIENCE_S, wait_until

MAX_BYTES = 64 * 1024


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe. To close one, duplicate /dev/null onto it: the fixture closes both."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def queued(descriptor: int) -> QueuedStream:
    return QueuedStream(descriptor, max_bytes=MAX_BYTES, notice=lambda lines: f"missing {lines}\n")


def fill(pipe: tuple[int, int]) -> None:
    """Leave no room in the pipe, as a reader does that has stalled for a while."""
    os.write(pipe[1], b"-" * fcntl.fcntl(pipe[1], fcntl.F_SETPIPE_SZ, 4096))


def read_until(reader: int, last: str) -> str:
    text = ""
    while last not in text:
        text += os.read(reader, 1 << 16).decode()
    return text


def test_lines_arrive_whole_and_in_order(pipe: tuple[int, int]) -> None:
    stream = queued(pipe[1])
    for number in range(100):
        stream.write(f"line {number}\n")
    assert stream.drain(PATIENCE_S)
    assert os.read(pipe[0], 1 << 16).decode().splitlines() == [f"line {number}" for number in range(100)]
    assert stream.dropped == 0


def test_a_reader_that_stalls_stops_nobody_and_is_told_where_and_how_much_is_missing(pipe: tuple[int, int]) -> None:
    fill(pipe)
    stream = queued(pipe[1])
    written = 0
    while stream.dropped < 10:
        stream.write(f"line {written}\n")
        written += 1
    assert not stream.drain(0.0)
    text = read_until(pipe[0], "missing 10\n")
    assert stream.drain(PATIENCE_S)
    arrived = [int(number) for number in re.findall(r"line (\d+)", text)]
    assert arrived == list(range(written - 10))
    stream.write("one more\n")
    assert read_until(pipe[0], "one more\n") == "one more\n"


def test_the_notice_comes_before_what_is_logged_after_the_gap(pipe: tuple[int, int]) -> None:
    fill(pipe)
    stream = queued(pipe[1])
    while not stream.dropped:
        stream.write("x" * 1023 + "\n")
    seen = ""
    while seen.count("\n") < 40:  # of 58
        seen += os.read(pipe[0], 1024).decode()

    def is_taken() -> bool:
        refused = stream.dropped
        stream.write("after\n")
        return stream.dropped == refused

    wait_until("room", is_taken)
    seen += read_until(pipe[0], "after\n")
    (said,) = re.findall(r"missing (\d+)\nafter\n", seen)
    assert int(said) == stream.dropped


@pytest.mark.parametrize("kind", ["closed pipe", "/dev/full", "closed descriptor"])
def test_what_cannot_be_written_is_counted_and_raises_nothing(kind: str, pipe: tuple[int, int]) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY) if kind == "/dev/full" else os.dup(pipe[1])
    if kind == "closed pipe":
        os.dup2(null := os.open(os.devnull, os.O_RDONLY), pipe[0])
        os.close(null)
    elif kind == "closed descriptor":
        os.close(descriptor)
    stream = queued(descriptor)
    stream.write("one\n")
    stream.write("two\n")
    assert stream.drain(PATIENCE_S)
    assert stream.dropped == 2
    if kind != "closed descriptor":
        os.dup2(pipe[1], descriptor)
        if kind == "/dev/full":  # the disk has room again
            stream.write("three\n")
            assert read_until(pipe[0], "three\n") == "missing 2\nthree\n"
        os.close(descriptor)


def test_a_pipe_that_somebody_made_non_blocking_loses_nothing(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    stream = QueuedStream(pipe[1], max_bytes=1 << 24, notice=str)
    for number in range(20_000):
        stream.write(f"line {number}\n")
    assert read_until(pipe[0], "line 19999\n").count("\n") == 20_000
    assert stream.dropped == 0


def test_many_threads_lose_nothing_while_there_is_room(pipe: tuple[int, int]) -> None:
    stream = QueuedStream(pipe[1], max_bytes=1 << 24, notice=str)
    threads = [threading.Thread(target=lambda: [stream.write("line\n") for _ in range(1000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    text = ""
    while text.count("\n") < 4000:
        text += os.read(pipe[0], 1 << 16).decode()
    for thread in threads:
        thread.join()
    assert stream.drain(PATIENCE_S)
    assert text == "line\n" * 4000


PROCESS = """
import logging, os, sys
from penstock.process import telemetry
telemetry.setup_service_logging(telemetry.LogSettings(flush_s=0.1, max_waiting_bytes=65536))
log = logging.getLogger("room")
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", PROCESS + code], capture_output=True, text=True, timeout=PATIENCE_S)


def test_a_forked_child_logs_for_itself_and_repeats_nothing_of_its_parent() -> None:
    done = run(
        "telemetry.log(log, logging.INFO, 'parent')\n"
        "child = os.fork()\n"
        "telemetry.log(log, logging.INFO, 'child' if child == 0 else 'parent again')\n"
        "if child: os.waitpid(child, 0)\n"
    )
    assert done.returncode == 0, done.stderr
    assert sorted(line.split("room ")[1] for line in done.stderr.splitlines()) == ["child", "parent", "parent again"]


def test_the_last_lines_and_a_traceback_reach_a_reader_before_the_process_ends() -> None:
    done = run("telemetry.log(log, logging.INFO, 'last'); raise SystemError('a defect')")
    assert done.returncode == 1
    assert re.search(r"info room last\n(.*\n)*SystemError: a defect\n$", done.stderr)


def test_a_process_ends_although_nobody_reads_its_last_lines() -> None:
    reader, writer = os.pipe()
    code = "for _ in range(2000): telemetry.log(log, logging.INFO, 'x' * 100)\nraise SystemError('a defect')"
    done = subprocess.run([sys.executable, "-c", PROCESS + code], stderr=writer, timeout=PATIENCE_S)
    assert done.returncode == 1
    os.close(writer)
    os.close(reader)


def test_a_warning_of_a_library_waits_for_nobody_either() -> None:
    reader, writer = os.pipe()
    code = "import warnings\nfor n in range(5000): warnings.warn(f'{n:0100}')\nos._exit(7)"
    done = subprocess.run([sys.executable, "-c", PROCESS + code], stderr=writer, timeout=PATIENCE_S)
    assert done.returncode == 7
    os.close(writer)
    os.close(reader)
