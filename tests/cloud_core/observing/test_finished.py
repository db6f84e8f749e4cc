from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cloud_core.observing.finished import Finished
from cloud_core.registry.registry import Registry
from cloud_core.settings import ServingSettings, TenantSettings
from penstock.errors import InvalidInput, NotFound, Unauthenticated
from tests.cloud_core.rig import Rig, Told, onnx_layout, rig_of
from tests.penstock.hosting.rig import rows

SHOP = TenantSettings(name="shop", token="shop-secret")


class Defective:
    def finished(self, request: Finished) -> None:
        raise ZeroDivisionError("an observer's defect")


@pytest.fixture(params=[0.0, 10.0], ids=["process", "loop"])
async def rig(registry: Registry, put: Any, tmp_path: Path, request: Any) -> AsyncIterator[Rig]:
    await put(registry, onnx_layout(tmp_path, "v1"))
    rig = rig_of(registry, ServingSettings(inline_below_s=request.param), (SHOP,))
    await rig.settle()
    yield rig
    await rig.controller.close(5.0)


async def test_an_observer_is_told_what_ran_for_whom_and_how_long(rig: Rig) -> None:
    told = Told()
    rig.plane.observers.add(told)
    answer = await rig.infer(rows(1, 2), token="shop-secret")
    (one,) = told.requests
    assert (one.code, one.why, one.is_admitted) == ("ok", "", True)
    assert (one.model, one.version, one.variant) == ("mlp", "v1", answer.parameters["variant"])
    assert (one.tenant, one.arm, one.rows, one.request_bytes) == ("shop", "", 2, rows(1, 2).nbytes)
    assert one.queued_s is not None
    assert one.ran_s is not None
    assert 0 <= one.queued_s + one.ran_s <= one.duration_s
    assert one.runs[0].batch is not None
    assert (one.runs[0].batch.rows, one.runs[0].batch.requests) == (2, 1)
    assert one.request is not None
    assert one.response is answer


async def test_what_is_refused_is_told_with_its_reason_and_no_name_that_no_model_has(rig: Rig) -> None:
    told = Told()
    rig.plane.observers.add(told)
    with pytest.raises(Unauthenticated):
        await rig.infer(rows(1), token="a-wrong-token")
    with pytest.raises(NotFound):
        await rig.infer(rows(1), model="ghost", token="shop-secret")
    with pytest.raises(NotFound):
        await rig.infer(rows(1), version="v9", token="shop-secret")
    with pytest.raises(InvalidInput):
        await rig.infer(rows(1), outputs=("nothing",), token="shop-secret")
    assert [(one.code, one.model, one.tenant, one.is_admitted) for one in told.requests] == [
        ("unauthenticated", "", "", False),
        ("not-found", "", "shop", False),
        ("not-found", "mlp", "shop", False),
        ("invalid-input", "mlp", "shop", True),
    ]
    assert "v9" in told.requests[2].why
    assert told.requests[3].queued_s is None  # it never came to a queue


async def test_a_defect_of_an_observer_reaches_no_request_and_is_logged_once(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()
    rig.plane.observers.add(Defective())
    rig.plane.observers.add(told)
    with caplog.at_level(logging.ERROR, logger="cloud_core.observing.finished"):
        for _ in range(3):
            await rig.infer(rows(1), token="shop-secret")
    assert len(told.requests) == 3
    assert rig.plane.observers.defects == 3
    assert [record.getMessage() for record in caplog.records] == ["an observer failed"]


async def test_who_hears_of_failures_only_is_told_of_no_answer_and_nothing_is_noted_for_it(rig: Rig) -> None:
    told = Told()
    rig.plane.observers.add(told, only_failures=True)
    await rig.infer(rows(1), token="shop-secret")
    with rig.plane.admit(rig.context(token="shop-secret"), "mlp", "", 4) as ticket:
        assert ticket.note is None
    with pytest.raises(InvalidInput):
        await rig.infer(rows(1), outputs=("nothing",), token="shop-secret")
    with pytest.raises(NotFound):
        await rig.infer(rows(1), model="ghost", token="shop-secret")
    assert [(one.code, one.model, one.tenant) for one in told.requests] == [
        ("invalid-input", "mlp", "shop"),
        ("not-found", "", "shop"),
    ]


async def test_nothing_is_noted_where_nobody_observes(rig: Rig) -> None:
    told = Told()
    rig.plane.observers.add(told)
    rig.plane.observers.remove(told)
    context = rig.context(token="shop-secret")
    with rig.plane.admit(context, "mlp", "", 4) as ticket:
        assert ticket.note is None
    assert told.requests == []
