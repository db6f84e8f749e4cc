from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UpdatePhase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    UPDATE_PHASE_UNSPECIFIED: _ClassVar[UpdatePhase]
    IDLE: _ClassVar[UpdatePhase]
    FETCHING: _ClassVar[UpdatePhase]
    PROVING: _ClassVar[UpdatePhase]
    PROBATION: _ClassVar[UpdatePhase]
    COMMITTED: _ClassVar[UpdatePhase]
    REVERTED: _ClassVar[UpdatePhase]
    FAILED: _ClassVar[UpdatePhase]

class CascadeMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CASCADE_MODE_UNSPECIFIED: _ClassVar[CascadeMode]
    CASCADE: _ClassVar[CascadeMode]
    ESCALATE_ALL: _ClassVar[CascadeMode]
    CLOUD_ONLY: _ClassVar[CascadeMode]

class RolloutState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLLOUT_STATE_UNSPECIFIED: _ClassVar[RolloutState]
    PLANNED: _ClassVar[RolloutState]
    RUNNING: _ClassVar[RolloutState]
    PAUSED: _ClassVar[RolloutState]
    SUCCEEDED: _ClassVar[RolloutState]
    STOPPED_BY_GATE: _ClassVar[RolloutState]
    ABORTED: _ClassVar[RolloutState]
    UNDONE: _ClassVar[RolloutState]

class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_UNSPECIFIED: _ClassVar[Verdict]
    PASS: _ClassVar[Verdict]
    FAIL: _ClassVar[Verdict]
    HOLD: _ClassVar[Verdict]
UPDATE_PHASE_UNSPECIFIED: UpdatePhase
IDLE: UpdatePhase
FETCHING: UpdatePhase
PROVING: UpdatePhase
PROBATION: UpdatePhase
COMMITTED: UpdatePhase
REVERTED: UpdatePhase
FAILED: UpdatePhase
CASCADE_MODE_UNSPECIFIED: CascadeMode
CASCADE: CascadeMode
ESCALATE_ALL: CascadeMode
CLOUD_ONLY: CascadeMode
ROLLOUT_STATE_UNSPECIFIED: RolloutState
PLANNED: RolloutState
RUNNING: RolloutState
PAUSED: RolloutState
SUCCEEDED: RolloutState
STOPPED_BY_GATE: RolloutState
ABORTED: RolloutState
UNDONE: RolloutState
VERDICT_UNSPECIFIED: Verdict
PASS: Verdict
FAIL: Verdict
HOLD: Verdict

class OutcomeCounts(_message.Message):
    __slots__ = ("requests", "kept", "escalated", "unreachable", "failed", "audited", "audit_harm", "not_finite")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    ESCALATED_FIELD_NUMBER: _ClassVar[int]
    UNREACHABLE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    AUDITED_FIELD_NUMBER: _ClassVar[int]
    AUDIT_HARM_FIELD_NUMBER: _ClassVar[int]
    NOT_FINITE_FIELD_NUMBER: _ClassVar[int]
    requests: int
    kept: int
    escalated: int
    unreachable: int
    failed: int
    audited: int
    audit_harm: int
    not_finite: int
    def __init__(self, requests: _Optional[int] = ..., kept: _Optional[int] = ..., escalated: _Optional[int] = ..., unreachable: _Optional[int] = ..., failed: _Optional[int] = ..., audited: _Optional[int] = ..., audit_harm: _Optional[int] = ..., not_finite: _Optional[int] = ...) -> None: ...

