"""Models in processes of their own, with what happens to processes: kills, hangs, stops, and the ends of parents."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import uvloop

from penstock.errors import ArtifactError, DeadlineExceeded, Internal, InvalidInput, Unavailable
from penstock.hosting.process_replica import life as life_module
from penstock.hosting.process_replica.replica import ProcessReplica
from penstock.hosting.process_replica.worker import Arrivals
from penstock.hosting.replica import Chunk
from penstock.hosting.replica_queue import ReplicaQueue
from penstock.hosting.rows import Tensors
from tests.penstock.hosting.process_replica.workers import scripted_replica
from tests.penstock.hosting.rig import outcome, rows
from tests.waiting import PATIENCE_S, until, wait_until

DIE, HANG, SLOW = -1.0, -2.0, -3.0
Start = Callable[..., Awaitable[ProcessReplica]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    made: list[ProcessReplica] = []

    async def begin(**more: Any) -> ProcessReplica:
        replica = scripted_replica(tmp_path, **{"die_on": DIE, "hang_on": HANG, "slow_on": SLOW, **more})
        made.append(replica)
        await replica.start()
        return replica

    yield begin
    for replica in made:
        await replica.close()


def chunk(*values: float, within_s: float | None = None) -> Chunk:
    made = Chunk(inputs={"x": rows(*values)}, rows=len(values))
    if within_s is not None:
        made.deadline = asyncio.get_running_loop().time() + within_s
    return made


def column(answer: Any) -> list[float]:
    return [float(value) for value in answer["y"][:, 0]]


def pid_of(replica: ProcessReplica) -> int:
    assert replica.pid is not None
    return replica.pid


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


async def test_a_kill_loses_nothing_and_a_request_that_kills_is_refused_alone(start: Start) -> None:
    replica = await start(slow_s=0.3, settings={"max_restarts": 20})
    queue = ReplicaQueue(replica, max_queue_rows=1000)
    values = [SLOW, *range(1, 12)]
    answers = [asyncio.create_task(queue.infer(chunk(value))) for value in values]
    await until("batches under way", lambda: queue.running_rows == 8)
    os.kill(pid_of(replica), signal.SIGKILL)
    assert [column(await answer) for answer in answers] == [[2 * value] for value in values]
    assert (replica.counts().crashes, replica.counts().retried) == (1, 1)

    mixed = [asyncio.create_task(outcome(queue.infer(chunk(value)))) for value in (1, DIE, 3, 4, 5)]
    results = [await one for one in mixed]
    assert isinstance(results[1], Internal)
    assert "two processes of the model died of this request, the last one: exit status 70" in str(results[1])
    assert [column(results[place]) for place in (0, 2, 3, 4)] == [[2], [6], [8], [10]]
    assert replica.counts().crashes == 3, "one that is in company, one alone"
    await queue.close(Unavailable("stopped"))


async def test_a_batch_ahead_had_not_begun_and_is_not_taken_apart(start: Start) -> None:
    replica = await start(slow_s=0.5)
    life = replica._lives.current
    assert life is not None
    first, second = (asyncio.create_task(replica.run([chunk(n), chunk(n)])) for n in (SLOW, 5))
    await until("both under way", lambda: life.unanswered == 2)
    os.kill(pid_of(replica), signal.SIGKILL)
    assert [column(one) for one in await first] == [[2 * SLOW]] * 2
    assert [column(one) for one in await second] == [[10], [10]]
    assert replica.counts().retried == 1


@pytest.mark.parametrize("how", ["stopped", "hung"])
async def test_a_worker_that_does_not_move_is_killed_and_what_waited_is_answered(start: Start, how: str) -> None:
    replica = await start(hang_s=0.5)
    queue = ReplicaQueue(replica, max_queue_rows=100)
    pid = pid_of(replica)
    if how == "stopped":
        os.kill(pid, signal.SIGSTOP)
        assert column(await queue.infer(chunk(1))) == [2]
    else:
        hanging = asyncio.create_task(outcome(queue.infer(chunk(HANG))))
        await until("under way", lambda: queue.running_rows)
        assert column(await queue.infer(chunk(1))) == [2]
        error = await hanging
        assert isinstance(error, Internal)
        assert "no step for 0.5 s" in error.message
    assert replica.counts().hangs == (1 if how == "stopped" else 2)
    assert replica.counts().crashes == 0
    assert not is_there(pid)
    assert replica.health().is_well
    await queue.close(Unavailable("stopped"))


async def test_an_idle_worker_that_hangs_is_found_before_anybody_asks(start: Start) -> None:
    replica = await start(hang_s=0.5, settings={"idle_ping_s": 0.1})
    await asyncio.sleep(0.3)  # pinged and well
    assert replica.counts().hangs == 0
    os.kill(pid_of(replica), signal.SIGSTOP)
    await until("found", lambda: replica.counts().hangs == 1)
    await until("well again", lambda: replica.health().is_well)


async def test_what_is_late_when_its_run_begins_is_not_run(start: Start) -> None:
    replica = await start(slow_s=0.3)
    ahead = asyncio.create_task(replica.run([chunk(SLOW)]))
    await asyncio.sleep(0)
    late, in_time = await replica.run([chunk(HANG, within_s=0.15), chunk(3, within_s=PATIENCE_S)])
    assert isinstance(late, DeadlineExceeded), "it lay in the socket while the other one ran"
    assert column(in_time) == [6]
    assert column((await ahead)[0]) == [2 * SLOW]
    (error,) = await replica.run([chunk(DIE, within_s=-1.0)])
    assert isinstance(error, DeadlineExceeded)
    assert replica.counts().crashes == 0


def test_a_batch_that_lay_in_the_socket_arrived_when_its_parent_says() -> None:
    arrivals = Arrivals()
    assert arrivals.of(1000.0, now=50.0, was_waited_for=True) == 50.0
    assert arrivals.of(0.25, now=60.0, was_waited_for=False) == 50.25
    assert arrivals.of(0.25, now=60.0, was_waited_for=False) == 50.5
    assert arrivals.of(100.0, now=60.0, was_waited_for=False) == 60.0, "never later than it was read"
    assert arrivals.of(1.0, now=70.0, was_waited_for=True) == 70.0


async def test_repeated_crashes_take_it_out_and_requests_are_told_when_to_come_back(
    start: Start, tmp_path: Path
) -> None:
    replica = await start(settings={"max_restarts": 1, "slow_restart_s": 0.2})
    told: list[bool] = []
    replica.on_change(lambda: told.append(replica.health().is_well))
    script = (tmp_path / "script.json").rename(tmp_path / "away.json")
    os.kill(pid_of(replica), signal.SIGKILL)
    await until("taken out", lambda: "in a row" in replica.health().why)
    assert not replica.health().is_brief
    (error,) = await replica.run([chunk(1)])
    assert isinstance(error, Unavailable)
    assert "script.json" in error.message
    script.rename(tmp_path / "script.json")
    await until("well again", lambda: replica.health().is_well)
    assert told[-1]
    assert False in told
    assert column((await replica.run([chunk(1)]))[0]) == [2]


async def test_who_waits_for_a_worker_is_answered_at_the_deadline(start: Start, tmp_path: Path) -> None:
    replica = await start(settings={"backoff_base_s": 3.0, "backoff_max_s": 3.0, "restart_wait_s": 60.0})
    (tmp_path / "script.json").unlink()
    os.kill(pid_of(replica), signal.SIGKILL)
    await until("noticed", lambda: not replica.health().is_well)
    (error,) = await replica.run([chunk(1, within_s=0.05)])
    assert isinstance(error, DeadlineExceeded)


async def test_a_model_that_cannot_be_loaded_says_why_at_once(
    start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArtifactError, match="not what the spec describes"):
        await _with_other_weights(tmp_path)
    assert "model not loaded" in capfd.readouterr().err, "its log is where ours is"
    with pytest.raises(Unavailable, match="ended while it loaded: exit status 70"):
        await start(die_on=0.0)
    with pytest.raises(Unavailable, match=r"not ready within 0\.6 s"):
        await start(hang_on=0.0, settings={"start_timeout_s": 0.6})


async def _with_other_weights(directory: Path) -> None:
    replica = scripted_replica(directory, width=4)
    scripted_replica(directory, width=5)
    await replica.start()


async def test_its_errors_are_those_of_the_engine(start: Start) -> None:
    replica = await start()
    for wrong, kind in ((chunk(float("nan")), Internal), (chunk(1), InvalidInput)):
        wrong.outputs = None if kind is Internal else ("z",)
        assert isinstance(await outcome(replica.run([wrong])), kind)
    assert column((await replica.run([chunk(1)]))[0]) == [2]
    assert replica.counts().crashes == 0


async def test_large_batches_go_through_memory_and_answers_outlive_the_next_one(start: Start) -> None:
    replica = await start(width=-1, max_batch=8)
    wide = [np.full((n + 1, 100_000), n + 1, np.float32) for n in range(4)]
    answers = await replica.run([Chunk(inputs={"x": x}, rows=len(x)) for x in wide])
    small = await replica.run([Chunk(inputs={"x": np.ones((1, 2), np.float32)}, rows=1)])
    await replica.run([Chunk(inputs={"x": wide[3] * 9}, rows=4)])
    for x, answer in zip(wide, answers, strict=True):
        assert not isinstance(answer, Exception)
        np.testing.assert_array_equal(answer["y"], 2 * x)
    assert not isinstance(small[0], Exception)
    assert small[0]["y"].tolist() == [[2, 2]]


async def test_without_memory_to_share_everything_goes_in_frames(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life_module, "can_share", lambda: False)
    replica = await start(width=-1)
    x = np.arange(300_000, dtype=np.float32).reshape(1, -1)
    (answer,) = await replica.run([Chunk(inputs={"x": x}, rows=1)])
    assert not isinstance(answer, Exception)
    np.testing.assert_array_equal(answer["y"], 2 * x)


async def test_unloading_ends_the_process_also_one_that_does_not_listen(start: Start) -> None:
    before = _open_files()
    for is_stopped in (False, True):
        replica = await start(settings={"exit_s": 0.1, "nice": 3})
        pid = pid_of(replica)
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 3)
        assert psutil.Process(pid).environ()["OMP_NUM_THREADS"] == "1"
        assert os.getpgid(pid) != os.getpgid(0)
        os.kill(pid, signal.SIGTERM)  # a service manager's, to all: its parent drains
        assert column((await replica.run([chunk(1)]))[0]) == [2]
        if is_stopped:
            os.kill(pid, signal.SIGSTOP)
        await replica.close()
        assert not is_there(pid)
        assert isinstance(await outcome(replica.run([chunk(1)])), Unavailable)
    assert _open_files() == before


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


PARENT = """
import asyncio, sys
from pathlib import Path
from penstock.hosting.replica import Chunk
from tests.penstock.hosting.process_replica.workers import scripted_replica
from tests.penstock.hosting.rig import rows

async def main():
    replica = scripted_replica(Path(sys.argv[1]), hang_on=-2.0)
    await replica.start()
    running = asyncio.ensure_future(replica.run([Chunk(inputs={"x": rows(-2.0)}, rows=1)]))
    await asyncio.sleep(0.2)
    print(replica.pid, flush=True)
    await running

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a worker in a hung run is ended by a signal that Linux has")
def test_no_orphan_is_left_when_the_parent_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert is_there(worker)
        assert Path(f"/proc/{worker}/oom_score_adj").read_text().strip() == "500", "memory is taken from it first"
        parent.kill()
    wait_until("no orphan", lambda: not is_there(worker))


def test_it_runs_on_the_loop_that_servers_use(tmp_path: Path) -> None:
    async def test() -> list[Tensors | Any]:
        replica = scripted_replica(tmp_path)
        await replica.start()
        os.kill(pid_of(replica), signal.SIGKILL)
        answers = await replica.run([chunk(1), chunk(2, 3)])
        await replica.close()
        return list(answers)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert [column(one) for one in runner.run(test())] == [[2], [4, 6]]
