"""Keeps in memory what the registry says should be served: observes, plans (``policy.placement``), takes one step.

Level-triggered: waking it at any time, twice, or after a failure is harmless. A version that cannot be loaded is
reported with its reason and tried again later; it never stops the others. Loads run one at a time in one thread.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from cloud_core.policy.placement import Candidate, plan_loading
from cloud_core.registry.registry import ModelVersion, Registry
from cloud_core.serving.counters import Measures
from cloud_core.serving.router import Router, Served
from cloud_core.serving.served_text import ServedText
from cloud_core.settings import ServingSettings
from penstock.artifact.manifests import Variant
from penstock.errors import ArtifactError, Internal, NotFound, PenstockError, Unavailable
from penstock.hosting import embedding, loading
from penstock.hosting.embedding import Embedding
from penstock.hosting.generation import text_model
from penstock.hosting.generation.managed.vllm import ManagedServers
from penstock.hosting.replica import EngineReplica, outputs_replica
from penstock.hosting.replica_queue import ReplicaQueue
from penstock.hosting.rows import Tensors
from penstock.policy import parallelism
from penstock.policy.retry import Backoff
from penstock.process.machine import usable_cpus
from penstock.process.telemetry import LogSettings, log
from penstock.runtime import TEXT_ENGINES
from penstock.wire.inference import ModelState, Readiness
from penstock.wire.tensors import with_sizes_of

_log = logging.getLogger(__name__)
_BACKOFF = Backoff(base_s=2.0, factor=4.0, max_s=300.0)
_MAX_ASKED = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    reason: str
    attempts: int
    retry_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    version: ModelVersion
    at: float | None  # None once it was answered: the version stays known though no tag may name it


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
    ) -> None:
        """
        Args:
            log_settings: of processes that generate.
            managed: models that servers of ours run.
        """
        self.router = Router(registry, measures, variant_of=self.variant_of, ask=self._ask)
        self.settled = asyncio.Event()
        self._registry, self._settings, self._measures, self._now = registry, settings, measures, now
        self._log_settings, self._managed = log_settings, managed
        self._wake = asyncio.Event()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self._variants: dict[str, Variant] = {}
        self._asked: dict[str, _Asked] = {}
        self._failures: dict[str, _Failure] = {}
        self._no_slot: frozenset[str] = frozenset()
        self._loading = ""
        registry.on_change(self._changed)

    def __repr__(self) -> str:
        return f"Controller({len(self.router.served)} loaded, {len(self._failures)} failed)"

    async def run(self) -> None:
        """Reconcile until cancelled."""
        while True:
            self._wake.clear()
            wake_at = await self.reconcile()
            self.settled.set()
            delay_s = None if wake_at is None else max(0.0, wake_at - self._now())
            try:
                async with asyncio.timeout(delay_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def reconcile(self) -> float | None:
        """Load and unload until nothing is left to do; return when to look again."""
        while True:
            candidates = self._candidates()
            plan = plan_loading(
                tuple(candidates.values()),
                tuple(self.router.served),
                max_loaded=self._settings.max_loaded_models,
                now=self._now(),
            )
            self._no_slot = frozenset(plan.refused)
            for digest in plan.refused:
                self._answered(digest)
            for digest in plan.unload:
                await self._unload(digest)
            if plan.load is None:
                return plan.wake_at
            await self._load(plan.load)

    async def close(self, timeout_s: float) -> bool:
        """Unload everything; whether all threads came back."""
        served = [self.router.take_out(digest) for digest in tuple(self.router.served)]
        closed = await asyncio.gather(*(one.close(timeout_s) for one in served if one is not None))
        self._loader.shutdown(wait=False, cancel_futures=True)
        return all(closed)

    def variant_of(self, digest: str) -> Variant:
        """Return the cloud variant of an artifact; cached, since a digest never means anything else.

        Raises:
            NotFound: it has none. Internal: its files were damaged since they were pushed.
            SignatureError: nobody that this core trusts signed it.
        """
        variant = self._variants.get(digest)
        if variant is None:
            variant = self._variants[digest] = self._read_variant(digest)
        return variant

    def state_of(self, version: ModelVersion) -> ModelState:
        """Say whether a version is served, and why not."""
        state, reason = self._state(version)
        return ModelState(model=version.model, version=version.tag or version.digest, state=state, reason=reason)

    def index(self) -> list[ModelState]:
        """List every tagged version of every model."""
        return [self.state_of(v) for model in self._registry.models() for v in self._registry.versions(model)]

    def _read_variant(self, digest: str) -> Variant:
        try:
            artifact = self._registry.artifact(digest)
        except ArtifactError as error:
            raise Internal(f"the artifact is damaged here: {error.message}") from error
        self._registry.check_signed(artifact)
        try:
            return artifact.variant("cloud")
        except ArtifactError as error:
            raise NotFound(f"this version runs on devices only: {error.message}") from error

    def _state(self, version: ModelVersion) -> tuple[Readiness, str]:
        try:
            digest = self.variant_of(version.digest).digest
        except PenstockError as error:
            return "UNAVAILABLE", error.message
        if digest in self.router.served:
            problem = self.router.served[digest].problem
            return ("UNAVAILABLE", problem) if problem else ("READY", "")
        if digest in self._failures:
            return "UNAVAILABLE", self._failures[digest].reason
        if digest in self._no_slot:
            return "UNAVAILABLE", self._no_slot_reason()
        asked = self._asked.get(digest)
        if digest == self._loading or not self.settled.is_set() or (asked is not None and asked.at is not None):
            return "LOADING", "being loaded"
        return "UNAVAILABLE", "not loaded; a request for it loads it"

    def _ask(self, version: ModelVersion, variant: Variant) -> Unavailable:
        what = f"model {version.model!r} version {version.tag or version.digest!r}"
        failure = self._failures.get(variant.digest)
        if failure is not None:
            retry_after_s = max(1.0, failure.retry_at - self._now())
            return Unavailable(f"{what} could not be loaded: {failure.reason}", retry_after_s=retry_after_s)
        if variant.digest in self._no_slot:
            # asked again below: a slot may have come free since
            message = f"{what} is not loaded: {self._no_slot_reason()}"
        else:
            message = f"{what} is being loaded; try again"
        asked = self._asked.get(variant.digest)
        if asked is None or asked.at is None:
            if len(self._asked) >= _MAX_ASKED:
                self._asked.pop(next(iter(self._asked)))
            self._asked[variant.digest] = _Asked(version=version, at=self._now())
            self._wake.set()
        return Unavailable(message, retry_after_s=self._settings.retry_after_s)

    def _no_slot_reason(self) -> str:
        return f"all {self._settings.max_loaded_models} slots (serving.max_loaded_models) are taken by default versions"

    def _changed(self) -> None:
        self.router.forget()
        self._wake.set()

    def _candidates(self) -> dict[str, Candidate]:
        found: dict[str, Candidate] = {}
        known: dict[str, Variant] = {}
        for version in self._known_versions():
            try:
                variant = known[version.digest] = self.variant_of(version.digest)
            except PenstockError as error:
                # a version for devices only is nothing to warn of; a damaged one is
                level = logging.DEBUG if isinstance(error, NotFound) else logging.WARNING
                what = f"{version.model}:{version.tag or version.digest}"
                log(_log, level, "cannot be served", version=what, reason=error.message)
                continue
            found[variant.digest] = _joined(found.get(variant.digest), self._candidate(version, variant))
        self._variants = known
        self._failures = {digest: failure for digest, failure in self._failures.items() if digest in found}
        return found

    def _known_versions(self) -> list[ModelVersion]:
        registry = self._registry
        versions = [v for model in registry.models() for v in (registry.resolve(model), *registry.versions(model))]
        for digest, asked in tuple(self._asked.items()):
            try:
                versions.append(registry.resolve(asked.version.model, asked.version.digest))
            except NotFound:
                del self._asked[digest]
        return versions

    def _candidate(self, version: ModelVersion, variant: Variant) -> Candidate:
        served = self.router.served.get(variant.digest)
        asked = self._asked.get(variant.digest)
        failure = self._failures.get(variant.digest)
        return Candidate(
            digest=variant.digest,
            is_default=version.is_default,
            pushed_at=version.pushed_at.timestamp(),
            is_loaded=served is not None,
            is_busy=served is not None and served.inflight > 0,
            last_used_at=served.last_used_at if served else 0.0,
            asked_at=asked.at if asked else None,
            retry_at=failure.retry_at if failure else None,
        )

    async def _load(self, digest: str) -> None:
        variant = next(v for v in self._variants.values() if v.digest == digest)
        self._loading = digest
        try:
            served = await (self._load_text if variant.spec.engine in TEXT_ENGINES else self._load_arrays)(variant)
        except Exception as error:  # whatever a model file does to its runtime, the server goes on
            self._failed(digest, error)
        else:
            self._failures.pop(digest, None)
            self.router.put(served)
            log(_log, logging.INFO, "serving", model=variant.spec.model, variant=digest, served=repr(served))
        self._loading = ""
        self._answered(digest)

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
        loop = asyncio.get_running_loop()
        return self._serve(variant, *await loop.run_in_executor(self._loader, self._load_replicas, variant))

    def _load_replicas(self, variant: Variant) -> tuple[list[EngineReplica[Tensors]], Embedding | None]:
        settings = self._settings
        files = self._registry.verified_files(variant)
        cpus = usable_cpus()
        loaded = loading.load(variant.spec, files, threads=settings.threads, cpus=cpus)
        replicas = [outputs_replica(loaded, on_loop_below_s=settings.inline_below_s)]
        texts = embedding.load(variant.spec, files, max_rows=loaded.max_batch)
        wanted = settings.replicas or parallelism.instances(cpus, loaded.threads)
        while len(replicas) < wanted and not replicas[0].is_always_short:
            loaded = loading.load(variant.spec, files, threads=loaded.threads)
            replicas.append(outputs_replica(loaded, on_loop_below_s=settings.inline_below_s))
        return replicas, texts

    def _serve(self, variant: Variant, replicas: list[EngineReplica[Tensors]], texts: Embedding | None) -> Served:
        settings = self._settings
        measures = self._measures.batch(variant.spec.model, variant.digest)
        queues = [
            ReplicaQueue(
                replica,
                max_queue_rows=settings.max_queue_rows,
                max_delay_s=settings.max_delay_s,
                measures=measures,
            )
            for replica in replicas
        ]
        engine = replicas[0].engine
        inputs = with_sizes_of(engine.inputs, variant.spec.inputs)
        return Served(variant, tuple(queues), inputs=inputs, outputs=engine.outputs, now=self._now(), embedding=texts)

    async def _unload(self, digest: str) -> None:
        served = self.router.take_out(digest)
        if served is None:
            return
        log(_log, logging.INFO, "unloading", model=served.variant.spec.model, variant=digest)
        if not await served.close(self._settings.drain_s):
            # its thread still runs a batch: the memory is freed when that returns
            log(_log, logging.WARNING, "unloaded variant still runs a batch", variant=digest)

    def _failed(self, digest: str, error: Exception) -> None:
        attempts = self._failures[digest].attempts + 1 if digest in self._failures else 0
        reason = error.message if isinstance(error, PenstockError) else f"{type(error).__name__}: {error}"
        retry_at = self._now() + _BACKOFF.delay_s(attempts, random.random(), retry_after_s=1.0)
        self._failures[digest] = _Failure(reason=reason, attempts=attempts, retry_at=retry_at)
        log(_log, logging.ERROR, "cannot load", variant=digest, reason=reason, attempts=attempts + 1)

    def _answered(self, digest: str) -> None:
        asked = self._asked.get(digest)
        if asked is not None:
            self._asked[digest] = replace(asked, at=None)


def _joined(one: Candidate | None, other: Candidate) -> Candidate:
    """Versions that share a variant: it is as pinned and as new as any of them."""
    if one is None:
        return other
    is_default = one.is_default or other.is_default
    return replace(other, is_default=is_default, pushed_at=max(one.pushed_at, other.pushed_at))
