"""Triton's extensions over gRPC, unary ones: the documents that HTTP answers with, as messages.

Decodes, asks, encodes. Who may ask is checked by the caller, ``cloud_core.api.grpc_oip``, before anything is parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message

from cloud_core.serving.dataplane import DataPlane
from penstock.errors import InvalidInput
from penstock.policy.access import Action
from penstock.rpc.pb import oip_pb2 as pb
from penstock.wire.model_documents import config_document, statistics_documents

_M = TypeVar("_M", bound=Message)
Extension = Callable[[bytes], Message]
"""A request's bytes in, its answer out."""


class Extensions:
    """``calls`` maps methods to what a caller must be allowed to do, and to what answers."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def calls(self) -> Mapping[str, tuple[Action, Extension]]:
        """List the methods."""
        return {
            "ModelConfig": (Action.INFER, self._model_config),
            "ModelStatistics": (Action.INFER, self._model_statistics),
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
