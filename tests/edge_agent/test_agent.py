"""The agent as a process that is started, asked, killed and started again; registry and fleet are real servers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edge_agent import cli
from penstock.artifact.layout import Layout
from penstock.errors import Unavailable
from penstock.rpc.pb import fleet_pb2
from tests.edge_agent.cloud import MODEL, FakeFleet, FakeRegistry, build, release_of
from tests.waiting import PATIENCE_S, until

CONFIG = """
[heartbeat]
interval_s = 0.1
max_s = 0.3
[outbox]
flush_s = 0.05
[update]
probation_s = 0.1
retry_base_s = 0.05
retry_max_s = 0.2
[fetch]
reserve_bytes = 0
chunk_bytes = 16384
"""


@dataclass
class Device:
    """An agent process and its directory; survives its own death."""

    directory: Path
    fleet: FakeFleet
    registry: FakeRegistry
    config: str = CONFIG
    process: asyncio.subprocess.Process | None = field(default=None, repr=False)

    @property
    def socket(self) -> Path:
        return self.directory / "a.sock"

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    async def spawn(self, *arguments: str, shell: str = "") -> asyncio.subprocess.Process:
        """Start an agent; ``shell`` runs first, in the same process."""
        config = self.directory / "agent.toml"
        config.write_text(self.config)
        command = [
            *(sys.executable, "-m", "penstock", "agent", "run", "--config", str(config), "--device-id", "d1"),
            *("--data-dir", str(self.data_dir), "--socket", str(self.socket)),
            *("--core", self.fleet.target, "--registry", self.registry.url, *arguments),
        ]
        if shell:
            command = ["/bin/sh", "-c", f'{shell}; exec "$@"', "sh", *command]
        with (self.directory / "log").open("ab") as log:
            return await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)

    async def start(self, *arguments: str) -> None:
        (self.data_dir / "endpoints.json").unlink(missing_ok=True)
        self.process = await self.spawn(*arguments)
        try:
            await until("ready", lambda: self._is_announced())
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None

    def _is_announced(self) -> bool:
        assert self.process is not None
        assert self.process.returncode is None, self.log
        return (self.data_dir / "endpoints.json").exists()

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), PATIENCE_S)

    async def status(self) -> dict[str, Any]:
        return await asyncio.to_thread(cli.fetch_status, self.socket)

    async def model(self, name: str = MODEL) -> dict[str, Any]:
        return next((m for m in (await self.status())["models"] if m["model"] == name), {})

    async def until(self, what: str, holds: Callable[[dict[str, Any]], bool], model: str = MODEL) -> dict[str, Any]:
        found: dict[str, Any] = {}
        give_up = time.monotonic() + PATIENCE_S
        while time.monotonic() < give_up:
            found = await self.model(model)
            if found and holds(found):
                return found
            await asyncio.sleep(0.02)
        raise AssertionError(f"{what}: {found}\n{self.log}")

    async def outbox_until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        give_up = time.monotonic() + PATIENCE_S
        while not holds(found := (await self.status())["outbox"]):
            assert time.monotonic() < give_up, f"{found}\n{self.log}"
            await asyncio.sleep(0.02)
        return dict(found)

    async def committed(self, version: str) -> dict[str, Any]:
        return await self.until(
            f"{version} committed", lambda m: m["phase"] == "COMMITTED" and m["version"] == version and m["is_serving"]
        )

    async def until_answering(self) -> None:
        def answers() -> bool:
            with suppress(Unavailable):
                return bool(cli.fetch_status(self.socket))
            return False

        give_up = time.monotonic() + PATIENCE_S
        while not await asyncio.to_thread(answers):
            assert time.monotonic() < give_up, "the agent does not answer"
            await asyncio.sleep(0.05)

    def is_healthy(self) -> bool:
        """Whether what runs was committed, and the count of its starts forgotten."""
        path = self.data_dir / "models" / f"{MODEL}.json"
        state = json.loads(path.read_text()) if path.exists() else {}
        return bool(state.get("is_committed")) and not state["trials"]

    async def infer(self, rows: int = 1, model: str = MODEL) -> dict[str, Any]:
        """One request of sure rows over the unix socket, as curl would send it."""
        body = json.dumps({"inputs": [
            {"name": "x", "shape": [rows, 4], "datatype": "FP32", "data": [9.0, 0.0, 0.0, 0.0] * rows}
        ]}).encode()  # fmt: skip
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        writer.write(
            f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n".encode()
            + body
        )
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        head, _, content = answer.partition(b"\r\n\r\n")
        assert b" 200 " in head.split(b"\r\n")[0], answer
        found: dict[str, Any] = json.loads(content)
        return found

    async def infer_when_served(self, rows: int = 1) -> dict[str, Any]:
        await self.until("serving", lambda m: m["is_serving"])
        return await self.infer(rows)


@pytest.fixture
async def device(short_dir: Path) -> AsyncIterator[Device]:
    async with FakeFleet().serve() as fleet, FakeRegistry().serve() as registry:
        found = Device(short_dir, fleet, registry)
        yield found
        if found.process is not None:
            await found.kill()


def publish(device: Device, tag: str, **options: Any) -> Layout:
    layout = build(device.directory / "src", tag, seed=int(tag.strip("v")), **options)
    device.registry.layouts.append(layout)
    device.fleet.desired[MODEL] = release_of(layout)
    return layout


async def test_from_nothing_to_answers(device: Device) -> None:
    layout = publish(device, "v1")
    await device.start("--label", "site=berlin")
    model = await device.committed("v1")
    assert model["artifact"] == layout.digest
    assert model["threshold"] == 0.9
    assert "95% confidence" in model["promise"]
    answer = await device.infer()
    assert answer["parameters"]["served_by"] == "edge"
    assert answer["model_version"] == "v1"
    await until("counted", lambda: device.fleet.rows(layout.digest) == 1)
    await until("reported", lambda: device.fleet.last().phase == fleet_pb2.COMMITTED)
    assert dict(device.fleet.heartbeats[-1].labels) == {"site": "berlin"}
    assert device.fleet.last().mode == fleet_pb2.CASCADE
    phases = device.fleet.phases()
    assert phases[-1] == "COMMITTED"
    assert phases.index("PROBATION") < phases.index("COMMITTED")


async def test_the_socket_is_not_for_everybody_and_tcp_is_off(device: Device) -> None:
    await device.start()
    assert stat.S_IMODE(device.socket.stat().st_mode) == 0o660
    endpoints = json.loads((device.data_dir / "endpoints.json").read_text())
    assert endpoints == {"socket": str(device.socket), "tcp": "", "pid": device.process.pid}  # type: ignore[union-attr]


async def test_an_orderly_stop_drains_flushes_and_leaves_nothing_behind(device: Device) -> None:
    layout = publish(device, "v1")
    device.config = CONFIG.replace("flush_s = 0.05", "flush_s = 3600")
    await device.start()
    await device.committed("v1")
    await device.infer(rows=7)
    assert await device.kill(signal.SIGTERM) == 0
    assert not device.socket.exists()
    assert not (device.data_dir / "endpoints.json").exists()
    assert "stopped" in device.log
    assert device.fleet.rows() == 0
    await device.start()
    await until("what was counted before the stop", lambda: device.fleet.rows(layout.digest) == 7)


async def test_a_power_cut_is_counted_with_what_it_can_have_cost_and_an_orderly_stop_is_not(device: Device) -> None:
    device.config = CONFIG.replace("flush_s = 0.05", "flush_s = 600")
    publish(device, "v1")
    await device.start()
    await device.committed("v1")
    for number, unclean in ((signal.SIGKILL, 1), (signal.SIGTERM, 1), (signal.SIGKILL, 2)):
        await device.kill(number)
        await device.start()
        outbox = (await device.status())["outbox"]
        assert (outbox["unclean_ends"], outbox["max_lost_s"]) == (unclean, 600.0 * unclean)
    assert device.log.count("counts may be missing") == 2
    reader, writer = await asyncio.open_unix_connection(str(device.socket))
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"penstock_agent_unclean_ends_total 2.0" in await reader.read()
    writer.close()
    await writer.wait_closed()
    shown = await asyncio.to_thread(CliRunner().invoke, cli.command, ["status", "--socket", str(device.socket)])
    assert "2 unclean ends, at most 1200 s of counts lost" in shown.output


async def test_serves_after_a_reboot_while_offline(device: Device) -> None:
    publish(device, "v1")
    await device.start()
    await device.committed("v1")
    await device.kill()
    await device.fleet.stop()
    device.registry.layouts.clear()
    device.registry.url = "http://127.0.0.1:9"
    await device.start()
    await device.committed("v1")
    assert (await device.infer())["parameters"]["served_by"] == "edge"
    status = await device.status()
    assert status["cloud"]["is_reachable"] is False
    assert status["cloud"]["error"]


async def test_serves_when_the_disk_takes_not_one_byte_more(device: Device) -> None:
    layout = publish(device, "v1")
    await device.start()
    await device.committed("v1")
    await device.kill()
    device.process = await device.spawn(shell="exec >/dev/null 2>&1; ulimit -f 0")  # no file may grow, not even a log
    await device.until_answering()
    assert (await device.infer_when_served(rows=2))["parameters"]["served_by"] == "edge"
    await device.committed("v1")
    outbox = await device.outbox_until(lambda outbox: outbox["records"] > 0)
    assert outbox["records"] == 1, "held in memory until the disk takes it"
    assert outbox["error"]
    await device.kill()
    await device.start()
    await device.committed("v1")
    await device.infer(rows=3)
    await until("the disk is back", lambda: device.fleet.rows(layout.digest) == 3)


async def test_kill_9_in_the_middle_of_a_pull_resumes(device: Device) -> None:
    first = publish(device, "v1")
    await device.start()
    await device.committed("v1")
    second = publish(device, "v2", padding_bytes=2_000_000)
    weights = second.artifact().variant("edge").weights.digest
    gate = asyncio.Event()
    device.registry.gate[weights] = (1_000_000, gate)
    await device.until("half of v2", lambda m: m["fetched_bytes"] >= 900_000)
    await device.kill()
    gate.set()
    del device.registry.gate[weights]
    await device.start()
    answer = await device.infer_when_served()
    assert answer["model_version"] in ("v1", "v2")
    await device.committed("v2")
    ranges = device.registry.asked_for(weights)
    assert ranges[0] == ""
    assert int(ranges[-1].removeprefix("bytes=").rstrip("-")) >= 900_000
    assert first.digest != second.digest


async def test_kill_9_during_the_switch_serves_one_version_or_the_other(device: Device) -> None:
    """Killed at random moments while versions alternate; each start must answer, and what was desired last must run."""
    layouts = [publish(device, f"v{i}") for i in (1, 2)]
    await device.start()
    for round_number in range(6):
        await until("no start on trial", device.is_healthy)
        device.fleet.desired[MODEL] = release_of(layouts[round_number % 2])
        wanted = layouts[round_number % 2].tag
        seen = ("PROVING", "PROBATION") if round_number % 2 else ("FETCHING", "PROBATION")
        for _ in range(200):
            model = await device.model()
            if model["desired"] == wanted and (model["phase"] in seen or model["version"] == wanted):
                break
            await asyncio.sleep(0.001)
        await device.kill()
        await device.start()
        assert (await device.infer_when_served())["model_version"] in ("v1", "v2")
    await device.committed(wanted)
    assert json.loads((device.data_dir / "models" / f"{MODEL}.json").read_text())["failures"] == []


async def test_kill_9_during_outbox_writes_counts_nothing_twice_and_loses_nothing_flushed(device: Device) -> None:
    layout = publish(device, "v1")
    await device.start()
    await device.committed("v1")
    asked = 0
    for _ in range(3):
        device.fleet.loses_replies = True
        before = device.fleet.deliveries
        while device.fleet.deliveries < before + 2:
            await device.infer(rows=2)
            asked += 2
        flushed = device.fleet.rows(layout.digest)
        await device.kill()
        device.fleet.loses_replies = False
        await device.start()
        await device.committed("v1")
        assert flushed <= device.fleet.rows(layout.digest) <= asked
    await device.infer(rows=1)
    asked += 1
    await until("the last row", lambda: device.fleet.rows(layout.digest) >= flushed + 1)
    await asyncio.sleep(0.2)
    assert device.fleet.rows(layout.digest) <= asked
    sequences = sorted(sequence for _, _, sequence in device.fleet.records)
    assert len(sequences) == len(set(sequences))


async def test_an_outage_of_the_core_loses_no_outcome(device: Device) -> None:
    layout = publish(device, "v1")
    await device.start()
    await device.committed("v1")
    await device.fleet.stop()
    for _ in range(5):
        await device.infer(rows=3)
        await asyncio.sleep(0.06)
    await device.outbox_until(lambda outbox: outbox["records"] > 0)
    await device.fleet.start()
    await until("delivered", lambda: device.fleet.rows(layout.digest) == 15)
    await device.outbox_until(lambda outbox: outbox["records"] == 0)


async def test_a_model_that_kills_the_process_is_reverted(device: Device) -> None:
    publish(device, "v1")
    device.config = CONFIG.replace("probation_s = 0.1", "probation_s = 30")
    device.config = device.config.replace("[update]", "[update]\nprobation_requests = 5")
    await device.start()
    await device.until("v1", lambda m: m["version"] == "v1")
    await device.infer(rows=5)
    await device.committed("v1")
    bad = publish(device, "v2")
    await device.until("v2 on probation", lambda m: m["version"] == "v2" and m["phase"] == "PROBATION")
    for _ in range(3):
        await device.until("v2 serving", lambda m: m["is_serving"] and m["version"] == "v2")
        await device.kill()  # what a segmentation fault in a kernel looks like from outside
        await device.start()
    model = await device.until("reverted", lambda m: m["phase"] == "REVERTED" and m["is_serving"])
    assert model["version"] == "v1"
    assert "did not survive" in model["error"]
    await until("reported", lambda: device.fleet.last().failed_digest == bad.digest)


async def test_a_second_agent_in_the_same_data_directory_is_refused(device: Device) -> None:
    await device.start()
    second = await device.spawn("--socket", str(device.directory / "b.sock"))
    assert await asyncio.wait_for(second.wait(), PATIENCE_S) == 1
    assert "another agent uses" in device.log
    assert (await device.status())["device_id"] == "d1"


@pytest.mark.parametrize("file", ["models/toy.json", "outbox.sqlite"])
async def test_state_of_a_newer_release_keeps_an_agent_from_starting_and_stays(device: Device, file: str) -> None:
    path = device.data_dir / file
    path.parent.mkdir(parents=True)
    if file.endswith(".json"):
        path.write_text('{"schema_version": 99, "model": "toy"}')
    else:
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version = 99")
        db.close()
    before = path.read_bytes()
    process = await device.spawn()
    assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 1
    assert re.search(r"has schema version 99, this Penstock knows \d+; start the version that wrote it", device.log)
    assert path.read_bytes() == before


async def test_a_second_agent_on_the_same_socket_is_refused(device: Device) -> None:
    await device.start()
    second = await device.spawn("--data-dir", str(device.directory / "other"))
    assert await asyncio.wait_for(second.wait(), PATIENCE_S) == 2
    assert "another agent serves" in device.log


async def test_a_stale_socket_is_replaced(device: Device) -> None:
    await device.start()
    await device.kill()
    assert device.socket.exists()
    await device.start()
    assert (await device.status())["device_id"] == "d1"


async def test_a_port_in_use_is_a_clear_error(device: Device) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = await device.spawn("--tcp", f"127.0.0.1:{port}")
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 2
    assert "in use" in device.log
    assert "Traceback" not in device.log


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where not even root can make a directory")
async def test_a_data_directory_that_cannot_be_written_is_a_clear_error(device: Device) -> None:
    process = await device.spawn("--data-dir", "/proc/penstock")
    assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 1
    assert "penstock: " in device.log
    assert "/proc/penstock" in device.log
    assert "Traceback" not in device.log


async def test_a_misspelt_setting_is_refused_with_the_nearest_name(device: Device) -> None:
    device.config = "[heartbeat]\nintervall_s = 1\n"
    process = await device.spawn()
    assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 2
    assert "did you mean 'interval_s'?" in device.log


async def test_the_status_command_prints_a_table_and_json(device: Device) -> None:
    publish(device, "v1")
    await device.start("--tcp", "127.0.0.1:0")
    await device.committed("v1")
    await device.infer(rows=3)

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "penstock", "agent", "status", "--socket", str(device.socket), *arguments]
        env = {**os.environ, "COLUMNS": "80"}
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30, env=env).stdout

    table = await asyncio.to_thread(run)
    assert "d1" in table
    assert "95% confidence" in " ".join(table.split())
    row = next(line for line in table.splitlines() if line.startswith(MODEL + " "))
    assert row.split() == [MODEL, "v1", "committed", "cascade", "0.9000"]
    assert f"{MODEL}: 3 rows, 3 kept, 0 escalated, 0 unreachable, 0 not finite, 0 failed" in table
    assert max(map(len, table.splitlines())) <= 80
    document = json.loads(await asyncio.to_thread(run, "-o", "json"))
    assert document["tcp"].startswith("127.0.0.1:")
    assert document["outbox"]["dropped"] == 0


def test_asking_where_no_agent_is_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no agent answers"):
        cli.fetch_status(tmp_path / "none.sock")


def test_the_agent_never_imports_the_compiler_the_core_or_their_libraries() -> None:
    code = """
