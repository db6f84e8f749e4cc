"""A clock that is set while the core runs silences no device, and ends no wave."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cloud_core.fleet.devices import Report, ReportedModel
from cloud_core.fleet.messages import PlanRequest
from cloud_core.fleet.service import FleetService
from cloud_core.policy.rollouts.gate_settings import Gate
from cloud_core.policy.rollouts.planning import Selection
from cloud_core.registry.registry import Registry
from cloud_core.state import Database
from penstock.process.clock import SteadyClock
from tests.cloud_core.releases import certificate_of, released

TEN_YEARS = timedelta(days=3652)
GATE = Gate(alpha=0.05, max_failure_rate=0.05, min_audited=0, bake_s=60.0, max_silence_s=30.0, max_wave_s=600.0)


@dataclass
class Machine:
    """A machine whose clock can be set."""

    date: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    passed_s: float = 0.0

    def advance(self, seconds: float) -> None:
        self.date += timedelta(seconds=seconds)
        self.passed_s += seconds


@pytest.mark.parametrize("jump", [TEN_YEARS, -TEN_YEARS], ids=["ahead", "back"])
def test_it_goes_on_with_time_that_passes(jump: timedelta) -> None:
    machine = Machine()
    clock = SteadyClock(lambda: machine.date, lambda: machine.passed_s)
    began = clock()
    assert began == machine.date
    machine.advance(5)
    machine.date += jump
    machine.advance(5)
    assert clock() - began == timedelta(seconds=10)


@pytest.mark.parametrize("jump", [TEN_YEARS, -TEN_YEARS], ids=["ahead", "back"])
async def test_a_fleet_is_not_silent_and_a_wave_not_over_because_the_clock_was_set(
    database: Database, registry: Registry, make_layout: Any, put: Any, jump: timedelta
) -> None:
    digests = {tag: await put(registry, make_layout(tag)) for tag in ("v1", "v2")}
    released(database, registry, "digits", digests["v1"])
    machine = Machine()
    service = FleetService.open(database, registry, now=SteadyClock(lambda: machine.date, lambda: machine.passed_s))

    async def beat(version: str) -> None:
        for name in ("cam-1", "cam-2"):
            digest = digests[version]
            model = ReportedModel(
                model="digits", active_digest=digest, active_version=version, phase="committed",
                certificate_digest=certificate_of(registry, digest),
            )  # fmt: skip
            await service.heartbeat(Report(device_id=name, target="any", subscriptions=("*",), models=(model,)))

    await beat("v1")
    request = PlanRequest(model="digits", version="v2", selection=Selection(labels={}), waves=(1.0,), gate=GATE)
    made = await service.plan(request)
    await service.apply(made.rollout.plan.rollout_id)
    await beat("v2")
    machine.date += jump
    machine.advance(1)
    await service.reconcile()
    assert [device.is_silent for device in service.devices()] == [False, False]
    assert service.rollout().rollout.state == "running", service.rollout().rollout.status
    for _ in range(7):
        machine.advance(10)
        await beat("v2")
    await service.reconcile()
    assert service.rollout().rollout.state == "succeeded", service.rollout().rollout.status
