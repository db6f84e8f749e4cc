"""Shares of tenants in one device's time, simulated on a virtual clock: who is busy gets it by weight, who is not waits
no longer than alone, and nobody can shut others out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.policy.batch_line import BatchLine
from penstock.policy.batching import BatchLimits, Queued, Room, level_of
from penstock.policy.fair_shares import FairShares, fits_beside


@dataclass
class Device:
    """One device and its line, on a virtual clock: each batch costs by its rows and by what a row of its kind costs."""

    weights: Mapping[str, float]
    max_rows: int = 16
    fixed_s: float = 0.002
    row_s: Mapping[object, float] = field(default_factory=lambda: {None: 0.001})
    now: float = 0.0

    def __post_init__(self) -> None:
        self.shares = FairShares(lambda tenant: self.weights[tenant])
        self.limits = BatchLimits(max_rows=self.max_rows)
        self.line: BatchLine[Queued] = BatchLine(self.limits, Room(10**6), self.shares)
        self.had_s = dict.fromkeys(self.weights, 0.0)
        self.waits_s: dict[str, list[float]] = {tenant: [] for tenant in self.weights}
        self.charged_row_s = (self.fixed_s + self.max_rows * self.row_s[next(iter(self.row_s))]) / self.max_rows

    def send(self, tenant: str, rows: int = 1, *, kind: str | None = None, priority: int = 0) -> None:
        self.line.add(Queued(rows=rows, arrived_at=self.now, shape_key=kind, priority=priority, tenant=tenant))

    def run(self) -> list[Queued]:
        """Run one batch."""
        batch = self.line.take(self.limits, self.now, row_s=self.charged_row_s).dispatch
        rows = sum(item.rows for item in batch)
        took_s = self.fixed_s + rows * self.row_s[batch[0].shape_key]
        self.now += took_s
        for item in batch:
            seconds = took_s * item.rows / rows
            self.shares.correct(item.tenant, seconds - item.rows * self.charged_row_s)
            self.had_s[item.tenant] += seconds
            self.waits_s[item.tenant].append(self.now - item.arrived_at)
        return batch


def jain(had: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """R. Jain's index of fairness, of what each had by its weight: 1 where all had the same."""
    by_weight = [had[tenant] / weight for tenant, weight in weights.items()]
    return sum(by_weight) ** 2 / (len(by_weight) * sum(value**2 for value in by_weight))


@settings(max_examples=15)
@given(st.data())
def test_tenants_that_always_wait_have_time_by_their_weights(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 6))
    weights = {f"t{i}": data.draw(st.sampled_from([1.0, 2.0, 5.0])) for i in range(n)}
    kinds = {None: 0.001, "long": data.draw(st.sampled_from([0.001, 0.004]))}
    device = Device(weights, row_s=kinds)
    how = {tenant: (data.draw(st.integers(1, 4)), data.draw(st.sampled_from([None, "long"]))) for tenant in weights}
    for step in range(400):
        for tenant, (rows, kind) in how.items():
            # as many as fill a batch always wait, of some tenants ten times as many
            while device.shares.of(tenant).rows < 16 * (10 if tenant == "t0" else 1):
                device.send(tenant, rows, kind=kind, priority=step % 3)
        device.run()
    assert jain(device.had_s, weights) >= 0.95


def test_a_tenant_that_asks_now_and_then_waits_about_as_long_as_alone_beside_a_flood_of_ten_times_its_load() -> None:
    def p99_s(*, flood: int) -> float:
        device = Device({"small": 1.0, "noisy": 1.0})
        for _ in range(300):
            while device.shares.of("noisy").rows < flood:
                device.send("noisy")
            device.send("small")
            while device.shares.of("small").rows:
                device.run()
        waits = sorted(device.waits_s["small"])
        return waits[int(len(waits) * 0.99)]

    # a batch that runs is not interrupted, so that it waits for one, full at the worst, beside its own
    assert p99_s(flood=4096) <= 2 * (0.002 + 16 * 0.001)
    assert p99_s(flood=4096) <= p99_s(flood=16) * 1.01


