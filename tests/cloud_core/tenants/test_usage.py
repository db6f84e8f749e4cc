"""What tenants used is added up by day, written, found again, and bounded."""

from __future__ import annotations

import pytest

from cloud_core.observing.finished import Finished
from cloud_core.state import Database
from cloud_core.state.usage import Used
from cloud_core.tenants.settings import UsageSettings
from cloud_core.tenants.usage import OTHERS, Usage
from penstock.errors import StorageError
from penstock.hosting.run_notes import BatchNote, RunNote

DAY_S = 86_400.0


class Clock:
    def __init__(self) -> None:
        self.at = 1000 * DAY_S + 60

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


def request(tenant: str = "shop", model: str = "mlp", code: str = "ok", rows: int = 2, **more: object) -> Finished:
    batch = BatchNote(began_at=0.0, took_s=0.4, rows=8, requests=3, closed_by="idle")
    runs = [RunNote(queued_at=0.0, rows=rows, batch=batch)]
    values = {"request_bytes": 32, "started_at": 0.0, "runs": runs, **more}
    return Finished(code=code, tenant=tenant, model=model, rows=rows, **values)  # type: ignore[arg-type]


async def found(usage: Usage, **changes: object) -> list[tuple[int | None, str, str, int]]:
    asked = {"since": 0, "until": 9999, "tenant": "", "is_by_day": True, **changes}
    return [(row.day, row.tenant, row.model, row.used.requests) for row in await usage.find(**asked)]  # type: ignore[arg-type]


async def test_a_batch_is_shared_among_its_rows_and_refusals_used_nothing(database: Database, clock: Clock) -> None:
    usage = Usage(database, UsageSettings(), wall_clock=clock)
    usage.finished(request())
    usage.finished(request(code="deadline-exceeded", runs=(), prompt_tokens=3, answer_tokens=4))
    usage.finished(request(is_admitted=False, code="quota-exceeded"))
    (row,) = await usage.find(since=0, until=9999, tenant="", is_by_day=False)
    assert row.used == Used(requests=2, failed=1, rows=4, bytes=64, tokens=7, device_s=pytest.approx(0.1))
    assert usage.since_start == {("shop", "mlp"): row.used}


async def test_a_core_that_is_started_again_goes_on_with_the_day(database: Database, clock: Clock) -> None:
    first = Usage(database, UsageSettings(), wall_clock=clock)
    first.finished(request())
    first.finished(request(model="faces"))
    await first.flush()
    second = Usage(database, UsageSettings(), wall_clock=clock)
    assert second.of_today()["shop"].requests == 2
    second.finished(request())
    assert await found(second) == [(1000, "shop", "faces", 1), (1000, "shop", "mlp", 2)]


async def test_days_are_kept_apart_and_old_ones_go(database: Database, clock: Clock) -> None:
    usage = Usage(database, UsageSettings(keep_days=2), wall_clock=clock)
    for _ in range(3):
        usage.finished(request())
        await usage.flush()
        clock.at += DAY_S
    assert await found(usage) == [(1001, "shop", "mlp", 1), (1002, "shop", "mlp", 1)]
    assert await found(usage, is_by_day=False) == [(None, "shop", "mlp", 2)]
    assert await found(usage, since=1002) == [(1002, "shop", "mlp", 1)]
    assert await found(usage, tenant="kiosk") == []
    clock.at -= 5 * DAY_S  # a clock that steps back begins no day again
    usage.finished(request())
    assert await found(usage, since=1002) == [(1002, "shop", "mlp", 2)]


async def test_pairs_beyond_the_bound_are_counted_together(database: Database, clock: Clock) -> None:
    usage = Usage(database, UsageSettings(max_pairs=2), wall_clock=clock)
    for model in ("a", "b", "c", "d", "a"):
        usage.finished(request(model=model))
    assert await found(usage) == [(1000, "shop", OTHERS, 2), (1000, "shop", "a", 2), (1000, "shop", "b", 1)]


async def test_what_a_full_disk_did_not_take_is_written_later(
    database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = Usage(database, UsageSettings(), wall_clock=clock)
    usage.finished(request())

    async def full(work: object) -> None:
        raise StorageError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(database, "run", full)
        await usage.flush()
        usage.finished(request())
        await usage.flush()
    assert await found(usage) == [(1000, "shop", "mlp", 2)]
