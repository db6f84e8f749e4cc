"""Loading, proving and switching models."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_agent.policy.cascade import CascadeMode
from edge_agent.serving.counts import Outcomes
from edge_agent.serving.hosting import Hosting
from edge_agent.serving.load_plan import LoadPlan
from penstock.artifact import golden
from penstock.artifact.golden import Golden
from penstock.errors import ArtifactError, NotFound, Unavailable
from penstock.process.telemetry import LogSettings
from penstock.wire.outcomes import OutcomeCounts
from tests.edge_agent.datapath import (
    DIGEST,
    MODEL,
    SURE,
    UNSURE,
    certificate,
    data_path,
    load_plan,
    rows,
    running_cloud,
    text_plan,
)
from tests.language import layout_without_engine
from tests.waiting import until

X = rows(SURE, UNSURE)


def vectors(outputs: np.ndarray) -> bytes:  # type: ignore[type-arg]
    return golden.encode(Golden(inputs={"x": X}, outputs={"logits": outputs}))


def hosting() -> Hosting:
    return Hosting(Outcomes(now=lambda: 0.0), drain_s=0.05)


async def test_a_model_that_reproduces_its_golden_vectors_may_answer(tmp_path: Path) -> None:
    house = hosting()
    hosted = await house.prepare(load_plan(tmp_path, certified=certificate(), golden=vectors(X + np.float32(5e-4))))
    assert house.models() == ()  # prepared is not active
    assert house.activate(hosted) is None
    assert house.models() == (MODEL,)
    assert house.get(MODEL) is hosted
    assert hosted.mode is CascadeMode.CASCADE
    assert hosted.plan.files.golden is None  # a device does not keep these bytes in memory
    await house.close()


async def test_a_model_that_does_not_prove_itself_is_refused_and_unknown_afterwards(tmp_path: Path) -> None:
    house = hosting()
    with pytest.raises(ArtifactError, match="off by 0.01"):
        await house.prepare(load_plan(tmp_path, certified=None, golden=vectors(X + np.float32(0.01))))
    with pytest.raises(NotFound, match="runs no model yet"):
        house.get(MODEL)


async def test_a_switch_is_atomic_and_the_old_one_finishes_what_it_has(tmp_path: Path) -> None:
    async with running_cloud() as cloud, data_path(tmp_path, cloud.target) as path:
        cloud.gate.clear()
        request = asyncio.create_task(path.infer(rows(UNSURE)))
        await until("the request is in it", lambda: len(cloud.calls) == 1)
        newer = await path.hosting.prepare(_second(tmp_path))
        assert path.hosting.activate(newer) is path.hosted
        assert (await path.infer(rows(SURE))).version == "v2"
        retiring = asyncio.create_task(path.hosting.retire(path.hosted))
        await asyncio.sleep(0)
        assert not retiring.done()
        cloud.gate.set()
        assert (await request).version == "v1"
        await retiring
        with pytest.raises(Unavailable, match="being replaced"):
            await path.hosted.arrays.queue.infer({"x": rows(SURE)}, 1, None, 0)
        assert path.hosting.models() == (MODEL,)
        assert path.hosted.counts == OutcomeCounts(escalated=1)
        assert newer.counts == OutcomeCounts(kept=1)


def _second(tmp_path: Path) -> LoadPlan:
    return load_plan(tmp_path, certified=certificate(), version="v2", digest="sha256:" + "b" * 64)


async def test_a_model_stays_for_a_request_that_holds_it_also_between_two_of_its_answers(tmp_path: Path) -> None:
    async with data_path(tmp_path) as path:
        with path.dataplane.admit(path.context(), MODEL, "", 0) as ticket:
            for _ in range(2):
                ticket.hold(path.hosted)
            assert path.hosted.in_flight == 1
            retiring = asyncio.create_task(path.hosting.retire(path.hosted))
            await asyncio.sleep(0)
            await path.hosted.arrays.queue.infer({"x": rows(SURE)}, 1)
            assert not retiring.done()
        await retiring
        assert path.hosted.in_flight == 0


async def test_retiring_does_not_wait_for_ever(tmp_path: Path) -> None:
    house = hosting()
    hosted = await house.prepare(load_plan(tmp_path, certified=None))
    house.activate(hosted)
    hosted.in_flight = 1
    hosted.idle.clear()
    await house.retire(hosted)
    assert house.models() == ()


async def test_a_model_that_is_loading_is_unavailable_and_an_unknown_one_is_not_found(tmp_path: Path) -> None:
    house = hosting()
    task = asyncio.create_task(house.prepare(load_plan(tmp_path, certified=None)))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="'toy' is loading") as caught:
        house.get(MODEL)
    assert caught.value.retry_after_s
    with pytest.raises(NotFound, match="no model named 'cat'; this device runs no model yet"):
        house.get("cat")
    house.activate(await task)
    with pytest.raises(NotFound, match="no model named 'cat'; this device runs toy"):
        house.get("cat")
    assert house.get(MODEL, DIGEST[:19]).plan.version == "v1"
    with pytest.raises(NotFound, match="has no version"):
        house.get(MODEL, DIGEST[:18])  # shorter than the shortest prefix that names a version
    await house.close()


async def test_a_model_that_ran_before_a_restart_is_loading_until_it_has_been_tried(tmp_path: Path) -> None:
    house = hosting()
    house.expect([MODEL])
    with pytest.raises(Unavailable, match="'toy' is loading"):
        house.get(MODEL)
    house.activate(await house.prepare(load_plan(tmp_path, certified=None)))
    assert house.get(MODEL).plan.version == "v1"
    await house.close()


async def test_a_score_that_this_agent_does_not_know_is_a_certificate_that_is_not_used(tmp_path: Path) -> None:
    async with data_path(tmp_path, certified=certificate(score="oracle")) as path:
        assert path.hosted.mode is CascadeMode.ESCALATE_ALL
        assert "'oracle' is not known here; known: max_prob" in path.hosted.mode_why


async def test_engine_failures_are_counted(tmp_path: Path) -> None:
    async with data_path(tmp_path) as path:
        path.hosted.arrays.engine.close()
        with pytest.raises(Exception, match="closed"):
            await path.infer(rows(SURE))
        assert path.hosted.failures == 1
        assert path.hosted.counts == OutcomeCounts(failed=1)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
async def test_a_row_without_numbers_is_never_kept_however_sure_the_model_sounds(tmp_path: Path, odd: float) -> None:
    async with data_path(tmp_path) as path:
        sounds_sure = rows(SURE, SURE, SURE)  # an integer model clips what it is given: its outputs are finite
        x = sounds_sure.copy()
        x[1, 0] = odd
        scores, decision = path.hosted.arrays.judge({"x": x}, {"logits": sounds_sure}, 3)
        assert decision.is_kept == [True, False, True]
        assert np.isnan(scores).tolist() == [False, True, False]


async def test_large_numbers_are_numbers(tmp_path: Path) -> None:
    async with data_path(tmp_path) as path:
        _, decision = path.hosted.arrays.judge({"x": rows(SURE) * np.float32(1e30)}, {"logits": rows(SURE)}, 1)
        assert decision.is_kept == [True]


async def test_the_process_of_a_language_model_logs_as_the_agent_does(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    house = Hosting(Outcomes(now=lambda: 0.0), log_settings=LogSettings(format="json"))
    with pytest.raises(ArtifactError, match="no section 'model'"):
        await house.prepare(text_plan(layout_without_engine(tmp_path), tmp_path))
    lines = [msgspec.json.decode(line) for line in capfd.readouterr().err.splitlines() if "model not loaded" in line]
    assert [line["engine"] for line in lines] == ["genai"]