def test_who_was_idle_is_not_paid_for_it() -> None:
    device = Device({"a": 1.0, "b": 1.0})
    for _ in range(500):
        device.send("a", 16)
        device.run()
    for _ in range(100):
        device.send("a")
        device.send("b")
    rows = {"a": 0, "b": 0}
    for item in [item for _ in range(6) for item in device.run()]:
        rows[item.tenant] += item.rows
    assert abs(rows["a"] - rows["b"]) <= 17  # a batch, not the 500 that the other one had


def test_priorities_order_a_tenants_own_requests_and_not_those_of_others() -> None:
    device = Device({"a": 1.0, "b": 1.0}, max_rows=1)
    for _ in range(4):
        device.send("a", priority=1)
    device.send("b", priority=3)
    device.send("b", priority=1)
    order = [(item.tenant, item.priority) for _ in range(4) for item in device.run()]
    assert [one for one in order if one[0] == "b"] == [("b", 1), ("b", 3)]


def test_tenants_that_are_seen_once_are_forgotten() -> None:
    shares = FairShares()
    for i in range(1000):
        shares.came(shares.of(f"tenant {i}"))
    assert len(shares._shares) <= 65


@given(st.lists(st.sampled_from([1, 2, 5]), min_size=1, max_size=300), st.integers(10, 200))
def test_nobody_can_shut_others_out_of_what_is_shared(asked: list[int], limit: int) -> None:
    mine = 0
    for more in asked:
        if fits_beside(mine, more, held=mine, limit=limit):
            mine += more
    assert mine <= max(limit // 2, asked[0])
    assert fits_beside(0, 1, held=mine, limit=limit)


@pytest.mark.parametrize(("mine", "more", "held", "fits"), [(0, 100, 0, True), (0, 50, 50, True), (0, 51, 50, False)])
def test_who_has_nothing_may_take_what_is_left(mine: int, more: int, held: int, fits: bool) -> None:
    assert fits_beside(mine, more, held=held, limit=100) is fits


@settings(max_examples=60)
@given(st.data())
def test_whatever_tenants_send_and_withdraw_each_of_them_is_served_in_its_own_order_and_nothing_is_lost(
    data: st.DataObject,
) -> None:
    limits, room, shares = BatchLimits(max_rows=data.draw(st.integers(1, 8))), Room(10**6), FairShares()
    line: BatchLine[Queued] = BatchLine(limits, room, shares)
    waiting: list[Queued] = []
    now = 0.0

    def order(item: Queued) -> tuple[float, int]:
        return item.arrived_at + level_of(item.priority) * limits.ageing_s, item.number

    for step in data.draw(st.lists(st.sampled_from(["come", "come", "come", "go", "withdraw"]), max_size=50)):
        now += 0.1
        if step == "come":
            tenant, kind = data.draw(st.sampled_from("abc")), data.draw(st.sampled_from("xy"))
            priority, rows = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 4))
            new = Queued(rows=rows, arrived_at=now, priority=priority, shape_key=kind, tenant=tenant)
            line.add(new)
            waiting.append(new)
        elif step == "withdraw" and waiting:
            gone = data.draw(st.sampled_from(waiting))
            line.remove([gone])
            waiting.remove(gone)
        elif step == "go" and waiting:
            least = min(shares.of(item.tenant).had for item in waiting)
            batch = line.take(limits, now, row_s=1.0).dispatch
            first = batch[0]
            mine = [item for item in waiting if item.tenant == first.tenant]
            assert first is min(mine, key=order)
            assert shares.of(first.tenant).had - sum(i.rows for i in batch if i.tenant == first.tenant) == least
            for tenant in "abc":
                taken = [item for item in batch if item.tenant == tenant]
                same = [item for item in waiting if (item.tenant, item.shape_key) == (tenant, first.shape_key)]
                assert taken == sorted(same, key=order)[: len(taken)]
            waiting = [item for item in waiting if item not in batch]
        assert (len(line), room.rows) == (len(waiting), sum(item.rows for item in waiting))
        assert sorted(map(id, line)) == sorted(map(id, waiting))
