"""The agent's settings: every limit, with a default that works on a small device with no configuration at all.

Sources, later ones win: ``agent.toml`` (``--config``), the environment (``PENSTOCK_AGENT_CASCADE__AUDIT_SHARE=0.02``),
flags. Relative paths are relative to the working directory. Knows no other module of the agent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from penstock.errors import ConfigError, InvalidInput
from penstock.hosting.generation.settings import GenerationSettings
from penstock.process import config
from penstock.process.directories import data_directory, expanded
from penstock.process.telemetry import LogSettings
from penstock.process.trace_settings import TraceSettings
from penstock.registry.address import parse_registry
from penstock.wire.addresses import parse_target
from penstock.wire.device_ids import check_device_id
from penstock.wire.tls import Tls

ENV_PREFIX = "PENSTOCK_AGENT_"
_MAX_SOCKET_PATH_BYTES = 107  # sun_path of Linux has 108 bytes, the last of them NUL
_KIB, _MIB, _GIB = 1024, 1024**2, 1024**3

Seconds = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Harm = Annotated[float, Meta(gt=0, lt=1)]
Rung = Annotated[str, Meta(min_length=1, max_length=64)]
OnUnreachable = Literal["local_flagged", "fail"]
Outside = Literal["escalate", "answer_flagged"]


class CascadeSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When an answer is kept, and what watches that.

    Attributes:
        audit_share: share of rows drawn for the audit; a kept one is sent to the cloud too, for comparison.
        audit_run_length: audits until one distrusts a certificate that just holds, on average and at the least. Ten
            times as many cost a fifth more audits until a real change is seen.
        on_unreachable: an uncertain answer while the cloud is out of reach is given anyway and flagged, or refused.
        max_harm: which of a certificate's levels is used; none given is the one that it names first. A level that was
            not certified is never replaced by another: the model then escalates everything and says which there are.
        max_harm_of: the level by model, for those that shall have another than ``max_harm``.
        metric_of: by model, the function that its certificate's opinion is of, as ``module:function`` or
            ``file.py:function``: needed to audit open text. Its source has to have the digest that the certificate
            names. What it raises counts as harm; one that takes longer than ``generation.limits.default_timeout_s`` is
            asked no more.
        outside: what becomes of a request for text that is decoded in another way than was certified (sampled, with
            tools, by a grammar, other stops): the cloud's, or the device's, flagged.
    """

    audit_share: Share = 0.01
    audit_run_length: Annotated[float, Meta(ge=100, le=1e12)] = 1e6
    on_unreachable: OnUnreachable = "local_flagged"
    max_harm: Harm | None = None
    max_harm_of: dict[str, Harm] = {}
    metric_of: dict[str, str] = {}
    outside: Outside = "escalate"


class EscalationSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How uncertain rows travel to the cloud.

    Attributes:
        timeout_s: longest wait for the cloud; the request's own deadline shortens it.
        max_rows: rows in one call.
        max_delay_s: how long rows wait for company; 0 sends at once when idle.
        max_queue_rows: rows waiting; beyond it a row counts as unreachable.
        rate_rows_per_s: budget of rows; 0 is unlimited.
        burst_rows: what may go at once.
        breaker_failures: failures in a row that open the circuit. A text that had less than a tenth of
            ``first_token_timeout_s`` fails for itself.
        breaker_open_s: how long it stays open before the cloud is tried again, with an inference; doubled with each
            try that fails.
        breaker_max_open_s: longest such time, where it is more than ``breaker_open_s``.
        text_url: of a server of OpenAI's API that texts go up to; "" for ``registry``, where the core has one.
        first_token_timeout_s: longest wait for its first token; the request's own deadline shortens it.
        max_text_audits: answers in text that may wait for their audit.
        model_version: ``digest`` asks for exactly the certified version; "" for the default one of a server that does
            not know our digests (its answers are then taken at their word).
    """

    timeout_s: Positive = 2.0
    model_version: Literal["digest", ""] = "digest"
    max_rows: Count = 64
    max_delay_s: Seconds = 0.0
    max_queue_rows: Count = 1024
    rate_rows_per_s: Seconds = 0.0
    burst_rows: Count = 256
    breaker_failures: Count = 3
    breaker_open_s: Positive = 2.0
    breaker_max_open_s: Positive = 60.0
    text_url: str = ""
    first_token_timeout_s: Positive = 10.0
    max_text_audits: Count = 64


class LinkSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The connections to the core, for escalations and for reports.

    Attributes:
        keepalive_s: how often an idle connection is looked at, so that one that went silent without a reset is found.
            A server other than ours may want 300.
        renew_after: calls in a row that got no answer in time, after which a connection is given up for a new one.
    """

    keepalive_s: Annotated[float, Meta(ge=10, le=7200)] = 25.0
    renew_after: Count = 3


class LimitsSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client may ask for.

    Attributes:
        max_body_bytes: of one HTTP request.
        max_rows_per_request: dimension 0 of its inputs.
        max_queue_rows: rows waiting for one model on this device; beyond it requests are refused.
        max_inflight_bytes: of the bodies of requests that are not answered yet; beyond it requests are refused. 0 for
            an eighth of the memory that the agent may use (control group counted), and at least one largest body. Rows
            that wait for their audit may take a quarter as much.
        default_timeout_s: deadline of a request that names none.
        max_models: models on this device at the same time; what is desired beyond it is refused and logged.
        drain_s: how long a stopping agent waits for requests that it has begun.
        threads: intra-op threads of each model; 0 for as many of the CPUs that the agent may use (affinity and control
            group counted) as make one row faster, measured when a model is loaded.
    """

    max_body_bytes: Count = 16 * _MIB
    max_queue_rows: Count = 1024
    max_rows_per_request: Count = 1024
    max_inflight_bytes: Annotated[int, Meta(ge=0)] = 0
    default_timeout_s: Positive = 5.0
    max_models: Count = 16
    drain_s: Seconds = 5.0
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0


class FetchSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pulling artifacts.

    Attributes:
        max_blob_bytes: of one layer.
        max_document_bytes: of a manifest, spec or certificate.
        max_variants: manifests in one artifact.
        max_certificates: referrers looked at to find one that fits; as many signatures are looked at.
        reserve_bytes: disk space that a pull leaves free.
        chunk_bytes: what is read, hashed and written at a time.
        connect_timeout_s: longest wait for a connection.
        read_timeout_s: longest silence on a connection, not the whole transfer.
    """

    max_blob_bytes: Count = 16 * _GIB
    max_document_bytes: Count = 4 * _MIB
    max_variants: Count = 64
    max_certificates: Count = 64
    reserve_bytes: Annotated[int, Meta(ge=0)] = 32 * _MIB
    chunk_bytes: Count = 256 * _KIB
    connect_timeout_s: Positive = 10.0
    read_timeout_s: Positive = 30.0


class UpdateSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a new version is trusted.

    Attributes:
        probation_s: a new version is committed after that many seconds without a failure.
        probation_requests: it is committed earlier after that many rows without a failure.
        max_crashes: failures in probation, or starts that did not survive, after which it is reverted.
        max_failures: versions that failed and are remembered per model, oldest forgotten.
        retry_base_s: first pause before what failed is tried again; it doubles, with full jitter.
        retry_max_s: longest such pause.
        audit_save_s: what the audit found reaches the disk at most that much later, and when the agent stops. A power
            cut loses what was audited since; an alarm is written at once.
        boot_id_file: names this run of the machine. A process that ended with its machine was not killed by a model.
        block_s: how long a version that failed here is left alone, in seconds during which the agent runs; doubled with
            each further failure, up to 32-fold. ``penstock agent unblock MODEL`` ends it at once.
        patience: attempts that fail for want of a connection before the device reports FAILED instead of FETCHING.
    """

    probation_s: Seconds = 30.0
    probation_requests: Count = 200
    max_crashes: Count = 3
    max_failures: Count = 16
    retry_base_s: Positive = 0.5
    retry_max_s: Positive = 300.0
    audit_save_s: Positive = 600.0
    boot_id_file: str = "/proc/sys/kernel/random/boot_id"
    block_s: Positive = 86_400.0
    patience: Count = 3


class HeartbeatSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Reporting to the fleet service.

    Attributes:
        interval_s: until the service says otherwise; what it says is held within ``min_s`` and ``max_s``.
        min_s: shortest time between two heartbeats, also when the state changes quickly.
        max_s: longest time between two heartbeats, also while the service is out of reach.
        timeout_s: of one call. Failures back off with full jitter from ``interval_s`` to ``max_s``.
    """

    interval_s: Positive = 5.0
    min_s: Positive = 0.1
    max_s: Positive = 60.0
    timeout_s: Positive = 5.0


class OutboxSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Outcome records on their way to the fleet service.

    Attributes:
        flush_s: how often the counts since the last flush become a record and are delivered. A power cut loses at most
            the counts since the last flush; a shorter interval wears the disk in proportion (120 s: under 50 MB a day).
        max_records: records in the queue on disk.
        max_bytes: size of the queue on disk.
        ttl_s: age at which a record is given up: time in which the device ran, whatever its calendar says.
        when_full: ``merge`` folds the two oldest unsent records of one artifact into one (counts are kept, their
            resolution in time is not); ``overwrite`` drops the oldest record.
        max_batch: records in one call.
    """

    flush_s: Positive = 120.0
    max_records: Count = 10_000
    max_bytes: Annotated[int, Meta(ge=128 * _KIB)] = 16 * _MIB
    ttl_s: Positive = 30 * 86_400.0
    when_full: Literal["merge", "overwrite"] = "merge"
    max_batch: Annotated[int, Meta(ge=1, le=1000)] = 256


class AgentSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of one agent.

    Attributes:
        device_id: 1 to 128 letters, digits and ``. _ : -``; "" for one that is generated once and kept in the data
            directory.
        data_dir: "" for ``/var/lib/penstock/agent`` (root) or ``$XDG_DATA_HOME/penstock/agent`` (anybody else).
        socket: unix socket path, mode 0660; "" for ``agent.sock`` in a given data directory, else
            ``/run/penstock/agent.sock`` (root) or ``$XDG_RUNTIME_DIR/penstock/agent.sock``.
        tcp: ``host:port`` to serve HTTP on TCP too; port 0 takes a free one. "" (the default) is off.
        core: gRPC target for escalations, heartbeats and outcomes: ``grpc://host:port``, or ``grpcs://host`` over TLS.
        registry: OCI registry to pull from, with the namespace of its models as a path: ``https://ghcr.io/acme``.
        registry_user: whose password ``registry_token`` is, in a registry that takes one or names a service of tokens.
        registry_token: sent to the registry in place of ``token``, for one that is not the core; "" for ``token``. As
            with that, there is no flag for it.
        token: sent to the core and the registry as a bearer token, where the core has tenants. There is no flag for it:
            a command line can be read by other users; use the file or PENSTOCK_AGENT_TOKEN.
        subscriptions: models to run; ``*`` for whatever the fleet service assigns.
        labels: what operators select devices by.
        target: compile target, e.g. ``x86-64-vnni``; "" detects it.
        rung: which rung of an artifact's cascade this device runs: ``edge``, or the name of one between edge and cloud.
        trust_root: directory of public keys (``penstock keys trust``); only what one of them signed is then used. "" is
            PENSTOCK_TRUST_ROOT, or else ~/.config/penstock/trust if it is there; without any, nothing need be signed.
        tls: which authorities this device trusts where it dials over TLS, and what it shows there.
        generation: how language models are run.
        traces: spans of requests and escalations.
    """

    device_id: str = ""
    data_dir: str = ""
    socket: str = ""
    tcp: str = ""
    core: str = "grpc://127.0.0.1:8001"
    registry: str = "http://127.0.0.1:8000"
    registry_user: str = ""
    registry_token: str = ""
    token: str = ""
    subscriptions: tuple[str, ...] = ("*",)
    labels: dict[str, str] = {}
    target: str = ""
    rung: Rung = "edge"
    trust_root: str = ""
    cascade: CascadeSettings = field(default_factory=CascadeSettings)
    escalation: EscalationSettings = field(default_factory=EscalationSettings)
    link: LinkSettings = field(default_factory=LinkSettings)
    limits: LimitsSettings = field(default_factory=LimitsSettings)
    fetch: FetchSettings = field(default_factory=FetchSettings)
    update: UpdateSettings = field(default_factory=UpdateSettings)
    heartbeat: HeartbeatSettings = field(default_factory=HeartbeatSettings)
    outbox: OutboxSettings = field(default_factory=OutboxSettings)
    log: LogSettings = field(default_factory=LogSettings)
    tls: Tls = field(default_factory=Tls)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    traces: TraceSettings = field(default_factory=TraceSettings)


