"""Makes the replicas of a variant that answers with arrays, where ``penstock.policy.replica_places`` says.

Verified files in, replicas that have proved themselves out. Which variants are in memory is ``controller``'s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import msgspec

from cloud_core.settings import ServingSettings
from penstock.artifact.manifests import Variant, VariantSpec
from penstock.artifact.variant_files import VariantFiles
from penstock.hosting import embedding
from penstock.hosting.embedding import Embedding
from penstock.hosting.process_replica.messages import Model
from penstock.hosting.process_replica.replica import ProcessReplica
from penstock.hosting.process_replica.worker import load
from penstock.hosting.replica import EngineReplica, Replica, outputs_replica
from penstock.hosting.row_independence import Shaped
from penstock.hosting.rows import Tensors
from penstock.policy import parallelism, replica_places
from penstock.policy.replica_places import Placement
from penstock.process.machine import usable_cpus
from penstock.process.telemetry import LogSettings, log
from penstock.wire.tensors import TensorSpec, with_sizes_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """How one model is run: what ``[serving.models.NAME]`` says, and ``[serving]`` where it says nothing."""

    placement: Placement
    instances: int
    threads: int
    max_batch_rows: int | None
    max_delay_s: float
    max_queue_rows: int
    providers: tuple[str, ...]
    device_index: int
    cache_bytes: int = 0
    cache_ttl_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayModel:
    """A variant that is in memory, once or several times.

    Attributes:
        replicas: at least one.
        embedding: makes its rows of texts; None where it takes none.
    """

    replicas: Sequence[Replica[Tensors]]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    embedding: Embedding | None


def limits_of(settings: ServingSettings, model: str) -> ModelLimits:
    """Say how a model is run."""
    own = settings.models.get(model)
    if own is None:
        return ModelLimits(
            placement=settings.placement,
            instances=settings.replicas,
            threads=settings.threads,
            max_batch_rows=None,
            max_delay_s=settings.max_delay_s,
            max_queue_rows=settings.max_queue_rows,
            providers=(),
            device_index=0,
        )
    return ModelLimits(
        placement=own.placement or settings.placement,
        instances=settings.replicas if own.instances is None else own.instances,
        threads=settings.threads if own.threads is None else own.threads,
        max_batch_rows=own.max_batch_rows,
        max_delay_s=settings.max_delay_s if own.max_delay_s is None else own.max_delay_s,
        max_queue_rows=own.max_queue_rows or settings.max_queue_rows,
        providers=own.providers,
        device_index=own.device_index,
        cache_bytes=own.cache_bytes,
        cache_ttl_s=own.cache_ttl_s,
    )


class Replicas:
    """Makes replicas, one variant at a time."""

    def __init__(
        self,
        settings: ServingSettings,
        verified: Callable[[Variant], VariantFiles],
        loader: Executor,
        *,
        log_settings: LogSettings | None = None,
    ) -> None:
        """
        Args:
            verified: verifies the files of a variant; blocks.
            loader: runs what blocks.
            log_settings: of processes.
        """
        self._settings, self._verified, self._loader, self._log = settings, verified, loader, log_settings

    async def load(self, variant: Variant) -> ArrayModel:
        """Bring a variant into memory, as often as its settings say.

        Raises:
            PenstockError: as :func:`penstock.hosting.loading.load`. Unavailable: its process ended.
        """
        in_loader = partial(asyncio.get_running_loop().run_in_executor, self._loader)
        files = await in_loader(self._verified, variant)
        limits = limits_of(self._settings, variant.spec.model)
        model = _model(variant.spec, files, limits)
        place = replica_places.before_loading(
            limits.placement,
            size_bytes=variant.weights.size + sum(file.size for file in variant.files),
            has_device=any(provider != "cpu" for provider in model.providers or (variant.spec.provider,)),
        )
        if place.is_inline is not False:
            first = await in_loader(self._in_core, model)
            if place.is_inline is None:
                place = replica_places.when_measured(first.longest_s, hand_over_s=self._settings.inline_below_s)
            if place.is_inline:
                replicas = await in_loader(self._filled, first, model, limits.instances)
                return await self._described(variant, files, replicas, first.engine)
            await first.close()
        log(_log, logging.DEBUG, "in processes of its own", model=variant.spec.model, why=place.why)
        workers = await self._in_processes(variant, model, limits.instances)
        return await self._described(variant, files, workers, workers[0].facts)

    def _in_core(self, model: Model) -> EngineReplica[Tensors]:
        return outputs_replica(load(model), on_loop_below_s=self._settings.inline_below_s)

    def _filled(self, first: EngineReplica[Tensors], model: Model, instances: int) -> list[EngineReplica[Tensors]]:
        """Load more of what runs in threads, until the CPUs are filled: what runs on the event loop is alone there."""
        replicas = [first]
        wanted = instances or parallelism.instances(model.cpus, first.threads)
        again = msgspec.structs.replace(model, threads=first.threads, rows_mixed=first.rows_mixed)
        while len(replicas) < wanted and not first.is_always_short:
            replicas.append(self._in_core(again))
        return replicas

    async def _in_processes(self, variant: Variant, model: Model, instances: int) -> list[ProcessReplica]:
        """Start one worker, which finds out how many threads it needs, and then as many more as fill the CPUs."""
        one_at_a_time = asyncio.Lock()
        verified = [model]  # just now, and of use once: a later worker is started after who knows how long

        def model_now() -> Model:
            return verified.pop() if verified else _with_files(model, self._verified(variant))

        def replica() -> ProcessReplica:
            return ProcessReplica(
                variant.spec.model,
                model_now,
                settings=self._settings.worker,
                hang_s=self._settings.stall_s,
                log_settings=self._log,
                starting=one_at_a_time,
            )

        workers = [replica()]
        try:
            facts = await workers[0].start()
            wanted = instances or parallelism.instances(model.cpus, facts.threads)
            while len(workers) < wanted:
                workers.append(replica())
                await workers[-1].start(like=facts)
        except BaseException:
            await asyncio.shield(_closed(workers))
            raise
        return workers

    async def _described(
        self, variant: Variant, files: VariantFiles, replicas: Sequence[Replica[Tensors]], shaped: Shaped
    ) -> ArrayModel:
        """Add what requests are checked by, and how texts become rows."""
        loop, spec, rows = asyncio.get_running_loop(), variant.spec, replicas[0].max_batch
        try:
            texts = await loop.run_in_executor(self._loader, lambda: embedding.load(spec, files, max_rows=rows))
        except BaseException:
            await asyncio.shield(_closed(replicas))
            raise
        return ArrayModel(
            replicas=replicas,
            inputs=with_sizes_of(shaped.inputs, spec.inputs),
            outputs=tuple(shaped.outputs),
            embedding=texts,
        )


def _model(spec: VariantSpec, files: VariantFiles, limits: ModelLimits) -> Model:
    if limits.max_batch_rows is not None:
        spec = msgspec.structs.replace(spec, max_batch=min(spec.max_batch, limits.max_batch_rows))
    return Model(
        spec=spec,
        weights=str(files.weights),
        golden=files.golden,
        is_golden_damaged=files.is_golden_damaged,
        providers=limits.providers,
        device_index=limits.device_index,
        threads=limits.threads,
        cpus=usable_cpus(),
    )


def _with_files(model: Model, files: VariantFiles) -> Model:
    return msgspec.structs.replace(
        model, weights=str(files.weights), golden=files.golden, is_golden_damaged=files.is_golden_damaged
    )


async def _closed(replicas: Sequence[Replica[Tensors]]) -> None:
    await asyncio.gather(*(replica.close() for replica in replicas))
