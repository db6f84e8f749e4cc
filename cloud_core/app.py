"""The core as one process: opens state, starts the data plane, the fleet and both listeners, and stops them in order.

The composition root. Owns the data directory (one core at a time, by the database's lock) and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.metadata
import logging
import os
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from cloud_core.api.certificates import watch_certificates
from cloud_core.api.exposition.metrics import Metrics
from cloud_core.api.garbage import gc_route
from cloud_core.api.keys import key_routes
from cloud_core.api.oci import OciApi
from cloud_core.api.reload import reload_route
from cloud_core.api.routes import http_server
from cloud_core.api.rpc.fleet_grpc import FleetServicer
from cloud_core.api.rpc.grpc_oip import OipServicer
from cloud_core.api.rpc.grpc_repository import RepositoryCalls
from cloud_core.api.rpc.grpc_server import GrpcServer
from cloud_core.api.seeing import Seeing
from cloud_core.api.traffic import TrafficApi
from cloud_core.api.usage import usage_route
from cloud_core.cluster.opening import keep_place, turn_at
from cloud_core.fleet.service import FleetService
from cloud_core.observing.observing import Observing
from cloud_core.registry.registry import Registry
from cloud_core.reloading import Reloading
from cloud_core.serving.controller import Controller
from cloud_core.serving.counters import Measures
from cloud_core.serving.dataplane import DataPlane
from cloud_core.serving.embeddings import Embeddings
from cloud_core.serving.texts import TextPlane
from cloud_core.serving.token_accounts import SpendingKeeper
from cloud_core.settings import CoreSettings, check
from cloud_core.state import Database, spending
from cloud_core.tenants.callers import Callers
from cloud_core.tenants.tenancy import Tenancy, seen_by, tenancy_of
from cloud_core.traffic.canaries import Canaries
from cloud_core.traffic.service import TrafficService
from penstock.artifact.blobs import write_atomically
from penstock.errors import StorageError
from penstock.hosting.generation.managed.vllm import ManagedServers
from penstock.http.extensions import Extensions
from penstock.http.server import HttpServer
from penstock.process.clock import SteadyClock
from penstock.process.live_settings import LiveSettings
from penstock.process.shared_regions import SharedRegions
from penstock.process.supervision import supervise
from penstock.process.telemetry import log
from penstock.signing import trust
from penstock.toolchain.locations import require
from penstock.wire.server_tls import ServerCertificates

_log = logging.getLogger(__name__)
_HEARTBEAT_S = 1.0
_CUT_S = 1.0  # what listeners get after the drain, before what is left is cut
ENDPOINTS_FILE = "endpoints.json"


class Core:
    """A running core. ``http_port`` and ``grpc_port`` are the bound ones."""

    def __init__(
        self, settings: CoreSettings, read: Callable[[], CoreSettings] | None = None, told: asyncio.Event | None = None
    ) -> None:
        """Not started; use :meth:`start`."""
        self._settings, self._read, self._told = settings, read, told or asyncio.Event()
        self._data_dir = Path(settings.data_dir)
        self._stopping = asyncio.Event()
        self._exit = contextlib.AsyncExitStack()
        self._supervisor: asyncio.Task[None] | None = None
        self._is_clean = True
        self._certificates: ServerCertificates | None = None
        self.tenancy: Tenancy | None = None
        self.plane: DataPlane
        self.grpc: GrpcServer
        self.http: HttpServer
        self.http_port = 0

    @classmethod
    async def start(
        cls, settings: CoreSettings, read: Callable[[], CoreSettings] | None = None, told: asyncio.Event | None = None
    ) -> Core:
        """Start everything and return when requests are admitted. Says so in the log and in ``endpoints.json``.

        Args:
            read: reads the settings again where a reload is asked for; None where there is nothing to read.
            told: set when the process is told to end; a core that stands by gives up then.

        Raises:
            ConfigError: a port is in use, or settings contradict each other. StorageError: the data directory is not
            writable, or another core uses it.
        """
        core = cls(check(settings), read, told)
        try:
            await core._start()
        except BaseException:
            await core._exit.aclose()
            raise
        return core

    @property
    def grpc_port(self) -> int:
        return self.grpc.port

    async def __aenter__(self) -> Core:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def serve(self, stop: asyncio.Event) -> None:
        """Wait until ``stop`` is set.

        Raises:
            Internal: a task of the core died; the message says which.
        """
        assert self._supervisor is not None, "not started"
        waiter = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([waiter, self._supervisor], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()
        if self._supervisor.done() and not stop.is_set():
            await self._supervisor

    async def stop(self) -> bool:
        """Drain and stop: readiness fails at once, new work is refused ``lame_duck_s`` later, admitted work finishes
        within ``drain_s``, then all is closed.

        Returns:
            Whether everything finished; False when an engine still runs a batch in a thread that cannot be stopped.
        """
        serving = self.reloading.settings.serving
        drain_s, lame_duck_s = serving.drain_s, serving.lame_duck_s
        self.plane.is_lame_duck = True
        await self.grpc.set_serving(False)
        if lame_duck_s:
            log(_log, logging.INFO, "not ready any more", takes_work_for_s=lame_duck_s)
            await asyncio.sleep(lame_duck_s)
        self.plane.begin_drain()
        log(_log, logging.INFO, "draining", inflight=self.plane.measures.inflight, drain_s=drain_s)
        if not await self.plane.drained(drain_s):
            self._is_clean = False
            log(_log, logging.WARNING, "drain ran out of time", inflight=self.plane.measures.inflight)
            await self.texts.cut()  # before listeners cut connections: what is left says so to its clients
        await self._exit.aclose()
        log(_log, logging.INFO, "stopped")
        return self._is_clean

    async def _start(self) -> None:
        settings, now = self._settings, asyncio.get_running_loop().time
        version = importlib.metadata.version("penstock")
        if settings.tls.certificate:
            self._certificates = ServerCertificates(settings.tls)
        database = await turn_at(settings, self._told)
        self._exit.callback(database.close)
        was_killed = self._forget_endpoints()
        registry = self._open_registry(database)
        fleet = FleetService.open(database, registry, settings.fleet, SteadyClock())
        self._exit.push_async_callback(_close_fleet, fleet)
        measures = Measures()
        self.tenancy = tenancy_of(settings, database, now)
        callers = None if self.tenancy is None else self.tenancy.callers
        controller = self._make_controller(registry, measures, callers, now)
        self._exit.push_async_callback(self._close_controller, controller)
        traffic = TrafficService(database, registry, controller, fleet.actions, settings.serving.traffic, _utc_now)
        canaries = Canaries(traffic, registry, controller.lanes, measures, _utc_now)
        self.plane = DataPlane(
            controller,
            seen_by(self.tenancy, registry),
            measures,
            settings.serving,
            callers,
            now,
            max_body_bytes=settings.http.max_body_bytes,
        )
        if self.tenancy is not None:
            self.plane.observers.add(self.tenancy.usage)
            self._exit.push_async_callback(self.tenancy.flush)
        self.observing = Observing(settings.observing, registry, self.plane.observers)
        self._exit.push_async_callback(self.observing.close)
        keeper = self._keep_spending(database, was_killed)
        self.reloading = Reloading(
            settings,
            self._read,
            tenancy=self.tenancy,
            texts=self.texts,
            observing=self.observing,
            traffic=traffic,
        )
        # what was pushed here is closed in reverse: listeners first, the database last
        self._exit.push_async_callback(self._stop_tasks)
        await self._listen(registry, fleet, traffic, version)
        tasks = {
            "controller": controller.run(),
            "fleet": fleet.run(),
            "splits": canaries.run(),
            "heartbeat": self._beat(),
            **self.observing.tasks(),
            **self._tasks_as_set(keeper, database),
        }
        self._supervisor = asyncio.create_task(supervise(tasks, self._stopping), name="core")
        await self._until_settled(controller)
        await self.grpc.set_serving(True)
        gc.collect()
        gc.freeze()  # what start-up built lives as long as the process: later collections need not look at it
        self._announce(self._data_dir / ENDPOINTS_FILE)

    def _forget_endpoints(self) -> bool:
        """Say whether the core before this one was killed; nobody listens where it did any more."""
        endpoints = self._data_dir / ENDPOINTS_FILE
        was_killed = endpoints.exists()
        with contextlib.suppress(OSError):
            endpoints.unlink()
        return was_killed

    def _open_registry(self, database: Database) -> Registry:
        trusted = trust.configured(self._settings.trust_root, os.environ)
        if trusted is not None:
            trusted.keys()  # a root that cannot be read is found out now, not when a version is asked for
        return Registry.open(self._data_dir, database, self._settings.registry, now=_utc_now, trust=trusted)

    def _tasks_as_set(self, keeper: SpendingKeeper, database: Database) -> dict[str, Coroutine[Any, Any, None]]:
        """Return what runs beside the others where settings ask for it."""
        # tenants may come to have tokens of a day while the core runs
        tasks: dict[str, Coroutine[Any, Any, None]] = {"spending": keeper.run()}
        if self._settings.database:
            tasks["place"] = keep_place(database, self._settings.cluster.standby_s)
        if self.tenancy is not None:
            tasks |= self.tenancy.tasks()
        if self._certificates is not None:
            tasks["certificates"] = watch_certificates(self._certificates, every_s=self._settings.tls.reload_s)
        return tasks

    def _keep_spending(self, database: Database, was_killed: bool) -> SpendingKeeper:
        """Make the text plane, which goes on with what tenants had spent, and what keeps that on disk."""
        serving = self._settings.serving
        self.texts = TextPlane(self.plane, serving, self._settings.tenants, spent=database.run_now(spending.read))
        keeper = SpendingKeeper(self.texts.accounts, database, flush_s=serving.spending_flush_s)
        if was_killed and self.texts.accounts.has_days:
            effect = f"what tenants spent in its last {serving.spending_flush_s:g} s may not count"
            log(_log, logging.WARNING, "the core before this one was killed", tokens=effect)
        self._exit.push_async_callback(keeper.flush)
        return keeper

    def _make_controller(
        self, registry: Registry, measures: Measures, callers: Callers | None, now: Callable[[], float]
    ) -> Controller:
        settings = self._settings
        managed = ManagedServers(
            settings=settings.serving.generation.vllm,
            interpreter=partial(require, "vllm"),
            directory=self._data_dir / "vllm",
            environment=os.environ,
        )
        return Controller(
            registry,
            settings.serving,
            measures,
            now,
            log_settings=settings.log,
            managed=managed,
            shares=(lambda: None) if callers is None else callers.fair_shares,
        )

    async def _listen(self, registry: Registry, fleet: FleetService, traffic: TrafficService, version: str) -> None:
        settings = self._settings
        extensions = Extensions(SharedRegions(settings.shared_memory), LiveSettings(self.observing.tracer))
        self._exit.callback(extensions.regions.close)
        oip = OipServicer(
            self.plane,
            self.texts,
            extensions,
            version=version,
            stream_window=settings.grpc.stream_window,
            more=RepositoryCalls(traffic, self.plane.identify).calls(),
        )
        servicer = FleetServicer(fleet, self.plane.identify, takes_certificates=self.plane.takes_certificates)
        self.grpc = await GrpcServer.start(self.plane, oip, servicer, settings.grpc, self._certificates)
        self._exit.push_async_callback(self.grpc.stop, _CUT_S)
        usage = None if self.tenancy is None else self.tenancy.usage
        self.metrics = Metrics(self.plane, self.texts, fleet, traffic, self.observing, version, usage=usage)
        self.http = http_server(
            self.plane,
            self.texts,
            Embeddings(self.plane, settings.serving),
            OciApi(registry, now=_utc_now, is_draining=lambda: self.plane.is_draining),
            (
                gc_route(registry),
                reload_route(self.reloading.reload),
                *TrafficApi(traffic).routes(),
                *key_routes(None if self.tenancy is None else self.tenancy.keys, fleet.actions),
                usage_route(usage),
            ),
            Seeing(self.plane, self.observing),
            self.metrics,
            extensions,
            settings.http,
            body_s=settings.serving.default_timeout_s,
        )
        self._exit.push_async_callback(self.http.stop, _CUT_S)
        tls = None if self._certificates is None else self._certificates.context
        address = await self.http.listen_tcp(settings.http.host, settings.http.port, setting="--http-port", tls=tls)
        self.http_port = int(address.rpartition(":")[2])

    async def _until_settled(self, controller: Controller) -> None:
        assert self._supervisor is not None
        settled = asyncio.create_task(controller.settled.wait())
        await asyncio.wait([settled, self._supervisor], return_when=asyncio.FIRST_COMPLETED)
        settled.cancel()
        if self._supervisor.done():
            await self._supervisor

    def _announce(self, endpoints: Path) -> None:
        http = f"{_host(self._settings.http.host)}:{self.http_port}"
        grpc = f"{_host(self._settings.grpc.host)}:{self.grpc_port}"
        try:
            write_atomically(endpoints, msgspec.json.encode({"http": http, "grpc": grpc}))
            self._exit.callback(endpoints.unlink, missing_ok=True)
        except StorageError as error:  # a full disk must not keep the core from serving
            log(_log, logging.WARNING, "endpoints not written", error=error.message)
        log(_log, logging.INFO, "ready", http=http, grpc=grpc)

    async def _beat(self) -> None:
        """Measures how late the loop is: what stalls it stalls every request."""
        while True:
            due = time.perf_counter() + _HEARTBEAT_S
            await asyncio.sleep(_HEARTBEAT_S)
            self.plane.measures.loop_lag_s = max(0.0, time.perf_counter() - due)

    async def _stop_tasks(self) -> None:
        self._stopping.set()
        if self._supervisor is not None:
            await asyncio.wait([self._supervisor])
            if not self._supervisor.cancelled() and (error := self._supervisor.exception()) is not None:
                log(_log, logging.ERROR, "a task had died", error=error)

    async def _close_controller(self, controller: Controller) -> None:
        if not await controller.close(_CUT_S):
            self._is_clean = False


async def _close_fleet(fleet: FleetService) -> None:
    try:
        await fleet.close()
    except StorageError as error:  # devices report again to the next core: nothing is lost for long
        log(_log, logging.WARNING, "what devices reported last is not written", error=error.message)


def _host(host: str) -> str:
    """Return an address that a client on this machine can dial."""
    if host in ("", "0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _utc_now() -> datetime:
    return datetime.now(UTC)
