"""Triton's extensions over gRPC, unary ones: the documents that HTTP answers with, as messages.

Decodes, asks, encodes. Who may ask is checked by the caller, ``cloud_core.api.rpc.grpc_oip``, before anything
is parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message

from cloud_core.serving.dataplane import DataPlane
from penstock.errors import InvalidInput
from penstock.http.extensions import NO_CUDA, Extensions
from penstock.policy.access import Action
from penstock.rpc.pb import oip_pb2 as pb
from penstock.wire.model_documents import config_document, statistics_documents

_M = TypeVar("_M", bound=Message)
Extension = Callable[[bytes], Message]
"""A request's bytes in, its answer out."""


class ExtensionCalls:
    """``calls`` maps methods to what a caller must be allowed to do, and to what answers."""

    def __init__(self, plane: DataPlane, extensions: Extensions) -> None:
        self._plane, self._regions, self._live = plane, extensions.regions, extensions.live

    def calls(self) -> Mapping[str, tuple[Action, Extension]]:
        """List the methods."""
        return {
            "ModelConfig": (Action.INFER, self._model_config),
            "ModelStatistics": (Action.INFER, self._model_statistics),
            "SystemSharedMemoryStatus": (Action.INFER, self._memory_status),
            "SystemSharedMemoryRegister": (Action.INFER, self._memory_register),
            "SystemSharedMemoryUnregister": (Action.INFER, self._memory_unregister),
            "CudaSharedMemoryStatus": (Action.INFER, lambda data: pb.CudaSharedMemoryStatusResponse()),
            "CudaSharedMemoryRegister": (Action.INFER, _refuse_cuda),
            "CudaSharedMemoryUnregister": (Action.INFER, lambda data: pb.CudaSharedMemoryUnregisterResponse()),
            "TraceSetting": (Action.OPERATE, self._trace_setting),
            "LogSettings": (Action.OPERATE, self._log_settings),
        }

    def _model_config(self, data: bytes) -> Message:
        asked = parse(pb.ModelConfigRequest, data)
        return pb.ModelConfigResponse(
            config=_filled(pb.ModelConfig, config_document(self._plane.config(asked.name, asked.version)))
        )

    def _model_statistics(self, data: bytes) -> Message:
        asked = parse(pb.ModelStatisticsRequest, data)
        told = statistics_documents(self._plane, asked.name, asked.version)
        return _filled(pb.ModelStatisticsResponse, {"model_stats": told})

    def _memory_status(self, data: bytes) -> Message:
        asked = parse(pb.SystemSharedMemoryStatusRequest, data)
        answer = pb.SystemSharedMemoryStatusResponse()
        for one in self._regions.status(asked.name):
            told = answer.regions[one.name]
            told.name, told.key, told.offset, told.byte_size = one.name, one.key, one.offset, one.size_bytes
        return answer

    def _memory_register(self, data: bytes) -> Message:
        asked = parse(pb.SystemSharedMemoryRegisterRequest, data)
        self._regions.register(asked.name, asked.key, asked.offset, asked.byte_size)
        return pb.SystemSharedMemoryRegisterResponse()

    def _memory_unregister(self, data: bytes) -> Message:
        self._regions.unregister(parse(pb.SystemSharedMemoryUnregisterRequest, data).name)
        return pb.SystemSharedMemoryUnregisterResponse()

    def _trace_setting(self, data: bytes) -> Message:
        asked = parse(pb.TraceSettingRequest, data)
        if asked.model_name and asked.settings:
            raise InvalidInput("model_name: traces are set for all models at once; leave it out", field="model_name")
        self._live.set_trace({name: list(given.value) for name, given in asked.settings.items()})
        answer = pb.TraceSettingResponse()
        for name, values in self._live.trace_settings().items():
            answer.settings[name].value.extend(values)
        return answer

    def _log_settings(self, data: bytes) -> Message:
        asked = parse(pb.LogSettingsRequest, data)
        self._live.set_log({name: _log_value(name, given) for name, given in asked.settings.items()})
        answer = pb.LogSettingsResponse()
        for name, value in self._live.log_settings().items():
            told = answer.settings[name]
            if isinstance(value, bool):
                told.bool_param = value
            elif isinstance(value, int):
                told.uint32_param = value
            else:
                told.string_param = value
        return answer


def _refuse_cuda(data: bytes) -> Message:
    raise InvalidInput(NO_CUDA, field="raw_handle")


def _log_value(name: str, given: pb.LogSettingsRequest.SettingValue) -> object:
    choice = given.WhichOneof("parameter_choice")
    if choice is None:
        raise InvalidInput(f"{name[:60]}: has no value", field=name[:60])
    return getattr(given, choice)


def parse(kind: type[_M], data: bytes) -> _M:
    """Read a message.

    Raises:
        InvalidInput: these bytes are none.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidInput(f"message: not a {kind.DESCRIPTOR.name}: {error}", field="message") from error


def _filled(kind: type[_M], document: dict[str, Any]) -> _M:
    return ParseDict(document, kind())
