"""From the model and version of a request to the loaded variant that answers it, and to one of its replicas.

Owns what is loaded and a bounded cache of routes, so that a request costs one dictionary look-up. Loads nothing:
``controller`` puts variants in and takes them out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Callable, Coroutine, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cloud_core.policy.routing import least_loaded
from cloud_core.policy.traffic import BASE, Arm, Split, parameter_of, pick
from cloud_core.registry.registry import ModelVersion, Registry
from cloud_core.serving.counters import Measures, RouteMeasures
from cloud_core.serving.lanes import ArmMeasures, Lane, Lanes, sticky_key
from cloud_core.serving.response_cache import ResponseCache
from cloud_core.serving.served_text import ServedText
from penstock.artifact.manifests import Variant
from penstock.errors import InvalidInput, NotFound, Unavailable
from penstock.hosting.embedding import Embedding
from penstock.hosting.process_replica.replica import ProcessReplica, WorkerCounts
from penstock.hosting.replica import Chunk
from penstock.hosting.replica_queue import ReplicaQueue
from penstock.hosting.rows import Tensors
from penstock.process.telemetry import log
from penstock.wire.context import RequestContext
from penstock.wire.inference import Parameter
from penstock.wire.tensors import Array, TensorSpec, check_inputs, numpy_dtype

if TYPE_CHECKING:  # it looks at what is served
    from cloud_core.serving.demand import Demand

_log = logging.getLogger(__name__)
_MAX_ROUTES = 4096


class Served:
    """A loaded variant: its specs and the queues of its replicas (at least one)."""

    def __init__(
        self,
        variant: Variant,
        queues: tuple[ReplicaQueue[Tensors], ...],
        *,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        now: float,
        embedding: Embedding | None = None,
        cache: ResponseCache | None = None,
    ) -> None:
        """
        Args:
            embedding: makes its rows of texts; None where it takes none.
            cache: of its answers; None where they are not cached.
        """
        self.variant, self.queues, self.embedding, self.cache = variant, queues, embedding, cache
        self.last_used_at = now
        self.inflight_bytes = self.inflight = 0  # of admitted requests
        self._emptied: asyncio.Event | None = None  # made when it is closed
        self._usable, self._problem, self._is_closing = queues, "", False
        self.on_change: Callable[[], None] = lambda: None
        for replica in self._workers():
            replica.on_change(self._look)
        self.inputs = inputs
        self.output_names = frozenset(spec.name for spec in outputs)
        self._has_free_shapes = any(-1 in spec.shape[1:] for spec in inputs)
        self._plain_input = _plain(inputs)

    def __repr__(self) -> str:
        return f"Served({self.variant.spec.model!r}, {self.variant.digest}, {len(self.queues)} replicas)"

    def enter(self) -> None:
        """Note that a request was admitted."""
        self.inflight += 1

    def leave(self) -> None:
        """Note that a request is over."""
        self.inflight -= 1
        if self._emptied is not None and not self.inflight:
            self._emptied.set()

    @property
    def problem(self) -> str:
        """Say why it cannot answer now; "" while it can, as always for engines in this process."""
        return self._problem

    def is_well(self, *, since: float) -> bool:
        """Say whether every queue has its owner, and no run has gone on since before a time in this process.

        A worker process that hangs is ended and started again, and is no reason to restart this one.
        """
        return all(
            queue.is_alive and (queue.replica.is_isolated or queue.running_since is None or queue.running_since > since)
            for queue in self.queues
        )

    def drained_after_s(self) -> float:
        """Estimate when the replica that is free first has done what waits and runs there; 0.0 where nothing does."""
        return min([queue.drained_after_s() for queue in self.queues])

    def check_room(self) -> None:
        """
        Raises:
            QueueFull: no replica has room for one more row. Unavailable: no replica can answer, nor will one soon.
        """
        if self._problem:
            raise min((worker.unavailable() for worker in self._workers()), key=lambda e: e.retry_after_s or math.inf)
        if self.cache is None:  # whether a request needs the room is known when its inputs are
            self.pick().check_room()

    def pick(self) -> ReplicaQueue[Tensors]:
        """Choose the replica that takes the next chunk, among those that can answer."""
        queues = self._usable
        if len(queues) == 1:
            return queues[0]
        return queues[least_loaded([queue.outstanding_rows for queue in queues])]

    def infer(self, chunk: Chunk, context: RequestContext) -> Coroutine[Any, Any, Tensors]:
        """Queue checked rows before one of its replicas. Raises as :meth:`ReplicaQueue.infer`."""
        queue = self._usable[0] if len(self._usable) == 1 else self.pick()
        wanted = chunk.outputs or ()
        return queue.infer(
            chunk,
            shape_key=self.shape_key(chunk.inputs, wanted) if self._has_free_shapes else wanted,
            deadline=context.deadline,
            priority=context.priority,
            tenant=context.tenant,
        )

    def check_inputs(self, inputs: Mapping[str, Array]) -> int:
        """Count the rows of a request whose inputs fit; see :func:`penstock.wire.tensors.check_inputs`.

        Raises:
            InvalidInput: which input is wrong, and what was expected.
        """
        plain = self._plain_input
        if plain is not None and len(inputs) == 1:
            name, dtype, tail = plain
            array = inputs.get(name)
            if array is not None and array.dtype == dtype and array.shape[1:] == tail and len(array.shape) > len(tail):
                rows: int = array.shape[0]
                if rows:
                    return rows
        return check_inputs(inputs, self.inputs)

    def shape_key(self, inputs: Mapping[str, Array], outputs: tuple[str, ...]) -> Hashable:
        """Chunks with equal keys can run as one batch: same shapes beside the batch, same outputs wanted."""
        if not self._has_free_shapes:
            return outputs
        return (outputs, *(inputs[spec.name].shape[1:] for spec in self.inputs))

    def check_outputs(self, wanted: tuple[str, ...]) -> None:
        """
        Raises:
            InvalidInput: an output that the model does not have.
        """
        if not self.output_names.issuperset(wanted):
            unknown = sorted(set(wanted) - self.output_names)
            raise InvalidInput(
                f"outputs: no output named {unknown[0]!r}; the model has {', '.join(sorted(self.output_names))}",
                field="outputs",
            )

    def workers(self) -> list[WorkerCounts]:
        """Say what became of the processes of each of its replicas; none for engines in this process."""
        return [worker.counts() for worker in self._workers()]

    def _workers(self) -> list[ProcessReplica]:
        return [queue.replica for queue in self.queues if isinstance(queue.replica, ProcessReplica)]

    def _look(self) -> None:
        """Note which replicas can answer: asked when that changes, and not with every request."""
        if self._is_closing:
            return
        healths = [(queue, queue.replica.health()) for queue in self.queues]
        well = tuple(queue for queue, health in healths if health.is_well)
        usable = well or tuple(queue for queue, health in healths if health.is_brief)
        had_problem, self._problem = self._problem, "" if usable else healths[0][1].why
        self._usable = usable or self.queues
        if bool(had_problem) == bool(self._problem):
            return
        model, variant = self.variant.spec.model, self.variant.digest
        if self._problem:
            log(_log, logging.ERROR, "variant taken out", model=model, variant=variant, why=self._problem)
        else:
            log(_log, logging.INFO, "variant is back", model=model, variant=variant)
        self.on_change()

    async def close(self, timeout_s: float) -> bool:
        """Finish what was admitted, then release the replicas; whether all of them could be."""
        self._is_closing = True
        if self.inflight:  # some of it may not be in a queue yet: its body is still on the way
            self._emptied = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._emptied.wait()
        error = Unavailable("the model is being unloaded", retry_after_s=1.0)
        closed = await asyncio.gather(*(queue.finish(error, timeout_s) for queue in self.queues))
        if self.cache is not None:
            self.cache.clear()
        return all(closed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a model and version lead. ``parameters`` go into every response.

    Attributes:
        lane: what else happens to its requests; None for most models, of whose traffic nothing was said.
    """

    version: ModelVersion
    served: Served | ServedText
    measures: RouteMeasures | ArmMeasures
    parameters: Mapping[str, Parameter]
    lane: Lane | None = None