import sys
import edge_agent.cli, edge_agent.agent
import penstock.runtime.onnx
bad = {"compiler", "cloud_core", "onnx", "torch", "sqlalchemy", "sklearn", "matplotlib", "jinja2", "pydantic"}
print(sorted(bad & {name.partition(".")[0] for name in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


async def test_a_device_that_the_fleet_distrusts_asks_the_cloud_until_it_is_trusted_again(device: Device) -> None:
    layout = publish(device, "v1")
    await device.start()
    await device.committed("v1")
    device.fleet.distrusts.add(MODEL)
    model = await device.until("cloud only", lambda m: m["mode"] == "CLOUD_ONLY")
    assert "whole fleet" in model["mode_why"]
    await until("reported", lambda: device.fleet.last().mode == fleet_pb2.CLOUD_ONLY)
    assert device.fleet.last().max_harm == layout.certificates()[0][1].max_harm
    state = device.data_dir / "models" / f"{MODEL}.json"
    await until("on disk", lambda: '"is_distrusted": true' in state.read_text())
    await device.kill()
    await device.fleet.stop()
    await device.start()  # offline: it remembers
    assert (await device.until("serving", lambda m: m["is_serving"]))["mode"] == "CLOUD_ONLY"
    device.fleet.distrusts.clear()
    await device.fleet.start()
    await device.until("trusted again", lambda m: m["mode"] == "CASCADE")


async def test_the_unblock_command_says_what_it_did_to_people_and_scripts(device: Device) -> None:
    publish(device, "v1", lies=True)
    await device.start()
    await device.until("blocked", lambda m: m["phase"] == "REVERTED")

    def run(model: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "penstock", "agent", "unblock", model, "--socket", str(device.socket)]
        return subprocess.run([*command, *arguments], check=False, capture_output=True, text=True, timeout=30)

    assert (await asyncio.to_thread(run, MODEL)).stdout == f"{MODEL}: what failed is tried again\n"
    answer = await asyncio.to_thread(run, MODEL, "-o", "json")
    assert json.loads(answer.stdout) == {"model": MODEL, "unblocked": True}
    refused = await asyncio.to_thread(run, "other", "-o", "json")
    assert refused.returncode != 0
    assert "this device has toy" in refused.stderr