def load(
    *, file: Path | None = None, env: Mapping[str, str] | None = None, flags: Mapping[str, Any] | None = None
) -> AgentSettings:
    """Read the settings and fill in the paths that depend on the user, so that none is left "".

    Raises:
        ConfigError: unreadable file, unknown key (with the nearest known name), wrong type, out of range.
    """
    environment = os.environ if env is None else env
    settings = config.load(AgentSettings, file=file, env=environment, env_prefix=ENV_PREFIX, flags=flags)
    return with_paths(settings, environment)


def with_paths(settings: AgentSettings, env: Mapping[str, str]) -> AgentSettings:
    """Return ``settings`` with ``data_dir`` and ``socket`` filled in, both absolute.

    Raises:
        ConfigError: a socket path longer than the operating system allows, a registry that is no URL, not a device id.
    """
    try:
        if settings.device_id:
            check_device_id(settings.device_id)
        if not parse_target(settings.core).is_grpc:
            raise ConfigError(f"core: {settings.core!r} is not grpc://host:port, nor grpcs://host; devices ask by gRPC")
    except InvalidInput as error:
        raise ConfigError(error.message) from None
    # found out here, not as the reason of a pull that fails again and again on a device far away
    try:
        parse_registry(settings.registry)
    except InvalidInput as error:
        raise ConfigError(error.message) from None
    if settings.registry_user and not settings.registry_token:
        raise ConfigError("registry_user: a user needs its password or token in registry_token")
    if settings.rung == "cloud":
        raise ConfigError("rung: 'cloud' is what a core serves; an agent runs 'edge', or a rung between the two")
    data_dir = expanded(settings.data_dir or _default_data_dir(env))
    socket = expanded(settings.socket or _default_socket(settings, data_dir, env))
    if len(os.fsencode(socket)) > _MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"socket: {socket} is longer than the {_MAX_SOCKET_PATH_BYTES} bytes a unix socket may have; "
            "choose a shorter one with --socket"
        )
    return msgspec.structs.replace(settings, data_dir=str(data_dir), socket=str(socket))


def _default_data_dir(env: Mapping[str, str]) -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/penstock/agent")
    try:
        return data_directory(env) / "agent"
    except ConfigError as error:
        raise ConfigError(f"data_dir: {error.message}, or give --data-dir (--socket, of an agent that runs)") from None


def _default_socket(settings: AgentSettings, data_dir: Path, env: Mapping[str, str]) -> Path:
    if settings.data_dir:  # a data directory of its own is an agent of its own
        return data_dir / "agent.sock"
    if os.geteuid() == 0:
        return Path("/run/penstock/agent.sock")
    runtime_dir = env.get("XDG_RUNTIME_DIR")
    return Path(runtime_dir) / "penstock" / "agent.sock" if runtime_dir else data_dir / "agent.sock"
