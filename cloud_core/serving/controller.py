"""Keeps in memory what the registry says should be served: observes, plans (``policy.placement``), takes one step.

Level-triggered: waking it at any time, twice, or after a failure is harmless. A version that cannot be loaded is
reported with its reason and tried again later; it never stops the others. Loads run one at a time in one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from cloud_core.policy.placement import plan_loading
from cloud_core.policy.traffic import Traffic
from cloud_core.registry.registry import ModelVersion, Registry
from cloud_core.serving.counters import Measures
from cloud_core.serving.demand import Demand
from cloud_core.serving.lanes import Lanes
from cloud_core.serving.replicas import ModelLimits, Replicas, limits_of
from cloud_core.serving.response_cache import ResponseCache
from cloud_core.serving.router import Router, Served
from cloud_core.serving.served_text import ServedText
from cloud_core.settings import ServingSettings
from penstock.artifact.manifests import Variant
from penstock.errors import PenstockError, Unavailable
from penstock.hosting.generation import text_model
from penstock.hosting.generation.managed.vllm import ManagedServers
from penstock.hosting.replica_queue import ReplicaQueue
from penstock.policy.fair_shares import FairShares
from penstock.process.machine import resident_bytes
from penstock.process.telemetry import LogSettings, log
from penstock.runtime import TEXT_ENGINES
from penstock.wire.inference import ModelState

_log = logging.getLogger(__name__)


class Controller:
    """``settled`` is set once everything that should be loaded is, or has failed: the server may say it is ready."""

    def __init__(
        self,
        registry: Registry,
        settings: ServingSettings,
        measures: Measures,
        now: Callable[[], float],
        *,
        log_settings: LogSettings | None = None,
        managed: ManagedServers | None = None,
        shares: Callable[[], FairShares | None] = lambda: None,
    ) -> None:
        """
        Args:
            log_settings: of processes that run models.
            managed: models that servers of ours run.
            shares: makes the shares of tenants in a replica's time; None where nobody tells them apart.
        """
        served: dict[str, Served | ServedText] = {}
        self.settled = asyncio.Event()
        self.demand = Demand(registry, settings, served, now, wake=self.wake, is_settled=self.settled.is_set)
        self.lanes = Lanes(settings.traffic, served)
        self.router = Router(registry, measures, self.demand, self.lanes, served)
        self._registry, self._settings, self._measures, self._now = registry, settings, measures, now
        self._log_settings, self._managed, self._shares = log_settings, managed, shares
        self._wake = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._replicas = Replicas(settings, registry.verified_files, self._loader, log_settings=log_settings)
        registry.on_change(self.changed)

    def __repr__(self) -> str:
        return f"Controller({len(self.router.served)} loaded, {self.demand!r})"

    async def run(self) -> None:
        """Reconcile until cancelled."""
        while True:
            self._wake.clear()
            waiting, self._waiting = self._waiting, []
            wake_at = await self.reconcile()
            self.settled.set()
            for one in waiting:
                if not one.done():
                    one.set_result(None)
            delay_s = None if wake_at is None else max(0.0, wake_at - self._now())
            try:
                async with asyncio.timeout(delay_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def reconcile(self) -> float | None:
        """Load and unload until nothing is left to do; return when to look again."""
        while True:
            plan = plan_loading(
                tuple(self.demand.candidates().values()),
                tuple(self.router.served),
                max_loaded=self._settings.max_loaded_models,
                max_bytes=self._settings.max_loaded_bytes,
                now=self._now(),
            )
            self.demand.no_slot = frozenset(plan.refused)
            for digest in plan.refused:
                self.demand.answered(digest)
            for digest in plan.unload:
                await self._unload(digest)
            if plan.load is None:
                return plan.wake_at
            await self._load(plan.load)

    async def reconciled(self, timeout_s: float) -> None:
        """Wait until :meth:`run` has loaded and unloaded what is to be by now, or found that it cannot.

        Raises:
            Unavailable: not within ``timeout_s``; it goes on.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._wake.set()
        try:
            async with asyncio.timeout(timeout_s):
                await done
        except TimeoutError:
            message = f"models are still being loaded after {timeout_s:g} s (serving.traffic.load_s); it goes on"
            raise Unavailable(message, retry_after_s=self._settings.retry_after_s) from None

    async def close(self, timeout_s: float) -> bool:
        """Unload everything; whether all threads came back."""
        for shadow in self.lanes.shadows.values():
            shadow.give_up()
        served = [self.router.take_out(digest) for digest in tuple(self.router.served)]
        closed = await asyncio.gather(*(one.close(timeout_s) for one in served if one is not None))
        self._loader.shutdown(wait=False, cancel_futures=True)
        return all(closed)

    def steer(self, traffic: Mapping[str, Traffic], otherwise: Traffic) -> None:
        """Take in what operators said, by model; ``otherwise`` is for models of which nothing was said."""
        shadows: dict[str, str] = {}
        for said in traffic.values():
            if said.shadow is not None:
                with contextlib.suppress(PenstockError):  # deleted from the registry since
                    shadows[said.shadow.digest] = self.variant_of(said.shadow.digest).digest
        self.demand.steer(traffic, otherwise)
        self.lanes.steer(traffic, shadows)
        self.changed()

    def want(self, version: ModelVersion) -> None:
        """Load a version that may be in memory, as if a request had come for it, and though it failed before."""
        variant = self.variant_of(version.digest)
        self.demand.retry(variant.digest)
        if variant.digest not in self.router.served:
            self.demand.ask(version, variant)

    def changed(self) -> None:
        """Look again: versions, defaults or traffic may have moved."""
        self.router.forget()
        self._wake.set()

    def wake(self) -> None:
        """Look again whether something is to be loaded."""
        self._wake.set()

    def variant_of(self, digest: str) -> Variant:
        """Return the cloud variant of an artifact; see :meth:`Demand.variant_of`."""
        return self.demand.variant_of(digest)

    def state_of(self, version: ModelVersion) -> ModelState:
        """Say whether a version is served, and why not."""
        state, reason = self.demand.state(version)
        return ModelState(
            model=version.model,
            version=version.tag or version.digest,
            state=state,
            reason=reason,
            is_default=version.is_default,
            percent=self.lanes.percent(version),
            is_certified=self._registry.certificate_of(version.digest) is not None,
        )

    def properties(self, version: ModelVersion) -> dict[str, str]:
        """Say what clients are told of a model beside its tensors: what a request without a version gets, and by what
        name this version can be asked for whatever becomes of its tag."""
        default = self._registry.resolve(version.model)
        certified = self._registry.certificate_of(version.digest) is not None
        found = {
            "default_version": default.tag or default.digest,
            "digest": version.digest,
            "certified": str(certified).lower(),
        }
        split = self.lanes.splits.get(version.model)
        if split is not None:
            arms = {"base": self.lanes.percent(default), **{arm.name: arm.percent for arm in split.arms}}
            found["traffic"] = ", ".join(f"{name} {percent:g}%" for name, percent in arms.items())
        return found

    def limits_of(self, variant: Variant) -> ModelLimits:
        """Say how a variant's model is run."""
        return limits_of(self._settings, variant.spec.model)

    def index(self) -> list[ModelState]:
        """List every tagged version of every model."""
        return [self.state_of(v) for model in self._registry.models() for v in self._registry.versions(model)]

    async def _load(self, digest: str) -> None:
        variant = self.demand.variant_named(digest)
        self.demand.loading = digest
        before = resident_bytes()
        try:
            served = await (self._load_text if variant.spec.engine in TEXT_ENGINES else self._load_arrays)(variant)
        except Exception as error:  # whatever a model file does to its runtime, the server goes on
            self.demand.failed(digest, error)
        else:
            self.demand.loaded(digest, resident_bytes() - before + _elsewhere_bytes(served))
            self.router.put(served)
            log(_log, logging.INFO, "serving", model=variant.spec.model, variant=digest, served=repr(served))
        self.demand.loading = ""
        self.demand.answered(digest)

    async def _load_text(self, variant: Variant) -> ServedText:
        loop = asyncio.get_running_loop()
        files = await loop.run_in_executor(self._loader, self._registry.verified_files, variant)
        model = await text_model.load(
            variant.spec,
            files,
            self._settings.generation,
            measures=self._measures.generation(variant.spec.model, variant.digest),
            log_settings=self._log_settings,
            managed=self._managed,
        )
        return ServedText(variant, model, now=self._now())

    async def _load_arrays(self, variant: Variant) -> Served:
        model = await self._replicas.load(variant)
        limits = self.limits_of(variant)
        measures = self._measures.batch(variant.spec.model, variant.digest)
        queues = [
            ReplicaQueue(
                replica,
                max_queue_rows=limits.max_queue_rows,
                max_delay_s=limits.max_delay_s,
                measures=measures,
                shares=self._shares(),
            )
            for replica in model.replicas
        ]
        return Served(
            variant,
            tuple(queues),
            inputs=model.inputs,
            outputs=model.outputs,
            now=self._now(),
            embedding=model.embedding,
            cache=self._cache(variant, limits),
        )

    def _cache(self, variant: Variant, limits: ModelLimits) -> ResponseCache | None:
        if not limits.cache_bytes:
            return None
        name = variant.spec.model
        measures = self._measures.cache(name, variant.digest)
        return ResponseCache(name, limits.cache_bytes, ttl_s=limits.cache_ttl_s, measures=measures, now=self._now)

    async def _unload(self, digest: str) -> None:
        served = self.router.take_out(digest)
        if served is None:
            return
        log(_log, logging.INFO, "unloading", model=served.variant.spec.model, variant=digest)
        if not await served.close(self._settings.drain_s):
            # its thread still runs a batch: the memory is freed when that returns
            log(_log, logging.WARNING, "unloaded variant still runs a batch", variant=digest)


def _elsewhere_bytes(served: Served | ServedText) -> int:
    """Count the memory of a variant's own processes."""
    if not isinstance(served, Served):
        return 0
    return sum(resident_bytes(worker.pid) for worker in served.workers() if worker.pid is not None)