class ReportedModel(_message.Message):
    __slots__ = ("model", "active_digest", "active_version", "certificate_digest", "desired_digest", "phase", "mode", "failed_digest", "error", "fetched_bytes", "total_bytes", "max_harm", "desired_certificate_digest")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DESIRED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    FAILED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    FETCHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_HARM_FIELD_NUMBER: _ClassVar[int]
    DESIRED_CERTIFICATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    model: str
    active_digest: str
    active_version: str
    certificate_digest: str
    desired_digest: str
    phase: UpdatePhase
    mode: CascadeMode
    failed_digest: str
    error: str
    fetched_bytes: int
    total_bytes: int
    max_harm: float
    desired_certificate_digest: str
    def __init__(self, model: _Optional[str] = ..., active_digest: _Optional[str] = ..., active_version: _Optional[str] = ..., certificate_digest: _Optional[str] = ..., desired_digest: _Optional[str] = ..., phase: _Optional[_Union[UpdatePhase, str]] = ..., mode: _Optional[_Union[CascadeMode, str]] = ..., failed_digest: _Optional[str] = ..., error: _Optional[str] = ..., fetched_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., max_harm: _Optional[float] = ..., desired_certificate_digest: _Optional[str] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("device_id", "agent_version", "labels", "target", "subscriptions", "models", "outbox_records", "rung", "instance", "run")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SUBSCRIPTIONS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    OUTBOX_RECORDS_FIELD_NUMBER: _ClassVar[int]
    RUNG_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    agent_version: str
    labels: _containers.ScalarMap[str, str]
    target: str
    subscriptions: _containers.RepeatedScalarFieldContainer[str]
    models: _containers.RepeatedCompositeFieldContainer[ReportedModel]
    outbox_records: int
    rung: str
    instance: str
    run: str
    def __init__(self, device_id: _Optional[str] = ..., agent_version: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., target: _Optional[str] = ..., subscriptions: _Optional[_Iterable[str]] = ..., models: _Optional[_Iterable[_Union[ReportedModel, _Mapping]]] = ..., outbox_records: _Optional[int] = ..., rung: _Optional[str] = ..., instance: _Optional[str] = ..., run: _Optional[str] = ...) -> None: ...

class DesiredModel(_message.Message):
    __slots__ = ("model", "version", "artifact_digest", "certificate_digest", "is_distrusted", "trusted_at", "is_removed")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    IS_DISTRUSTED_FIELD_NUMBER: _ClassVar[int]
    TRUSTED_AT_FIELD_NUMBER: _ClassVar[int]
    IS_REMOVED_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    artifact_digest: str
    certificate_digest: str
    is_distrusted: bool
    trusted_at: float
    is_removed: bool
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., artifact_digest: _Optional[str] = ..., certificate_digest: _Optional[str] = ..., is_distrusted: _Optional[bool] = ..., trusted_at: _Optional[float] = ..., is_removed: _Optional[bool] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("models", "next_heartbeat_s", "counts_instances", "must_renew_instance")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_HEARTBEAT_S_FIELD_NUMBER: _ClassVar[int]
    COUNTS_INSTANCES_FIELD_NUMBER: _ClassVar[int]
    MUST_RENEW_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[DesiredModel]
    next_heartbeat_s: float
    counts_instances: bool
    must_renew_instance: bool
    def __init__(self, models: _Optional[_Iterable[_Union[DesiredModel, _Mapping]]] = ..., next_heartbeat_s: _Optional[float] = ..., counts_instances: _Optional[bool] = ..., must_renew_instance: _Optional[bool] = ...) -> None: ...

class OutcomeRecord(_message.Message):
    __slots__ = ("sequence", "model", "artifact_digest", "counts", "started_at", "ended_at")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    model: str
    artifact_digest: str
    counts: OutcomeCounts
    started_at: float
    ended_at: float
    def __init__(self, sequence: _Optional[int] = ..., model: _Optional[str] = ..., artifact_digest: _Optional[str] = ..., counts: _Optional[_Union[OutcomeCounts, _Mapping]] = ..., started_at: _Optional[float] = ..., ended_at: _Optional[float] = ...) -> None: ...

class DeliverOutcomesRequest(_message.Message):
    __slots__ = ("device_id", "records", "instance")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    records: _containers.RepeatedCompositeFieldContainer[OutcomeRecord]
    instance: str
    def __init__(self, device_id: _Optional[str] = ..., records: _Optional[_Iterable[_Union[OutcomeRecord, _Mapping]]] = ..., instance: _Optional[str] = ...) -> None: ...

class DeliverOutcomesResponse(_message.Message):
    __slots__ = ("durable_sequence",)
    DURABLE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    durable_sequence: int
    def __init__(self, durable_sequence: _Optional[int] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("device_id", "agent_version", "labels", "target", "models", "last_seen_s", "is_silent", "outbox_records", "outcomes", "is_duplicated", "instances", "first_seen_at", "runs_since")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class RunsSinceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_S_FIELD_NUMBER: _ClassVar[int]
    IS_SILENT_FIELD_NUMBER: _ClassVar[int]
    OUTBOX_RECORDS_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    IS_DUPLICATED_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEEN_AT_FIELD_NUMBER: _ClassVar[int]
    RUNS_SINCE_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    agent_version: str
    labels: _containers.ScalarMap[str, str]
    target: str
    models: _containers.RepeatedCompositeFieldContainer[ReportedModel]
    last_seen_s: float
    is_silent: bool
    outbox_records: int
    outcomes: _containers.RepeatedCompositeFieldContainer[DeliveredOutcomes]
    is_duplicated: bool
    instances: _containers.RepeatedCompositeFieldContainer[DeviceInstance]
    first_seen_at: float
    runs_since: _containers.ScalarMap[str, float]
    def __init__(self, device_id: _Optional[str] = ..., agent_version: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., target: _Optional[str] = ..., models: _Optional[_Iterable[_Union[ReportedModel, _Mapping]]] = ..., last_seen_s: _Optional[float] = ..., is_silent: _Optional[bool] = ..., outbox_records: _Optional[int] = ..., outcomes: _Optional[_Iterable[_Union[DeliveredOutcomes, _Mapping]]] = ..., is_duplicated: _Optional[bool] = ..., instances: _Optional[_Iterable[_Union[DeviceInstance, _Mapping]]] = ..., first_seen_at: _Optional[float] = ..., runs_since: _Optional[_Mapping[str, float]] = ...) -> None: ...

class DeviceInstance(_message.Message):
    __slots__ = ("instance", "agents", "durable_sequence", "outcomes")
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    instance: str
    agents: int
    durable_sequence: int
    outcomes: _containers.RepeatedCompositeFieldContainer[DeliveredOutcomes]
    def __init__(self, instance: _Optional[str] = ..., agents: _Optional[int] = ..., durable_sequence: _Optional[int] = ..., outcomes: _Optional[_Iterable[_Union[DeliveredOutcomes, _Mapping]]] = ...) -> None: ...

class DeliveredOutcomes(_message.Message):
    __slots__ = ("artifact_digest", "counts")
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    artifact_digest: str
    counts: OutcomeCounts
    def __init__(self, artifact_digest: _Optional[str] = ..., counts: _Optional[_Union[OutcomeCounts, _Mapping]] = ...) -> None: ...

class FleetPromise(_message.Message):
    __slots__ = ("model", "artifact_digest", "certificate_digest", "devices", "audited", "audit_harm", "bound", "evidence", "run_length", "has_alarm", "alarmed_at", "is_distrusted", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    AUDITED_FIELD_NUMBER: _ClassVar[int]
    AUDIT_HARM_FIELD_NUMBER: _ClassVar[int]
    BOUND_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    RUN_LENGTH_FIELD_NUMBER: _ClassVar[int]
    HAS_ALARM_FIELD_NUMBER: _ClassVar[int]
    ALARMED_AT_FIELD_NUMBER: _ClassVar[int]
    IS_DISTRUSTED_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    artifact_digest: str
    certificate_digest: str
    devices: int
    audited: int
    audit_harm: int
    bound: float
    evidence: float
    run_length: float
    has_alarm: bool
    alarmed_at: float
    is_distrusted: bool
    version: str
    def __init__(self, model: _Optional[str] = ..., artifact_digest: _Optional[str] = ..., certificate_digest: _Optional[str] = ..., devices: _Optional[int] = ..., audited: _Optional[int] = ..., audit_harm: _Optional[int] = ..., bound: _Optional[float] = ..., evidence: _Optional[float] = ..., run_length: _Optional[float] = ..., has_alarm: _Optional[bool] = ..., alarmed_at: _Optional[float] = ..., is_distrusted: _Optional[bool] = ..., version: _Optional[str] = ...) -> None: ...

class ListPromisesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPromisesResponse(_message.Message):
    __slots__ = ("promises",)
    PROMISES_FIELD_NUMBER: _ClassVar[int]
    promises: _containers.RepeatedCompositeFieldContainer[FleetPromise]
    def __init__(self, promises: _Optional[_Iterable[_Union[FleetPromise, _Mapping]]] = ...) -> None: ...

class ListDevicesRequest(_message.Message):
    __slots__ = ("selector", "page_size", "after")
    class SelectorEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    selector: _containers.ScalarMap[str, str]
    page_size: int
    after: str
    def __init__(self, selector: _Optional[_Mapping[str, str]] = ..., page_size: _Optional[int] = ..., after: _Optional[str] = ...) -> None: ...

class ListDevicesResponse(_message.Message):
    __slots__ = ("devices", "next_after", "matching", "known", "labels")
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    NEXT_AFTER_FIELD_NUMBER: _ClassVar[int]
    MATCHING_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    next_after: str
    matching: int
    known: int
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., next_after: _Optional[str] = ..., matching: _Optional[int] = ..., known: _Optional[int] = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class CountDevicesRequest(_message.Message):
    __slots__ = ("by", "selector", "model")
    class SelectorEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    BY_FIELD_NUMBER: _ClassVar[int]
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    by: str
    selector: _containers.ScalarMap[str, str]
    model: str
    def __init__(self, by: _Optional[str] = ..., selector: _Optional[_Mapping[str, str]] = ..., model: _Optional[str] = ...) -> None: ...

class DeviceGroup(_message.Message):
    __slots__ = ("name", "devices", "silent", "phases")
    class PhasesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    name: str
    devices: int
    silent: int
    phases: _containers.ScalarMap[str, int]
    def __init__(self, name: _Optional[str] = ..., devices: _Optional[int] = ..., silent: _Optional[int] = ..., phases: _Optional[_Mapping[str, int]] = ...) -> None: ...

class CountDevicesResponse(_message.Message):
    __slots__ = ("groups",)
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[DeviceGroup]
    def __init__(self, groups: _Optional[_Iterable[_Union[DeviceGroup, _Mapping]]] = ...) -> None: ...

class ForgetDeviceRequest(_message.Message):
    __slots__ = ("device_id", "who", "reason")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    who: str
    reason: str
    def __init__(self, device_id: _Optional[str] = ..., who: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ForgetDeviceResponse(_message.Message):
    __slots__ = ("device_id",)
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    def __init__(self, device_id: _Optional[str] = ...) -> None: ...

class GateSettings(_message.Message):
    __slots__ = ("alpha", "max_failure_rate", "min_audited", "bake_s", "max_silence_s", "max_wave_s", "max_unreached_s", "max_unreached_rate", "detectable_ratio", "power", "stops_when_all_revert")
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    MAX_FAILURE_RATE_FIELD_NUMBER: _ClassVar[int]
    MIN_AUDITED_FIELD_NUMBER: _ClassVar[int]
    BAKE_S_FIELD_NUMBER: _ClassVar[int]
    MAX_SILENCE_S_FIELD_NUMBER: _ClassVar[int]
    MAX_WAVE_S_FIELD_NUMBER: _ClassVar[int]
    MAX_UNREACHED_S_FIELD_NUMBER: _ClassVar[int]
    MAX_UNREACHED_RATE_FIELD_NUMBER: _ClassVar[int]
    DETECTABLE_RATIO_FIELD_NUMBER: _ClassVar[int]
    POWER_FIELD_NUMBER: _ClassVar[int]
    STOPS_WHEN_ALL_REVERT_FIELD_NUMBER: _ClassVar[int]
    alpha: float
    max_failure_rate: float
    min_audited: int
    bake_s: float
    max_silence_s: float
    max_wave_s: float
    max_unreached_s: float
    max_unreached_rate: float
    detectable_ratio: float
    power: float
    stops_when_all_revert: bool
    def __init__(self, alpha: _Optional[float] = ..., max_failure_rate: _Optional[float] = ..., min_audited: _Optional[int] = ..., bake_s: _Optional[float] = ..., max_silence_s: _Optional[float] = ..., max_wave_s: _Optional[float] = ..., max_unreached_s: _Optional[float] = ..., max_unreached_rate: _Optional[float] = ..., detectable_ratio: _Optional[float] = ..., power: _Optional[float] = ..., stops_when_all_revert: _Optional[bool] = ...) -> None: ...

class PlanRolloutRequest(_message.Message):
    __slots__ = ("model", "version", "selector", "device_ids", "waves", "seed", "gate", "is_removal", "who", "reason")
    class SelectorEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    DEVICE_IDS_FIELD_NUMBER: _ClassVar[int]
    WAVES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    IS_REMOVAL_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    selector: _containers.ScalarMap[str, str]
    device_ids: _containers.RepeatedScalarFieldContainer[str]
    waves: _containers.RepeatedScalarFieldContainer[float]
    seed: int
    gate: GateSettings
    is_removal: bool
    who: str
    reason: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., selector: _Optional[_Mapping[str, str]] = ..., device_ids: _Optional[_Iterable[str]] = ..., waves: _Optional[_Iterable[float]] = ..., seed: _Optional[int] = ..., gate: _Optional[_Union[GateSettings, _Mapping]] = ..., is_removal: _Optional[bool] = ..., who: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class PlannedDevice(_message.Message):
    __slots__ = ("device_id", "wave", "base_digest", "certificate_digest", "base_certificate", "base_version")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    WAVE_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    wave: int
    base_digest: str
    certificate_digest: str
    base_certificate: str
    base_version: str
    def __init__(self, device_id: _Optional[str] = ..., wave: _Optional[int] = ..., base_digest: _Optional[str] = ..., certificate_digest: _Optional[str] = ..., base_certificate: _Optional[str] = ..., base_version: _Optional[str] = ...) -> None: ...

class WaveForesight(_message.Message):
    __slots__ = ("devices", "stopping_failures", "holding_failures", "stops_when_all_revert", "visible_failure_rate", "audited_rows", "visible_harm", "power")
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FAILURES_FIELD_NUMBER: _ClassVar[int]
    HOLDING_FAILURES_FIELD_NUMBER: _ClassVar[int]
    STOPS_WHEN_ALL_REVERT_FIELD_NUMBER: _ClassVar[int]
    VISIBLE_FAILURE_RATE_FIELD_NUMBER: _ClassVar[int]
    AUDITED_ROWS_FIELD_NUMBER: _ClassVar[int]
    VISIBLE_HARM_FIELD_NUMBER: _ClassVar[int]
    POWER_FIELD_NUMBER: _ClassVar[int]
    devices: int
    stopping_failures: int
    holding_failures: int
    stops_when_all_revert: bool
    visible_failure_rate: float
    audited_rows: int
    visible_harm: float
    power: float
    def __init__(self, devices: _Optional[int] = ..., stopping_failures: _Optional[int] = ..., holding_failures: _Optional[int] = ..., stops_when_all_revert: _Optional[bool] = ..., visible_failure_rate: _Optional[float] = ..., audited_rows: _Optional[int] = ..., visible_harm: _Optional[float] = ..., power: _Optional[float] = ...) -> None: ...

class RolloutPlan(_message.Message):
    __slots__ = ("rollout_id", "model", "version", "artifact_digest", "certificate_digest", "devices", "wave_count", "seed", "gate", "promised_harm", "skipped", "plan_digest", "is_removal", "certified_harm", "foresight", "newcomers")
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    WAVE_COUNT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    PROMISED_HARM_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    IS_REMOVAL_FIELD_NUMBER: _ClassVar[int]
    CERTIFIED_HARM_FIELD_NUMBER: _ClassVar[int]
    FORESIGHT_FIELD_NUMBER: _ClassVar[int]
    NEWCOMERS_FIELD_NUMBER: _ClassVar[int]
    rollout_id: str
    model: str
    version: str
    artifact_digest: str
    certificate_digest: str
    devices: _containers.RepeatedCompositeFieldContainer[PlannedDevice]
    wave_count: int
    seed: int
    gate: GateSettings
    promised_harm: float
    skipped: _containers.RepeatedScalarFieldContainer[str]
    plan_digest: str
    is_removal: bool
    certified_harm: float
    foresight: _containers.RepeatedCompositeFieldContainer[WaveForesight]
    newcomers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, rollout_id: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., artifact_digest: _Optional[str] = ..., certificate_digest: _Optional[str] = ..., devices: _Optional[_Iterable[_Union[PlannedDevice, _Mapping]]] = ..., wave_count: _Optional[int] = ..., seed: _Optional[int] = ..., gate: _Optional[_Union[GateSettings, _Mapping]] = ..., promised_harm: _Optional[float] = ..., skipped: _Optional[_Iterable[str]] = ..., plan_digest: _Optional[str] = ..., is_removal: _Optional[bool] = ..., certified_harm: _Optional[float] = ..., foresight: _Optional[_Iterable[_Union[WaveForesight, _Mapping]]] = ..., newcomers: _Optional[_Iterable[str]] = ...) -> None: ...

class ApplyRolloutRequest(_message.Message):
    __slots__ = ("rollout_id", "plan_digest", "who", "reason")
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    rollout_id: str
    plan_digest: str
    who: str
    reason: str
    def __init__(self, rollout_id: _Optional[str] = ..., plan_digest: _Optional[str] = ..., who: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class SetDefaultRequest(_message.Message):
    __slots__ = ("model", "version", "who", "reason")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    who: str
    reason: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., who: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class SetDefaultResponse(_message.Message):
    __slots__ = ("model", "version", "artifact_digest", "previous_digest")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    artifact_digest: str
    previous_digest: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., artifact_digest: _Optional[str] = ..., previous_digest: _Optional[str] = ...) -> None: ...

class TrustDeviceRequest(_message.Message):
    __slots__ = ("device_id", "model", "who", "reason")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    model: str
    who: str
    reason: str
    def __init__(self, device_id: _Optional[str] = ..., model: _Optional[str] = ..., who: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class TrustedModel(_message.Message):
    __slots__ = ("model", "artifact_digest", "certificate_digest", "mode")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    model: str
    artifact_digest: str
    certificate_digest: str
    mode: CascadeMode
    def __init__(self, model: _Optional[str] = ..., artifact_digest: _Optional[str] = ..., certificate_digest: _Optional[str] = ..., mode: _Optional[_Union[CascadeMode, str]] = ...) -> None: ...

class TrustDeviceResponse(_message.Message):
    __slots__ = ("device_id", "models")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    models: _containers.RepeatedCompositeFieldContainer[TrustedModel]
    def __init__(self, device_id: _Optional[str] = ..., models: _Optional[_Iterable[_Union[TrustedModel, _Mapping]]] = ...) -> None: ...

class OperatorAction(_message.Message):
    __slots__ = ("at", "who", "action", "subject", "reason")
    AT_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    at: float
    who: str
    action: str
    subject: str
    reason: str
    def __init__(self, at: _Optional[float] = ..., who: _Optional[str] = ..., action: _Optional[str] = ..., subject: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ListActionsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListActionsResponse(_message.Message):
    __slots__ = ("actions",)
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    actions: _containers.RepeatedCompositeFieldContainer[OperatorAction]
    def __init__(self, actions: _Optional[_Iterable[_Union[OperatorAction, _Mapping]]] = ...) -> None: ...

class GetRolloutRequest(_message.Message):
    __slots__ = ("rollout_id", "action")
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    rollout_id: str
    action: str
    def __init__(self, rollout_id: _Optional[str] = ..., action: _Optional[str] = ...) -> None: ...

class ListRolloutsRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class ListRolloutsResponse(_message.Message):
    __slots__ = ("rollouts",)
    ROLLOUTS_FIELD_NUMBER: _ClassVar[int]
    rollouts: _containers.RepeatedCompositeFieldContainer[Rollout]
    def __init__(self, rollouts: _Optional[_Iterable[_Union[Rollout, _Mapping]]] = ...) -> None: ...

class RolloutActionRequest(_message.Message):
    __slots__ = ("rollout_id", "who", "reason")
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    rollout_id: str
    who: str
    reason: str
    def __init__(self, rollout_id: _Optional[str] = ..., who: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ResumeRolloutRequest(_message.Message):
    __slots__ = ("rollout_id", "who", "reason", "accept", "accept_all")
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_ALL_FIELD_NUMBER: _ClassVar[int]
    rollout_id: str
    who: str
    reason: str
    accept: _containers.RepeatedScalarFieldContainer[str]
    accept_all: bool
    def __init__(self, rollout_id: _Optional[str] = ..., who: _Optional[str] = ..., reason: _Optional[str] = ..., accept: _Optional[_Iterable[str]] = ..., accept_all: _Optional[bool] = ...) -> None: ...

class AbortRolloutRequest(_message.Message):
    __slots__ = ("rollout_id", "keep", "who", "reason")
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    rollout_id: str
    keep: bool
    who: str
    reason: str
    def __init__(self, rollout_id: _Optional[str] = ..., keep: _Optional[bool] = ..., who: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class GateVerdict(_message.Message):
    __slots__ = ("verdict", "reason", "tests")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TESTS_FIELD_NUMBER: _ClassVar[int]
    verdict: Verdict
    reason: str
    tests: _containers.RepeatedCompositeFieldContainer[GateTest]
    def __init__(self, verdict: _Optional[_Union[Verdict, str]] = ..., reason: _Optional[str] = ..., tests: _Optional[_Iterable[_Union[GateTest, _Mapping]]] = ...) -> None: ...

class GateTest(_message.Message):
    __slots__ = ("name", "verdict", "reason", "measured", "limit", "samples", "e_value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    E_VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    verdict: Verdict
    reason: str
    measured: float
    limit: float
    samples: int
    e_value: float
    def __init__(self, name: _Optional[str] = ..., verdict: _Optional[_Union[Verdict, str]] = ..., reason: _Optional[str] = ..., measured: _Optional[float] = ..., limit: _Optional[float] = ..., samples: _Optional[int] = ..., e_value: _Optional[float] = ...) -> None: ...

class Wave(_message.Message):
    __slots__ = ("number", "is_released", "devices", "gate")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    IS_RELEASED_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    number: int
    is_released: bool
    devices: _containers.RepeatedCompositeFieldContainer[WaveDevice]
    gate: GateVerdict
    def __init__(self, number: _Optional[int] = ..., is_released: _Optional[bool] = ..., devices: _Optional[_Iterable[_Union[WaveDevice, _Mapping]]] = ..., gate: _Optional[_Union[GateVerdict, _Mapping]] = ...) -> None: ...

class WaveDevice(_message.Message):
    __slots__ = ("device_id", "phase", "active_digest", "active_version", "is_silent", "error", "counts", "is_duplicated", "is_there")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_VERSION_FIELD_NUMBER: _ClassVar[int]
    IS_SILENT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    IS_DUPLICATED_FIELD_NUMBER: _ClassVar[int]
    IS_THERE_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    phase: UpdatePhase
    active_digest: str
    active_version: str
    is_silent: bool
    error: str
    counts: OutcomeCounts
    is_duplicated: bool
    is_there: bool
    def __init__(self, device_id: _Optional[str] = ..., phase: _Optional[_Union[UpdatePhase, str]] = ..., active_digest: _Optional[str] = ..., active_version: _Optional[str] = ..., is_silent: _Optional[bool] = ..., error: _Optional[str] = ..., counts: _Optional[_Union[OutcomeCounts, _Mapping]] = ..., is_duplicated: _Optional[bool] = ..., is_there: _Optional[bool] = ...) -> None: ...

class RolloutEvent(_message.Message):
    __slots__ = ("at", "text", "who", "reason")
    AT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    WHO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    at: float
    text: str
    who: str
    reason: str
    def __init__(self, at: _Optional[float] = ..., text: _Optional[str] = ..., who: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Rollout(_message.Message):
    __slots__ = ("plan", "state", "waves", "status", "elapsed_s", "promises", "events", "waiting_plans", "acknowledged", "kept")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WAVES_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_S_FIELD_NUMBER: _ClassVar[int]
    PROMISES_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_PLANS_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    plan: RolloutPlan
    state: RolloutState
    waves: _containers.RepeatedCompositeFieldContainer[Wave]
    status: str
    elapsed_s: float
    promises: _containers.RepeatedCompositeFieldContainer[FleetPromise]
    events: _containers.RepeatedCompositeFieldContainer[RolloutEvent]
    waiting_plans: _containers.RepeatedScalarFieldContainer[str]
    acknowledged: _containers.RepeatedScalarFieldContainer[str]
    kept: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, plan: _Optional[_Union[RolloutPlan, _Mapping]] = ..., state: _Optional[_Union[RolloutState, str]] = ..., waves: _Optional[_Iterable[_Union[Wave, _Mapping]]] = ..., status: _Optional[str] = ..., elapsed_s: _Optional[float] = ..., promises: _Optional[_Iterable[_Union[FleetPromise, _Mapping]]] = ..., events: _Optional[_Iterable[_Union[RolloutEvent, _Mapping]]] = ..., waiting_plans: _Optional[_Iterable[str]] = ..., acknowledged: _Optional[_Iterable[str]] = ..., kept: _Optional[_Iterable[str]] = ...) -> None: ...
