"""The data plane behind every transport: admit, resolve, check, batch, answer.

Transports decode, call and encode. Admission comes before they decode a payload; what can only be known after that
(rows, the tenant's rate) is checked in :meth:`DataPlane.infer`. Knows no HTTP and no gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from time import perf_counter

from cloud_core.observing.finished import Note, Observers
from cloud_core.policy import admission
from cloud_core.policy.admission import Tenant
from cloud_core.registry.registry import ModelVersion, Registry
from cloud_core.serving.controller import Controller
from cloud_core.serving.counters import Measures
from cloud_core.serving.inflight import Inflight
from cloud_core.serving.router import Route, Served
from cloud_core.serving.served_text import ServedText
from cloud_core.serving.statistics import statistics_of_all
from cloud_core.settings import ServingSettings
from cloud_core.tenants.accounts import Account
from cloud_core.tenants.callers import Callers
from cloud_core.tenants.sight import SeenRegistry
from penstock.artifact.run_config import config_of
from penstock.artifact.tensor_names import metadata_of
from penstock.errors import InvalidInput, PenstockError, Unavailable, outcome_code
from penstock.hosting.replica import Chunk
from penstock.openai import oip_texts
from penstock.policy.access import Action
from penstock.runtime import TEXT_ENGINES, platform_of
from penstock.wire.context import RequestContext
from penstock.wire.inference import (
    InferRequest,
    InferResponse,
    ModelConfig,
    ModelMetadata,
    ModelState,
    ModelStatistics,
    Parameter,
)

SERVER_NAME = "penstock"


class Ticket:
    """One admitted request. Use as a context manager: leaving it counts the request and gives its place back."""

    __slots__ = ("_plane", "account", "context", "note", "route", "size_bytes", "started_at")

    def __init__(
        self, plane: DataPlane, route: Route, size_bytes: int, context: RequestContext, account: Account | None
    ) -> None:
        """``account``: of a tenant that may not do everything."""
        self._plane, self.route, self.size_bytes, self.context = plane, route, size_bytes, context
        self.account = account
        self.note = None if plane.observers.is_empty else Note()  # for observers
        self.started_at = perf_counter()  # the loop's own clock may move in milliseconds

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._plane._leave(self, outcome_code(error), error)


class DataPlane:
    """Everything here runs on the event loop's thread."""

    def __init__(
        self,
        controller: Controller,
        registry: Registry | SeenRegistry,
        measures: Measures,
        settings: ServingSettings,
        callers: Callers | None,
        now: Callable[[], float],
        *,
        max_body_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        """
        Args:
            callers: who may call; None lets everybody do everything.
            max_body_bytes: what a body counts for that does not say how large it is.
        """
        self.controller, self.measures = controller, measures
        self.observers = Observers()
        self._registry, self._router, self._settings, self._now = registry, controller.router, settings, now
        self._max_body_bytes = max_body_bytes
        self._inflight = Inflight(measures, settings, controller.router.served, callers)
        self._callers = callers
        self._accounts: Mapping[str, Account] = {} if callers is None else callers.accounts
        self.is_lame_duck = self._is_draining = False
        self._idle = asyncio.Event()

    # -- health ------------------------------------------------------------------------------------------------------

    @property
    def is_live(self) -> bool:
        """Say whether no engine hangs and every queue has its owner. A busy or saturated server is alive."""
        since = self._now() - self._settings.stall_s
        return all(served.is_well(since=since) for served in self._router.served.values())

    @property
    def is_ready(self) -> bool:
        """Say whether requests are admitted: what should be loaded has been, and no drain has begun."""
        return not (self._is_draining or self.is_lame_duck) and self.controller.settled.is_set()

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    def served(self) -> tuple[Served, ...]:
        """List what is in memory now and answers with arrays."""
        return tuple(one for one in self._router.served.values() if isinstance(one, Served))

    def served_texts(self) -> tuple[ServedText, ...]:
        """List what is in memory now and answers with texts."""
        return tuple(one for one in self._router.served.values() if isinstance(one, ServedText))

    def served_versions(self) -> list[tuple[ModelVersion, Served | ServedText]]:
        """List the tagged versions that are in memory."""
        found = []
        for model in self._registry.models():
            for version in self._registry.versions(model):
                with contextlib.suppress(PenstockError):  # one for devices only
                    served = self._router.served.get(self.controller.variant_of(version.digest).digest)
                    if served is not None:
                        found.append((version, served))
        return found

    def model_state(self, model: str, version: str = "") -> ModelState:
        """
        Raises:
            NotFound: no such model or version.
        """
        return self.controller.state_of(self._registry.resolve(model, version))

    def index(self) -> list[ModelState]:
        """List every version of every model, with its state and why it is not ready."""
        return [self.controller.state_of(v) for m in self._registry.models() for v in self._registry.versions(m)]

    def statistics(self) -> list[ModelStatistics]:
        """Say what each version has answered since this core began."""
        return statistics_of_all(self.index(), self.controller, self._registry, self.measures, now=self._now())

    def config(self, model: str, version: str = "") -> ModelConfig:
        """Say how a version is run. Raises as :meth:`metadata`."""
        metadata = self.metadata(model, version)
        variant = self.controller.variant_of(self._registry.resolve(model, version).digest)
        served, limits = self._router.served.get(variant.digest), self.controller.limits_of(variant)
        return config_of(
            variant,
            metadata,
            instances=len(served.queues) if isinstance(served, Served) else 1,
            max_delay_s=limits.max_delay_s,
            max_batch_rows=limits.max_batch_rows,
            providers=limits.providers,
            in_parts=variant.spec.engine in TEXT_ENGINES,
            versions=self.controller.demand.versions_of(model),
        )

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """
        Raises:
            NotFound: no such model or version, or one for devices only. Internal: its files were damaged.
        """
        found = self._registry.resolve(model, version)
        spec = self.controller.variant_of(found.digest).spec
        is_text = spec.engine in TEXT_ENGINES
        return metadata_of(
            spec,
            name=model,
            versions=tuple(v.tag for v in self._registry.versions(model)),
            platform=platform_of(spec.engine),
            inputs=oip_texts.INPUTS if is_text else spec.inputs,
            outputs=oip_texts.OUTPUTS if is_text else spec.outputs,
            properties=self.controller.properties(found),
        )

    # -- requests ----------------------------------------------------------------------------------------------------

    @property
    def takes_certificates(self) -> bool:
        """Say whether a client's certificate may stand for a token."""
        return self._callers is not None and self._callers.takes_certificates

    def authenticate(self, authorization: str, action: Action = Action.INFER) -> str:
        """Name the caller, who may do ``action``; "" where everybody may do everything. Raises as :meth:`identify`."""
        return admission.ANONYMOUS if self._callers is None else self.identify(authorization, action).name

    def identify(self, authorization: str, action: Action | None = None, *, device_id: str | None = None) -> Tenant:
        """Return who calls, and may do ``action``, and report for a device where one is given.

        Raises:
            Unauthenticated: no known credential. PermissionDenied: one that may not.
        """
        if self._callers is None:
            return admission.ANYBODY
        try:
            return self._callers.identify(authorization, action, device_id=device_id)
        except PenstockError as error:
            self._refused(error)
            raise

    def admit(self, context: RequestContext, model: str, version: str, size_bytes: int | None = None) -> Ticket:
        """Let a request in before its payload is looked at.

        Args:
            size_bytes: of its body; None where nobody knows before it is read.

        Raises:
            Unavailable: draining, or the version is not loaded. NotFound: no such model or version.
            QueueFull: saturated. MemoryFull: so many bytes do not fit beside those in flight.
            PermissionDenied, QuotaExceeded: the tenant may not ask for the model, or not now.
        """
        account = self._accounts.get(context.tenant)
        announced, size_bytes = size_bytes, self._max_body_bytes if size_bytes is None else size_bytes
        try:
            if account is None:
                route = self._admitted_route(context, model, version, size_bytes)
            else:
                route = account.admit(
                    model, announced, lambda: self._admitted_route(context, model, version, size_bytes)
                )
        except PenstockError as error:
            self._refused(error, context, model, size_bytes)
            raise
        self._inflight.enter(route.served, context.tenant, size_bytes)
        return Ticket(self, route, size_bytes, context, account)

    async def infer(self, ticket: Ticket, context: RequestContext, request: InferRequest) -> InferResponse:
        """Answer an admitted, decoded request.

        Raises:
            InvalidInput: inputs, outputs or parameters are wrong. QuotaExceeded: over the tenant's rate.
            QueueFull: no room for this many rows. MemoryFull: tensors far larger than their body.
            DeadlineExceeded: nothing was executed. Unavailable: being unloaded. Internal: the model failed.
        """
        if ticket.route.lane is not None:
            self.settle_arm(ticket, request.parameters)
        settings, route = self._settings, ticket.route
        served = route.served
        if isinstance(served, ServedText):
            raise InvalidInput(
                f"model {request.model!r} generates text; ask it at /v1/chat/completions, /v1/completions or "
                f"/v2/models/{request.model}/generate",
                field="model",
            )
        if request.parameters:
            context = context.with_parameters(request.parameters)
            _refuse_sequences(request)
        context = context.or_within(settings.default_timeout_s)
        rows = served.check_inputs(request.inputs)
        self._hold_tensors(ticket, request)
        if rows > settings.max_rows_per_request:
            raise InvalidInput(
                f"inputs: {rows} rows, at most {settings.max_rows_per_request} in one request", field="inputs"
            )
        wanted = request.outputs
        if wanted:
            served.check_outputs(wanted)
        if ticket.account is not None:
            ticket.account.take_rows(rows)
            context = ticket.account.within_rights(context)
        served.last_used_at = context.arrived_at
        note = None if ticket.note is None else ticket.note.run(request, rows)
        chunk = Chunk(inputs=request.inputs, rows=rows, outputs=wanted or None, note=note)
        parameters = route.parameters
        if served.cache is None:
            outputs = await served.infer(chunk, context)
        else:
            outputs, source = await served.cache.infer(chunk, context, served.infer)
            if source:
                parameters = {**parameters, "cache": source}
        route.measures.rows += rows
        response = InferResponse(
            model=request.model,
            version=route.version.tag or route.version.digest,
            id=request.id,
            outputs=outputs,
            parameters=parameters,
        )
        if ticket.note is not None:
            ticket.note.response = response
        if route.lane is not None and route.lane.shadow is not None:
            route.lane.shadow.offer(route.lane.arm, served, request, outputs, rows)
        return response

    def settle_arm(self, ticket: Ticket, parameters: Mapping[str, Parameter]) -> None:
        """Let an admitted request go to another arm of a split, where one of its parameters says so: once for each.

        Raises:
            QueueFull: there is no room.
        """
        ticket.route = self._router.moved(ticket.route, parameters, ticket.size_bytes)

    # -- drain -------------------------------------------------------------------------------------------------------

    def begin_drain(self) -> None:
        """Refuse new work from now on; what was admitted goes on."""
        self._is_draining = True
        if self.measures.inflight == 0:
            self._idle.set()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until admitted work has finished; False when it has not within ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _admitted_route(self, context: RequestContext, model: str, version: str, size_bytes: int) -> Route:
        if self._is_draining:
            raise Unavailable("the server is shutting down", retry_after_s=self._settings.retry_after_s)
        self._inflight.check_full()
        route = self._router.route(model, version, context)
        route.served.check_room()
        self._inflight.check(route.served, context.tenant, size_bytes)
        return route

    def _hold_tensors(self, ticket: Ticket, request: InferRequest) -> None:
        """Count what was decoded where that is more than what was announced: text and compression make it so."""
        size_bytes, held = sum([array.nbytes for array in request.inputs.values()]), ticket.size_bytes
        if size_bytes > held:
            served, tenant = ticket.route.served, ticket.context.tenant
            self._inflight.check(served, tenant, size_bytes, holds=held)
            self._inflight.hold(served, tenant, size_bytes - held)
            ticket.size_bytes = size_bytes

    def _refused(
        self, error: PenstockError, context: RequestContext | None = None, model: str = "", size_bytes: int = 0
    ) -> None:
        """Count a request that was refused before it was known which version it is for, and tell observers."""
        self.measures.refuse(error.code)
        if self.observers.is_deaf:
            return
        try:
            model = self._registry.resolve(model).model
        except PenstockError:
            model = ""  # a name that no model has is never a label
        self.observers.refused(error, context, model=model, request_bytes=size_bytes)

    def _leave(self, ticket: Ticket, code: str, error: BaseException | None) -> None:
        self._inflight.leave(ticket.route.served, ticket.context.tenant, ticket.size_bytes)
        if ticket.account is not None:
            ticket.account.end()
        took_s = perf_counter() - ticket.started_at
        ticket.route.measures.finished(code, took_s)
        if ticket.note is not None or not (code == "ok" or self.observers.is_deaf):
            self.observers.tell((ticket.note or Note()).finished(ticket, code, error, took_s))
        if self._is_draining and self.measures.inflight == 0:
            self._idle.set()


def _refuse_sequences(request: InferRequest) -> None:
    if request.parameters.get("sequence_id"):
        raise InvalidInput("parameters.sequence_id: sequences are not served", field="parameters.sequence_id")
