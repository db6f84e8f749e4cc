"""Real agent processes that are killed, with and without the machine that they run on: who is blamed for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.edge_agent.cloud import MODEL, FakeFleet, FakeRegistry, build, release_of
from tests.edge_agent.test_agent import CONFIG, Device, publish
from tests.waiting import until

ON_PROBATION = CONFIG.replace("probation_s = 0.1", "probation_s = 300")
SECOND = "second"
A_SECOND_S = 1.0  # after ``ready``: what the report of a field said of its power cuts


@pytest.fixture
async def device(short_dir: Path) -> AsyncIterator[Device]:
    async with FakeFleet().serve() as fleet, FakeRegistry().serve() as registry:
        found = Device(short_dir, fleet, registry)
        yield found
        if found.process is not None:
            await found.kill()


def configured(device: Device, config: str, boot: int) -> None:
    """Let the next process find this boot of the machine."""
    file = device.directory / "boot_id"
    file.write_text(f"boot {boot}\n")
    device.config = config.replace("[update]", f'[update]\nboot_id_file = "{file}"')


def state(device: Device, model: str = MODEL) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((device.data_dir / "models" / f"{model}.json").read_text())
    return found


def is_on_trial(device: Device) -> bool:
    return any(trial.get("is_open") for trial in state(device)["trials"])


async def killed_three_times(device: Device, config: str, *, is_reboot: bool, is_on_probation: bool = True) -> None:
    for number in (1, 2, 3):
        await asyncio.sleep(A_SECOND_S)
        if is_on_probation:  # on a slow machine it may not have begun by now
            await until("it is on trial", lambda: is_on_trial(device))
        await device.kill()
        configured(device, config, number if is_reboot else 0)
        await device.start()


@pytest.mark.parametrize("is_reboot", [False, True], ids=["one boot", "reboots"])
async def test_a_committed_version_serves_after_every_kill(device: Device, is_reboot: bool) -> None:
    configured(device, CONFIG, 0)
    publish(device, "v1")
    await device.start()
    await device.committed("v1")
    await device.fleet.stop()
    await killed_three_times(device, ON_PROBATION, is_reboot=is_reboot, is_on_probation=False)
    assert (await device.infer_when_served())["model_version"] == "v1"
    assert (await device.committed("v1"))["phase"] == "COMMITTED"
    assert state(device)["failures"] == []


@pytest.mark.parametrize("is_reboot", [False, True], ids=["one boot", "reboots"])
async def test_a_version_on_probation_is_blamed_for_deaths_and_not_for_reboots(device: Device, is_reboot: bool) -> None:
    configured(device, CONFIG, 0)
    publish(device, "v1")
    await device.start()
    await device.committed("v1")
    await device.kill()
    configured(device, ON_PROBATION, 0)
    await device.start()
    publish(device, "v2")
    await device.until("v2 on probation", lambda m: m["version"] == "v2" and m["is_serving"])
    await killed_three_times(device, ON_PROBATION, is_reboot=is_reboot)
    served = "v2" if is_reboot else "v1"
    found = await device.until(f"{served} serves", lambda m: m["is_serving"] and m["version"] == served)
    assert found["phase"] == ("PROBATION" if is_reboot else "REVERTED")
    assert [failure["release"]["version"] for failure in state(device)["failures"]] == ([] if is_reboot else ["v2"])
    assert (await device.infer())["model_version"] == served


@pytest.mark.parametrize("is_reboot", [False, True], ids=["one boot", "reboots"])
async def test_a_first_version_on_probation_survives_reboots(device: Device, is_reboot: bool) -> None:
    configured(device, ON_PROBATION, 0)
    publish(device, "v1")
    await device.start()
    await device.until("v1 on probation", lambda m: m["version"] == "v1" and m["is_serving"])
    await killed_three_times(device, ON_PROBATION, is_reboot=is_reboot)
    if is_reboot:
        assert (await device.infer_when_served())["model_version"] == "v1"
    else:
        await device.until("blamed", lambda m: m["phase"] == "REVERTED")


def publish_second(device: Device, tag: str) -> None:
    layout = build(device.directory / "src" / SECOND, tag, seed=int(tag.strip("v")), model=SECOND, certified="")
    device.registry.layouts.append(layout)
    device.fleet.desired[SECOND] = release_of(layout)


async def test_of_two_models_on_probation_only_the_one_that_kills_the_process_is_blamed(device: Device) -> None:
    """Both are suspects at first; then they take turns, and each death names its model."""
    configured(device, CONFIG, 0)
    publish(device, "v1")
    publish_second(device, "v1")
    await device.start()
    for model in (MODEL, SECOND):
        await device.until("v1", lambda m: m["phase"] == "COMMITTED" and m["is_serving"], model)
    await device.kill()
    configured(device, ON_PROBATION.replace("[update]", "[update]\nprobation_requests = 5"), 0)
    await device.start()
    publish(device, "v2")
    publish_second(device, "v2")
    for model in (MODEL, SECOND):
        await device.until("v2", lambda m: m["version"] == "v2" and m["is_serving"], model)
    for deaths in (0, 1, 2, 3):  # the first of them, with both on probation, counts against nobody
        await device.until("toy serves", lambda m: m["version"] == "v2" and m["is_serving"])
        await device.kill()
        await device.start()
        if not deaths:  # the innocent one has its turn alone, and comes through it
            assert [state(device, model)["failures"] for model in (MODEL, SECOND)] == [[], []]
            await device.until("second serves", lambda m: m["version"] == "v2" and m["is_serving"], SECOND)
            assert not (await device.model())["is_serving"]
            await device.infer(rows=5, model=SECOND)
    model = await device.until("reverted", lambda m: m["phase"] == "REVERTED" and m["is_serving"])
    assert model["version"] == "v1"
    second = await device.until("second", lambda m: m["phase"] == "COMMITTED" and m["is_serving"], SECOND)
    assert second["version"] == "v2"
    assert state(device, SECOND)["failures"] == []
