"""The way up for one model version: what shares a call, what is given up, when it is shut and opened again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from edge_agent.serving.escalation_queue import CALLS_IN_FLIGHT, EscalationQueue
from edge_agent.serving.hosting import Hosted
from edge_agent.settings import EscalationSettings
from penstock.errors import DeadlineExceeded, Internal, InvalidInput, PenstockError, QueueFull, Unavailable
from penstock.wire.context import RequestContext
from penstock.wire.inference import InferRequest, InferResponse
from tests.edge_agent.datapath import Rows, data_path
from tests.waiting import until


class Held:
    """A cloud that answers when it is told to."""

    def __init__(self) -> None:
        self.requests: list[InferRequest] = []
        self.contexts: list[RequestContext] = []
        self.timeouts_s: list[float] = []
        self.gate = asyncio.Event()
        self.error: PenstockError | None = None
        self.is_back = False
        self.probes = 0

    async def infer(self, request: InferRequest, context: RequestContext) -> InferResponse:
        self.requests.append(request)
        self.contexts.append(context)
        self.timeouts_s.append(context.deadline - asyncio.get_running_loop().time())
        await self.gate.wait()
        x = request.inputs["x"]
        if (x == 13).any():
            raise InvalidInput("thirteen")
        if self.error is not None:
            raise self.error
        return InferResponse(model="toy", outputs={"logits": x * 2}, parameters={"variant": "sha256:v"})

    async def is_model_ready(self, model: str, version: str) -> bool:
        self.probes += 1
        return self.is_back

    @property
    def rows(self) -> list[int]:
        return [len(request.inputs["x"]) for request in self.requests]


@asynccontextmanager
async def way_up(
    tmp_path: Path, settings: EscalationSettings | None = None
) -> AsyncIterator[tuple[EscalationQueue, Held, Hosted]]:
    async with data_path(tmp_path) as path:
        cloud = Held()
        made = EscalationQueue(cloud, path.hosted, settings or EscalationSettings(breaker_open_s=0.01))
        try:
            yield made, cloud, path.hosted
        finally:
            await made.close()


def x(*values: float) -> dict[str, Rows]:
    return {"x": np.array([[value] * 3 for value in values], np.float32)}


def ask(made: EscalationQueue, *values: float, timeout_s: float = 5.0, **who: str) -> asyncio.Task[Rows]:
    now = asyncio.get_running_loop().time()
    context = RequestContext(arrived_at=now, deadline=now + timeout_s, **who)

    async def rows() -> Rows:
        answer = await made.ask(x(*values), len(values), context)
        assert answer.variant == "sha256:v"
        return np.asarray(answer.outputs["logits"][:, 0], np.float32)

    return asyncio.create_task(rows())


async def turn(times: int = 5) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def busy(made: EscalationQueue) -> list[asyncio.Task[Rows]]:
    """As many calls under way as there may be; rows of one turn of the loop would share one."""
    tasks = []
    for _ in range(CALLS_IN_FLIGHT):
        tasks.append(ask(made, 0))
        await turn()
    return tasks


async def test_the_first_rows_go_at_once_and_later_ones_gather_while_calls_are_under_way(tmp_path: Path) -> None:
    async with way_up(tmp_path) as (made, cloud, _):
        first = []
        for value in range(CALLS_IN_FLIGHT):
            first.append(ask(made, value))
            await turn()
        later = [ask(made, value, value) for value in range(10)]
        await turn()
        assert cloud.rows == [1] * CALLS_IN_FLIGHT
        cloud.gate.set()
        for value, task in enumerate(first):
            assert (await task).tolist() == [2 * value]
        for value, task in enumerate(later):
            assert (await task).tolist() == [2 * value] * 2
        assert cloud.rows == [1, 1, 1, 1, 20]


async def test_a_call_has_at_most_max_rows_and_a_request_is_not_split(tmp_path: Path) -> None:
    async with way_up(tmp_path, EscalationSettings(max_rows=4)) as (made, cloud, _):
        tasks = await busy(made)
        tasks += [ask(made, 1, 1, 1), ask(made, 2, 2), ask(made, *range(9))]
        await turn()
        cloud.gate.set()
        await asyncio.gather(*tasks)
        assert cloud.rows[CALLS_IN_FLIGHT:] == [3, 2, 9]


async def test_rows_wait_for_company_only_as_long_as_they_are_told_to(tmp_path: Path) -> None:
    async with way_up(tmp_path, EscalationSettings(max_delay_s=0.05)) as (made, cloud, _):
        cloud.gate.set()
        tasks = [ask(made, 1)]
        await turn()
        assert cloud.rows == []
        tasks.append(ask(made, 2))
        await asyncio.gather(*tasks)
        assert cloud.rows == [2]


async def test_one_poisoned_request_does_not_fail_the_others(tmp_path: Path) -> None:
    async with way_up(tmp_path) as (made, cloud, _):
        cloud.gate.set()
        results = await asyncio.gather(*(ask(made, value) for value in (1, 13, 3)), return_exceptions=True)
        assert cloud.rows[0] == 3
        assert isinstance(results[1], InvalidInput)
        assert [np.asarray(results[index]).tolist() for index in (0, 2)] == [[2.0], [6.0]]
        assert made.is_reachable  # refusing an input says nothing about being there


async def test_each_row_gives_up_at_its_own_deadline_and_the_call_goes_on_for_the_others(tmp_path: Path) -> None:
    async with way_up(tmp_path) as (made, cloud, _):
        blockers = await busy(made)
        hurried, patient = ask(made, 1, timeout_s=0.02), ask(made, 2)
        waiting = ask(made, 3, timeout_s=0.02)
        for task in (hurried, waiting):
            with pytest.raises(DeadlineExceeded):
                await task
        cloud.gate.set()
        assert (await patient).tolist() == [4.0]
        await asyncio.gather(*blockers)
        assert cloud.rows == [1, 1, 1, 1, 1]  # what had expired was never sent
        assert 4.0 < cloud.timeouts_s[-1] <= 5.0


async def test_the_queue_is_bounded(tmp_path: Path) -> None:
    async with way_up(tmp_path, EscalationSettings(max_queue_rows=3)) as (made, cloud, _):
        tasks = await busy(made)
        tasks.append(ask(made, 1, 2))
        await turn()
        assert made.free_rows == 1
        with pytest.raises(QueueFull, match="2 rows wait"):
            await ask(made, 3, 4)
        cloud.gate.set()
        await asyncio.gather(*tasks)
        assert made.free_rows == 3


async def test_a_caller_that_goes_away_is_taken_out_of_the_queue(tmp_path: Path) -> None:
    async with way_up(tmp_path) as (made, cloud, _):
        tasks = await busy(made)
        gone = ask(made, 7)
        await turn()
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        cloud.gate.set()
        await asyncio.gather(*tasks)
        await turn()
        assert cloud.rows == [1] * CALLS_IN_FLIGHT
        assert made.is_idle


async def test_failures_shut_the_way_up_and_the_background_opens_it_again(tmp_path: Path) -> None:
    async with way_up(tmp_path) as (made, cloud, _):
        cloud.gate.set()
        cloud.error = Unavailable("away")
        for failures in range(1, 4):
            with pytest.raises(Unavailable):
                await ask(made, 1)
            assert made.is_reachable is (failures < 3)
        await until("it is looked for", lambda: cloud.probes >= 3)
        assert not made.is_reachable
        assert len(cloud.requests) == 3
        cloud.error, cloud.is_back = None, True
        await until("it is found", lambda: made.is_reachable)
        assert (await ask(made, 1)).tolist() == [2.0]
        await until("nothing is left running", lambda: made.is_idle)


async def test_a_success_in_between_starts_the_count_afresh(tmp_path: Path) -> None:
    async with way_up(tmp_path) as (made, cloud, _):
        cloud.gate.set()
        for error in (Unavailable("away"), Internal("broken"), None, Unavailable("away"), Unavailable("away")):
            cloud.error = error
            await asyncio.gather(ask(made, 1), return_exceptions=True)
        assert made.is_reachable


async def test_round_trips_are_measured_from_calls_that_ended(tmp_path: Path) -> None:
    async with way_up(tmp_path) as (made, cloud, _):
        assert made.p95_s() == 0.0
        cloud.gate.set()
        for _ in range(5):
            await ask(made, 1)
        assert 0.0 < made.p95_s() < 5.0


async def test_closing_settles_everything(tmp_path: Path) -> None:
    async with way_up(tmp_path) as (made, _, _):
        tasks = [ask(made, value) for value in range(CALLS_IN_FLIGHT + 2)]
        await turn()
        await made.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, Unavailable) for result in results)


async def test_a_hurried_callers_time_out_says_nothing_about_whether_the_cloud_is_there(tmp_path: Path) -> None:
    async with way_up(tmp_path) as (made, cloud, _):
        cloud.error = DeadlineExceeded("late")
        cloud.gate.set()
        for _ in range(6):
            await asyncio.gather(ask(made, 1, timeout_s=0.5), return_exceptions=True)
        assert made.is_reachable
        assert made.p95_s() >= 0.49  # but it is known how long is too short
        for _ in range(3):
            await asyncio.gather(ask(made, 1, timeout_s=2.0), return_exceptions=True)
        assert not made.is_reachable


async def test_nobody_looks_for_the_cloud_on_behalf_of_a_retired_version(tmp_path: Path) -> None:
    async with way_up(tmp_path) as (made, cloud, hosted):
        cloud.gate.set()
        cloud.error = Unavailable("away")
        for _ in range(3):
            await asyncio.gather(ask(made, 1), return_exceptions=True)
        await until("it is looked for", lambda: cloud.probes >= 1)
        hosted.is_retired = True
        await until("nobody looks any more", lambda: made.is_idle)


async def test_a_call_of_several_requests_goes_under_the_id_of_the_first(tmp_path: Path) -> None:
    async with way_up(tmp_path) as (made, cloud, _):
        blockers = [ask(made, 0) for _ in range(CALLS_IN_FLIGHT)]
        await turn()
        joined = [ask(made, 1, request_id="r-1"), ask(made, 2, request_id="r-2", timeout_s=7.0)]
        await turn()
        cloud.gate.set()
        await asyncio.gather(*blockers, *joined)
        assert (cloud.rows[-1], cloud.contexts[-1].request_id) == (2, "r-1")
        assert cloud.timeouts_s[-1] > 5.0  # as long as the most patient one waits
