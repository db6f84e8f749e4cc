"""The agent's composition root: makes every part, starts them in order, and stops them in the reverse of it.

Owns the data directory's lock and the announcement of the addresses. Decides nothing. Local models come up from disk
before the cloud is asked for anything (invariant 2).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

import penstock
from edge_agent import identity
from edge_agent.api.routes import http_server
from edge_agent.api.status import Parts, status_document
from edge_agent.reporting.delivery import Delivery
from edge_agent.reporting.ends import EndsFile
from edge_agent.reporting.fleet_link import FleetLink
from edge_agent.reporting.heartbeat import Device, Heartbeats, Local
from edge_agent.reporting.outbox import Outbox
from edge_agent.serving.cloud_texts import CloudTexts
from edge_agent.serving.counts import Outcomes
from edge_agent.serving.dataplane import DataPlane
from edge_agent.serving.embeddings import Embeddings
from edge_agent.serving.escalation import Escalator
from edge_agent.serving.hosting import Hosting
from edge_agent.serving.texts import TextPlane
from edge_agent.settings import AgentSettings
from edge_agent.updates import fetch
from edge_agent.updates.fetch import Fetcher
from edge_agent.updates.store import DataDirLock, Store
from edge_agent.updates.tools import Tools
from edge_agent.updates.updater import Updater
from penstock.artifact.blobs import write_atomically
from penstock.errors import StorageError
from penstock.http.listen import parse_address
from penstock.process import machine
from penstock.process.service_manager import service_manager, watched
from penstock.process.supervision import stop_on_signals, supervise
from penstock.process.telemetry import log
from penstock.registry.address import parse_registry
from penstock.signing import trust

if TYPE_CHECKING:
    from edge_agent.serving.spans import Spans

_log = logging.getLogger(__name__)
ENDPOINTS_FILE = "endpoints.json"
ENDS_FILE = "ends.json"
_CUT_S = 1.0  # what connections get after the drain, before what is left is cut


class Agent:
    """One agent in the running event loop. ``async with Agent(settings) as agent: await agent.run(stop)``."""

    def __init__(self, settings: AgentSettings) -> None:
        """``settings`` as ``edge_agent.settings.load`` gives them: with paths filled in."""
        self.settings = settings
        self.tcp_address = ""
        self._data_dir = Path(settings.data_dir)
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Agent:
        """Lock the data directory, build the parts, listen.

        Raises:
            StorageError: the data directory is not writable, or another agent uses it. ConfigError: the socket or port
                is in use, or a setting is wrong. InvalidInput: ``core``, ``registry`` or ``target`` is.
        """
        async with contextlib.AsyncExitStack() as stack:
            await self._build(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set.

        Raises:
            Internal: a part died; the message names it.
        """
        await supervise(
            {
                "updater": self.updater.run(),
                "heartbeats": self.heartbeats.run(),
                "delivery": self.delivery.run(),
                "auditor": self.dataplane.auditor.run(),
                "text auditor": self.texts.auditor.run(),
            },
            stop,
        )

    def status(self) -> Mapping[str, Any]:
        """Make the document of ``GET /status``."""
        return status_document(self._parts, tcp_address=self.tcp_address)

    async def _build(self, stack: contextlib.AsyncExitStack) -> None:
        settings = self.settings
        stack.enter_context(DataDirLock(self._data_dir))
        trusted = trust.configured(settings.trust_root, os.environ)
        if trusted is not None:
            trusted.keys()  # a root that cannot be read is found out now, not as a pull that fails
        self._trusts = str(trusted.directory) if trusted else "anybody"
        store = Store(
            self._data_dir, max_document_bytes=settings.fetch.max_document_bytes, rung=settings.rung, trust=trusted
        )
        target = settings.target or machine.edge_target()
        self.device = Device(
            device_id=identity.device_id(self._data_dir, settings.device_id),
            agent_version=penstock.__version__,
            labels=settings.labels,
            target=target,
            subscriptions=settings.subscriptions,
            rung=settings.rung,
            run=uuid.uuid4().hex,
        )
        outcomes = Outcomes(now=time.time)
        hosting = self._hosting(outcomes)
        hosting.expect(model for model, state in store.states().items() if state.active)
        spans = self._spans(stack)
        link, escalator = self._links(stack, spans)
        self.delivery = self._delivery(outcomes, link)
        stack.push_async_callback(self.delivery.close)
        await self.delivery.open()
        connect = fetch.connector(
            settings.registry,
            settings.fetch,
            user=settings.registry_user,
            token=settings.registry_token or settings.token,
            tls=settings.tls,
        )
        targets = machine.runnable_targets(target)
        fetcher = Fetcher(
            connect, store, settings.fetch, targets, rung=settings.rung, needs_signatures=trusted is not None
        )
        stack.callback(fetcher.close)
        self.updater = self._updater(store, fetcher, hosting)
        stack.callback(self.updater.stop)
        stack.push_async_callback(hosting.close)
        self.heartbeats = self._heartbeats(link)
        self.dataplane = DataPlane(hosting, escalator, settings.cascade, settings.limits)
        self.texts = self._text_plane(stack)
        self._parts = Parts(
            settings=settings,
            device=self.device,
            updater=self.updater,
            heartbeats=self.heartbeats,
            delivery=self.delivery,
            dataplane=self.dataplane,
        )
        await self._listen(stack)

    def _spans(self, stack: contextlib.AsyncExitStack) -> Spans | None:
        if not self.settings.traces.endpoint:
            return None
        from edge_agent.serving.spans import Spans  # OpenTelemetry, where it is asked for
        from penstock.process.tracing import Tracer

        spans = Spans(Tracer(self.settings.traces, "penstock-agent"))
        stack.push_async_callback(asyncio.to_thread, spans.close)
        return spans

    def _links(self, stack: contextlib.AsyncExitStack, spans: Spans | None) -> tuple[FleetLink, Escalator]:
        """Make the connections to the core; nothing is dialled before the first call."""
        settings = self.settings
        link = FleetLink(
            settings.core,
            timeout_s=settings.heartbeat.timeout_s,
            token=settings.token,
            tls=settings.tls,
            link=settings.link,
        )
        stack.push_async_callback(link.close)
        escalator = Escalator(
            settings.core, settings.escalation, token=settings.token, tls=settings.tls, link=settings.link, spans=spans
        )
        stack.push_async_callback(escalator.close)
        return link, escalator

    def _hosting(self, outcomes: Outcomes) -> Hosting:
        limits, cascade = self.settings.limits, self.settings.cascade
        return Hosting(
            outcomes,
            run_length=cascade.audit_run_length,
            threads=limits.threads,
            max_queue_rows=limits.max_queue_rows,
            drain_s=limits.drain_s,
            max_harm_of=lambda model: cascade.max_harm_of.get(model, cascade.max_harm),
            metric_of=lambda model: cascade.metric_of.get(model, ""),
            generation=self.settings.generation,
            log_settings=self.settings.log,
        )

    def _text_plane(self, stack: contextlib.AsyncExitStack) -> TextPlane:
        settings = self.settings
        cloud = CloudTexts(
            settings.escalation.text_url or parse_registry(settings.registry).server,
            settings.escalation,
            settings.generation.remote,
            token=settings.token,
            tls=settings.tls,
        )
        stack.push_async_callback(cloud.close)
        return TextPlane(
            self.dataplane,
            cloud,
            settings.cascade,
            settings.generation.limits,
            max_audits=settings.escalation.max_text_audits,
        )

    def _delivery(self, outcomes: Outcomes, link: FleetLink) -> Delivery:
        settings = self.settings.outbox
        return Delivery(
            outcomes,
            lambda: Outbox(
                self._data_dir / "outbox.sqlite", settings, now=time.monotonic, place=identity.place(self._data_dir)
            ),
            link,
            self.device.device_id,
            settings,
            now=asyncio.get_running_loop().time,
            random=random.random,
            ends=EndsFile(self._data_dir / ENDS_FILE, settings.flush_s),
        )

    def _updater(self, store: Store, fetcher: Fetcher, hosting: Hosting) -> Updater:
        tools = Tools(
            store=store,
            fetcher=fetcher,
            hosting=hosting,
            settings=self.settings.update,
            boot_id=machine.boot_id(Path(self.settings.update.boot_id_file)),
            now=asyncio.get_running_loop().time,
            random=random.random,
            counted=self.delivery.counted,
            changed=lambda: self.heartbeats.changed(),
        )
        return Updater(tools, subscriptions=self.settings.subscriptions, max_models=self.settings.limits.max_models)

    def _heartbeats(self, link: FleetLink) -> Heartbeats:
        local = Local(
            reported=self.updater.reported,
            desire=self.updater.desire,
            judge=self.updater.judge,
            remove=self.updater.remove,
            queued=lambda: self.delivery.queued,
            reached=self.delivery.retry,
            instance=lambda: self.delivery.instance,
            learn=lambda counts, must_renew: self.delivery.learn(counts_instances=counts, must_renew=must_renew),
        )
        return Heartbeats(link, self.device, local, self.settings.heartbeat, random=random.random)

    async def _listen(self, stack: contextlib.AsyncExitStack) -> None:
        limits = self.settings.limits
        self.http = http_server(
            self.dataplane,
            self.texts,
            Embeddings(self.dataplane, self.settings.cascade),
            self.status,
            self.updater.unblock,
            body_s=limits.default_timeout_s,
            unclean_ends=lambda: self.delivery.ends.unclean,
        )
        stack.push_async_callback(self._stop_serving)
        await self.http.listen_unix(Path(self.settings.socket))
        if self.settings.tcp:
            host, port = parse_address(self.settings.tcp, setting="tcp")
            self.tcp_address = await self.http.listen_tcp(host, port, setting="--tcp")
        self._announce()
        stack.callback(self._withdraw)

    def _withdraw(self) -> None:
        with contextlib.suppress(OSError):  # read-only or worn out: it was never written, or cannot be taken back
            (self._data_dir / ENDPOINTS_FILE).unlink(missing_ok=True)

    async def _stop_serving(self) -> None:
        """Refuse new requests at once, let admitted ones finish within ``drain_s``, then close every connection."""
        self.dataplane.in_flight.begin_drain()
        if not await self.dataplane.in_flight.drained(self.settings.limits.drain_s):
            await self.texts.cut()  # before connections are cut: what is left says so to its clients
        await self.http.stop(_CUT_S)

    def _announce(self) -> None:
        """Say where we listen, on the log and in ``endpoints.json``, once it is true."""
        endpoints = {"socket": self.settings.socket, "tcp": self.tcp_address, "pid": os.getpid()}
        try:
            write_atomically(self._data_dir / ENDPOINTS_FILE, msgspec.json.encode(endpoints))
        except StorageError as error:  # a full disk must not keep the agent from serving
            log(_log, logging.WARNING, "endpoints not written", error=error.message)
        log(_log, logging.INFO, "ready", socket=self.settings.socket, tcp=self.tcp_address or "off",
            device=self.device.device_id, target=self.device.target, core=self.settings.core,
            trusts=self._trusts)  # fmt: skip


def serve(settings: AgentSettings) -> None:
    """Run an agent until SIGTERM or SIGINT; drains before it returns.

    Raises:
        PenstockError: it could not start, or a part of it died.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(settings))


async def _serve(settings: AgentSettings) -> None:
    stop = asyncio.Event()
    with stop_on_signals(stop):
        manager = service_manager()
        async with Agent(settings) as agent, watched(manager):
            gc.collect()
            gc.freeze()  # what start-up built lives as long as the process: later collections need not look at it
            manager.ready(f"serving on {settings.socket}")
            await agent.run(stop)
            manager.stopping()
            log(_log, logging.INFO, "draining", drain_s=settings.limits.drain_s)
    log(_log, logging.INFO, "stopped")


def _loop_factory() -> Any:
    """Choose uvloop where it is installed; asyncio's own loop serves a third fewer requests, otherwise alike."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