def _plain(specs: tuple[TensorSpec, ...]) -> tuple[str, np.dtype[Any], tuple[int, ...]] | None:
    """Name, dtype and row shape of the only input, where one comparison each decides whether an array fits."""
    if len(specs) != 1 or specs[0].datatype == "BYTES" or specs[0].shape[:1] != (-1,) or -1 in specs[0].shape[1:]:
        return None
    return specs[0].name, numpy_dtype(specs[0].datatype), specs[0].shape[1:]


class Router:
    """Asks ``demand`` what to answer when a request comes for a version that is known but not loaded."""

    def __init__(
        self,
        registry: Registry,
        measures: Measures,
        demand: Demand,
        lanes: Lanes,
        served: dict[str, Served | ServedText],
    ) -> None:
        """
        Args:
            served: what is in memory, by the variant's digest.
        """
        self.served = served
        self.lanes = lanes
        self._registry, self._measures, self._demand = registry, measures, demand
        self._routes: dict[tuple[str, str], Route] = {}

    def route(self, model: str, version: str, context: RequestContext) -> Route:
        """
        Raises:
            NotFound: no such model or version, or one for devices only. Unavailable: known, but not loaded.
            Internal: its files were damaged since they were pushed.
        """
        return self._routes.get((model, version)) or self._resolve(model, version, context)

    def moved(self, route: Route, parameters: Mapping[str, Parameter], size_bytes: int) -> Route:
        """Let an admitted request go to another arm, where one of its parameters says so.

        Raises:
            QueueFull: there is no room.
        """
        lane = route.lane
        split = self.lanes.splits.get(route.version.model)
        if lane is None or not lane.parameter or split is None:
            return route
        after = self._divided(split, route.version.model, str(parameters.get(lane.parameter, "")))
        if after is not route:
            after.served.check_room()
            for one, sign in ((route.served, -1), (after.served, 1)):
                one.inflight_bytes += sign * size_bytes
            after.served.enter()
            route.served.leave()
        return after

    def put(self, served: Served | ServedText) -> None:
        self.served[served.variant.digest] = served
        if isinstance(served, Served):
            served.on_change = self.forget
        self.forget()

    def take_out(self, digest: str) -> Served | ServedText | None:
        """Take a variant out; no request is routed there after this."""
        self.forget()
        return self.served.pop(digest, None)

    def forget(self) -> None:
        """Forget how names were resolved: tags, defaults or traffic may have moved."""
        self._routes.clear()

    def _resolve(self, model: str, version: str, context: RequestContext) -> Route:
        split = None if version else self.lanes.splits.get(model)
        if split is not None:
            if parameter_of(split.sticky):  # which is known when the payload is: see moved()
                return self.lanes.undecided(self._arm(split, model, None), split)
            return self._divided(split, model, sticky_key(split.sticky, context))
        found = self._registry.resolve(model, version)
        route = self._found(found, is_default=not version)
        if not version:
            route = self.lanes.shadowed(route)
        if len(self._routes) >= _MAX_ROUTES:  # a digest has many prefixes; a client may try them all
            self._routes.clear()
        self._routes[model, version] = route
        return route

    def _found(self, found: ModelVersion, *, is_default: bool = False) -> Route:
        variant = self._demand.variant_of(found.digest)
        served = self.served.get(variant.digest)
        is_down = isinstance(served, Served) and bool(served.problem)
        if (served is None or is_down) and is_default and (before := self._demand.instead(found)) is not None:
            if is_down:
                instead = before.tag or before.digest
                log(_log, logging.WARNING, "the default before serves", model=found.model, version=instead)
            found, variant = before, self._demand.variant_of(before.digest)
            served = self.served.get(variant.digest)
        if served is None:
            raise self._demand.ask(found, variant)
        parameters: dict[str, Parameter] = {"variant": variant.digest}
        if self._registry.certificate_of(found.digest) is None:
            parameters["certified"] = False
        return Route(
            version=found,
            served=served,
            measures=self._measures.route(found.model, found.tag),
            parameters=parameters,
        )

    def _divided(self, split: Split, model: str, key: str) -> Route:
        """Choose an arm. One that cannot answer now leaves its requests to the default version."""
        arm = pick(split, key, random.random())
        if arm is not None:
            with contextlib.suppress(NotFound, Unavailable):
                return self._arm(split, model, arm)
        return self._arm(split, model, None)

    def _arm(self, split: Split, model: str, arm: Arm | None) -> Route:
        name = BASE if arm is None else arm.name
        key = (model, f"\0{name}")  # no version has such a name, so that no request asks for it
        known = self._routes.get(key)
        if known is None:
            found = self._registry.resolve(model, "" if arm is None else arm.digest)
            route = self._found(found, is_default=arm is None)
            known = self._routes[key] = self.lanes.of_arm(route, split, name)
        return known
