"""Settings of the core: every bound and default of the service in one typed tree. Reads nothing by itself.

Each key may be given in the file, in the environment as ``PENSTOCK_CORE_SECTION__KEY``, or as a flag.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

import msgspec

from cloud_core.api.rpc.listening.settings import GrpcSettings
from cloud_core.cluster.settings import ClusterSettings
from cloud_core.fleet.settings import FleetSettings
from cloud_core.observing.settings import ObservingSettings
from cloud_core.registry.settings import RegistrySettings
from cloud_core.serving.settings import TrafficSettings, version_policies
from cloud_core.tenants.settings import AuthSettings, TenantSettings, UsageSettings
from penstock.errors import ConfigError, InvalidInput
from penstock.hosting.generation.managed.settings import VllmSettings
from penstock.hosting.generation.settings import GenerationSettings
from penstock.hosting.process_replica.settings import ModelSettings, ReplicaWorkerSettings
from penstock.policy.replica_places import Placement
from penstock.process.shared_regions import SharedMemorySettings
from penstock.process.telemetry import LogSettings
from penstock.wire.device_ids import check_device_id
from penstock.wire.server_tls import ServerTls

ENV_PREFIX = "PENSTOCK_CORE_"

_Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
_MIN_TOKEN_CHARS = 8
_Count = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0.0)]


class HttpSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where HTTP listens (port 0: a free one), and how large and how slow a request may be.

    Attributes:
        host: address to listen on.
        port: 0 takes a free one.
        max_body_bytes: of an inference request.
        max_header_bytes: of one header field.
        keepalive_s: a connection that is idle for longer is closed.
        queue_full_status: 503, or 429 for clients that only back off on that.
    """

    host: str = "127.0.0.1"
    port: _Port = 8000
    max_body_bytes: _Count = 64 * 1024 * 1024
    max_header_bytes: _Count = 8190
    keepalive_s: _Seconds = 75.0
    queue_full_status: Literal[503, 429] = 503


