"""The data plane behind every transport: admit, resolve, check, batch, answer.

Transports decode, call and encode. Admission comes before they decode a payload; what can only be known after that
(rows, the tenant's rate) is checked in :meth:`DataPlane.infer`. Knows no HTTP and no gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType

from cloud_core.policy import admission
from cloud_core.policy.admission import Action, Tenant
from cloud_core.registry.registry import Registry
from cloud_core.serving.controller import Controller, VersionState
from cloud_core.serving.counters import Measures
from cloud_core.serving.replica import Chunk
from cloud_core.serving.router import Route, Served
from cloud_core.settings import ServingSettings, TenantSettings
from penstock.errors import InvalidInput, PenstockError, QueueFull, Unavailable
from penstock.policy.token_bucket import TokenBucket
from penstock.runtime import platform_of
from penstock.wire.inference import InferRequest, InferResponse, ModelMetadata, earliest_timeout_s, priority_of

SERVER_NAME = "penstock"
EXTENSIONS = ("binary_tensor_data", "parameters", "schedule_policy")
"""What works of the protocol's extensions; ``schedule_policy`` is priority and timeout."""

_EVERYBODY = Tenant(name=admission.ANONYMOUS)


class Ticket:
    """One admitted request. Use as a context manager: leaving it counts the request and gives its place back."""

    __slots__ = ("_plane", "arrived_at", "route", "tenant")

    def __init__(self, plane: DataPlane, route: Route, tenant: Tenant, arrived_at: float) -> None:
        self._plane, self.route, self.tenant, self.arrived_at = plane, route, tenant, arrived_at

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._plane._leave(self, _code_of(error))


class DataPlane:
    """Everything here runs on the event loop's thread."""

    def __init__(
        self,
        controller: Controller,
        registry: Registry,
        measures: Measures,
        settings: ServingSettings,
        tenants: Sequence[TenantSettings],
        now: Callable[[], float],
    ) -> None:
        self.controller, self.measures = controller, measures
        self._registry, self._router, self._settings, self._now = registry, controller.router, settings, now
        self._tenants = admission.by_token((tenant.token, _tenant(tenant)) for tenant in tenants)
        self._buckets = {t.name: t.bucket.full(now()) for t in self._tenants.values() if t.bucket is not None}
        self._is_draining = False
        self._idle = asyncio.Event()

    # -- health ------------------------------------------------------------------------------------------------------

    @property
    def is_live(self) -> bool:
        """No engine hangs and every queue has its owner. A busy or saturated server is alive."""
        limit = self._now() - self._settings.stall_s
        return all(
            served.is_alive and all(b.running_since is None or b.running_since > limit for b in served.batchers)
            for served in self._router.served.values()
        )

    @property
    def is_ready(self) -> bool:
        """Whether requests are admitted: what should be loaded has been, and no drain has begun."""
        return not self._is_draining and self.controller.settled.is_set()

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    def served(self) -> tuple[Served, ...]:
        """What is in memory now."""
        return tuple(self._router.served.values())

    def model_state(self, model: str, version: str = "") -> VersionState:
        """
        Raises:
            NotFound: no such model or version.
        """
        return self.controller.state_of(self._registry.resolve(model, version))

    def index(self) -> list[VersionState]:
        """Every version of every model, with its state and why it is not ready."""
        return self.controller.index()

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """
        Raises:
            NotFound: no such model or version, or one for devices only. Internal: its files were damaged.
        """
        found = self._registry.resolve(model, version)
        spec = self.controller.variant_of(found.digest).spec
        return ModelMetadata(
            name=model,
            versions=tuple(v.tag for v in self._registry.versions(model)),
            platform=platform_of(spec.engine),
            inputs=spec.inputs,
            outputs=spec.outputs,
        )

    # -- requests ----------------------------------------------------------------------------------------------------

    @property
    def wants_credentials(self) -> bool:
        """Whether :meth:`authenticate` looks at what it is given."""
        return bool(self._tenants)

    def authenticate(self, authorization: str, action: Action = Action.INFER) -> Tenant:
        """The caller, who may do ``action``. Everybody may everything, where no tenants are set up.

        Raises:
            Unauthenticated: no known credential. PermissionDenied: one whose role does not include the action.
        """
        if not self._tenants:
            return _EVERYBODY
        try:
            tenant = admission.authenticate(self._tenants, authorization)
            admission.authorize(tenant, action)
            return tenant
        except PenstockError as error:
            self.measures.refuse(error.code)
            raise

    def admit(self, tenant: Tenant, model: str, version: str) -> Ticket:
        """Let a request in before its payload is looked at.

        Raises:
            Unavailable: draining, or the version is not loaded. NotFound: no such model or version.
            QueueFull: saturated.
        """
        try:
            route = self._admitted_route(model, version)
        except PenstockError as error:
            self.measures.refuse(error.code)
            raise
        self.measures.inflight += 1
        return Ticket(self, route, tenant, self._now())

    async def infer(self, ticket: Ticket, request: InferRequest, timeout_s: float | None = None) -> InferResponse:
        """Answer an admitted, decoded request. ``timeout_s`` is the transport's, counted from admission.

        Raises:
            InvalidInput: inputs, outputs or parameters are wrong. QuotaExceeded: over the tenant's rate.
            QueueFull: no room for this many rows. DeadlineExceeded: nothing was executed. Unavailable: being unloaded.
            Internal: the model failed.
        """
        settings, route = self._settings, ticket.route
        served = route.served
        earliest_s = earliest_timeout_s(request, timeout_s, settings.default_timeout_s)
        rows = served.check_inputs(request.inputs)
        if rows > settings.max_rows_per_request:
            raise InvalidInput(
                f"inputs: {rows} rows, at most {settings.max_rows_per_request} in one request", field="inputs"
            )
        wanted = request.outputs
        priority = 0
        if request.parameters:
            priority = priority_of(request)
            _refuse_sequences(request)
        if wanted:
            served.check_outputs(wanted)
        if ticket.tenant.bucket is not None:
            self._take_rows(ticket.tenant, rows)
        served.last_used_at = ticket.arrived_at
        outputs = await served.pick().infer(
            Chunk(inputs=request.inputs, rows=rows, outputs=wanted or None),
            shape_key=served.shape_key(request.inputs, wanted),
            deadline=None if earliest_s is None else ticket.arrived_at + earliest_s,
            priority=priority,
        )
        route.measures.rows += rows
        return InferResponse(
            model=request.model,
            version=route.version.tag or route.version.digest,
            id=request.id,
            outputs=outputs,
            parameters=route.parameters,
        )

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

    def _admitted_route(self, model: str, version: str) -> Route:
        if self._is_draining:
            raise Unavailable("the server is shutting down", retry_after_s=self._settings.retry_after_s)
        if self.measures.inflight >= self._settings.max_inflight_requests:
            raise QueueFull(
                f"{self.measures.inflight} requests are in flight, the limit",
                retry_after_s=self._settings.retry_after_s,
            )
        route = self._router.route(model, version)
        route.served.pick().check_room()
        return route

    def _take_rows(self, tenant: Tenant, rows: int) -> None:
        self._buckets[tenant.name] = admission.take_rows(tenant, self._buckets[tenant.name], rows, self._now())

    def _leave(self, ticket: Ticket, code: str) -> None:
        self.measures.inflight -= 1
        ticket.route.measures.finished(code, self._now() - ticket.arrived_at)
        if self._is_draining and self.measures.inflight == 0:
            self._idle.set()


def _tenant(settings: TenantSettings) -> Tenant:
    rate = settings.rate_rows_per_s
    if rate == 0:
        return Tenant(name=settings.name, role=settings.role)
    bucket = TokenBucket(rate=rate, burst=settings.burst_rows or max(rate, 1.0))
    return Tenant(name=settings.name, role=settings.role, bucket=bucket)


def _refuse_sequences(request: InferRequest) -> None:
    if request.parameters.get("sequence_id"):
        raise InvalidInput("parameters.sequence_id: sequences are not served", field="parameters.sequence_id")


def _code_of(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    if isinstance(error, PenstockError):
        return error.code
    return "cancelled" if isinstance(error, asyncio.CancelledError) else "internal"