class CoreGenerationSettings(GenerationSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Language models, run here, by vLLM that the core starts, or by servers of others.

    Attributes:
        vllm: by model, how vLLM runs it.
    """

    vllm: dict[str, VllmSettings] = msgspec.field(default_factory=dict)


class ServingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the data plane.

    Attributes:
        placement: where models that answer with arrays run: ``process`` in worker processes of their own, ``inline`` in
            the core's, ``auto`` in the core's only where the largest batch takes less than ``inline_below_s``.
        replicas: engines per model; a model so fast that it runs on the event loop gets one. 0 for as many as fill the
            CPUs that this process may use (affinity and control group counted), at most 8.
        threads: intra-op threads of each engine; 0 for as many as make one row faster, measured at load.
        max_delay_s: how long an idle replica waits for a fuller batch; 0 dispatches at once.
        max_queue_rows: rows that may wait at one replica; more are refused with ``rejected-saturated``.
        max_rows_per_request: dimension 0 of a request's inputs.
        max_inflight_requests: admitted requests in the whole server. Where several models are in memory, one may have
            what the others left free: half while it is the only busy one. The same is so for tenants.
        max_inflight_bytes: of their bodies, or of their tensors where they are larger; one model may have what others
            left free of it, and so may one tenant where there are several. More are refused with ``rejected-memory``.
            0 for a quarter of the memory that this process may use (control group counted).
        default_timeout_s: deadline of a request that names none.
        max_loaded_models: cloud variants in memory at a time. Default versions are pinned; others go least recently
            used first. A version that becomes the default is loaded before the one before it goes, also where it takes
            one place more for that moment.
        max_loaded_bytes: memory of all of them together: as measured when they were loaded, or of their files; 0 for no
            such limit.
        inline_below_s: a batch that should take less than this, as seen of batches of its size, runs on the event loop,
            without a thread hop.
        stall_s: a worker process that runs one batch for longer is killed and started again; a batch that runs for
            longer in the core's own process makes the server report that it is not alive.
        retry_after_s: the hint that goes with "loading" and "draining", and with refusals where nothing waits whose
            time would say more.
        lame_duck_s: after SIGTERM readiness fails at once, and new work is still taken for so long: balancers need that
            time to send it elsewhere.
        drain_s: how long admitted work may take to finish after that.
        spending_flush_s: what tenants spend of their tokens of a day reaches the disk at most this much later, and at
            the end; a core that is killed gives so much back.
        traffic: which versions are served, and how requests are divided between them.
        models: by name, what differs for one model.
        worker: the processes in which models run.
        generation: how language models are run.
    """

    placement: Placement = "auto"
    replicas: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    threads: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    max_delay_s: _Seconds = 0.0
    max_queue_rows: _Count = 4096
    max_rows_per_request: _Count = 1024
    max_inflight_requests: _Count = 4096
    max_inflight_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    default_timeout_s: Annotated[float, msgspec.Meta(gt=0.0)] = 30.0
    max_loaded_models: _Count = 32
    max_loaded_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    inline_below_s: _Seconds = 0.0003
    stall_s: Annotated[float, msgspec.Meta(gt=0.0)] = 60.0
    retry_after_s: _Seconds = 1.0
    lame_duck_s: Annotated[float, msgspec.Meta(ge=0.0, le=3600.0)] = 0.0
    drain_s: _Seconds = 10.0
    spending_flush_s: Annotated[float, msgspec.Meta(ge=0.05, le=3600.0)] = 10.0
    traffic: TrafficSettings = TrafficSettings()
    models: dict[str, ModelSettings] = msgspec.field(default_factory=dict)
    worker: ReplicaWorkerSettings = ReplicaWorkerSettings()
    generation: CoreGenerationSettings = CoreGenerationSettings()


class CoreSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that ``penstock core serve`` can be told.

    Attributes:
        data_dir: state and artifacts; one core process at a time.
        database: where state is kept: "" for SQLite in data_dir, or ``postgresql://USER:PASSWORD@HOST:PORT/NAME``. As
            PENSTOCK_CORE_DATABASE it stays out of files.
        cluster: limits of what a core does with PostgreSQL.
        tenants: who may call; empty lets everybody in.
        auth: how callers prove who they are.
        usage: what is kept of what tenants used.
        tls: how both ports are encrypted.
        allow_anonymous: without tenants, listen on addresses other than loopback all the same.
        trust_root: directory of public keys (``penstock keys trust``); only what one of them signed is then served. ""
            is PENSTOCK_TRUST_ROOT, or else ~/.config/penstock/trust if it is there; without any, nothing need be
            signed.
        observing: what is counted, logged and kept of requests beside what is always counted.
    """

    data_dir: Annotated[str, msgspec.Meta(min_length=1)] = "penstock-core"
    database: str = ""
    cluster: ClusterSettings = ClusterSettings()
    http: HttpSettings = HttpSettings()
    grpc: GrpcSettings = GrpcSettings()
    serving: ServingSettings = ServingSettings()
    registry: RegistrySettings = RegistrySettings()
    fleet: FleetSettings = FleetSettings()
    shared_memory: SharedMemorySettings = SharedMemorySettings()
    tenants: tuple[TenantSettings, ...] = ()
    auth: AuthSettings = AuthSettings()
    usage: UsageSettings = UsageSettings()
    tls: ServerTls = ServerTls()
    allow_anonymous: bool = False
    trust_root: str = ""
    log: LogSettings = LogSettings()
    observing: ObservingSettings = ObservingSettings()

    @property
    def wants_credentials(self) -> bool:
        """Say whether callers have to prove who they are."""
        return bool(self.tenants or self.auth.required or self.auth.oidc.issuer)


def check(settings: CoreSettings) -> CoreSettings:
    """Check what types cannot say.

    Raises:
        ConfigError: two tenants share a name or a token, one has a short token or no valid device id, the service would
            be open to a network or share memory with one, or a model would run in two places.
    """
    version_policies(settings.serving.traffic)
    generation = settings.serving.generation
    for model in generation.vllm:
        if model in generation.remote.urls:
            raise ConfigError(f"serving.generation: {model!r} is in vllm and in remote.urls; it can run in one of them")
    oidc = settings.auth.oidc
    if oidc.issuer and oidc.tenant not in {"", *(tenant.name for tenant in settings.tenants)}:
        raise ConfigError(
            f"auth.oidc.tenant: {oidc.tenant!r} is none of [[tenants]]; add it, with its limits and models"
        )
    for what in ("name", "token"):
        values = [value for tenant in settings.tenants if (value := getattr(tenant, what))]
        if len(set(values)) != len(values):
            raise ConfigError(f"tenants: two of them have the same {what}")
    for tenant in settings.tenants:
        if tenant.token and len(tenant.token) < _MIN_TOKEN_CHARS:
            raise ConfigError(f"tenants: {tenant.name}: a token has at least {_MIN_TOKEN_CHARS} characters")
        if tenant.certificates and not settings.tls.client_ca:
            raise ConfigError(
                f"tenants: {tenant.name}: certificates are asked for and verified where tls.client_ca names who signs "
                "them; give that, too"
            )
        try:
            if tenant.device_id:
                check_device_id(tenant.device_id)
        except InvalidInput as error:
            raise ConfigError(f"tenants: {tenant.name}: {error.message}") from None
    is_open = [host for host in (settings.http.host, settings.grpc.host) if not is_loopback(host)]
    if settings.shared_memory.max_regions and (settings.wants_credentials or is_open):
        raise ConfigError(
            "shared_memory.max_regions: whoever may call reaches all shared memory, so that it is served without "
            "[[tenants]] and on loopback only; set it to 0, or http.host and grpc.host to 127.0.0.1"
        )
    if settings.wants_credentials or settings.allow_anonymous:
        return settings
    for section, host in (("http", settings.http.host), ("grpc", settings.grpc.host)):
        if not is_loopback(host):
            raise ConfigError(
                f"{section}.host: {host!r} is reachable from other machines and there are no [[tenants]]; "
                "add tenants, set auth.required = true to have keys, or set allow_anonymous = true to let everybody in"
            )
    return settings


def is_loopback(host: str) -> bool:
    """Say whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
