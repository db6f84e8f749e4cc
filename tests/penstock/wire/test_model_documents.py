"""Configs and statistics in Triton's form: one document that also fills the messages of gRPC."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from penstock.rpc.pb import oip_pb2 as pb
from penstock.wire.inference import BatchStatistics, Ended, ModelConfig, ModelMetadata, ModelStatistics
from penstock.wire.model_documents import config_document, statistics_document
from penstock.wire.tensors import TensorSpec


def config(**changes: Any) -> dict[str, Any]:
    metadata = ModelMetadata(
        name="m",
        versions=("v1",),
        platform="onnxruntime_onnx",
        inputs=(TensorSpec(name="text", datatype="BYTES", shape=(-1, 1)),),
        outputs=(TensorSpec(name="y", datatype="FP16", shape=(-1, 3)),),
    )
    return config_document(
        ModelConfig(**{"metadata": metadata, "backend": "onnxruntime", "max_batch_rows": 8} | changes)
    )


def test_dimensions_leave_the_batch_out_where_rows_can_be_joined() -> None:
    assert (config()["input"][0]["dims"], config()["input"][0]["data_type"]) == ([1], "TYPE_STRING")
    alone = config(max_batch_rows=0)
    assert (alone["input"][0]["dims"], alone["max_batch_size"], "dynamic_batching" in alone) == ([-1, 1], 0, False)


@pytest.mark.parametrize(
    ("versions", "policy"),
    [("all", {"all": {}}), ("latest 3", {"latest": {"num_versions": 3}}), ("given v1, v2", None)],
)
def test_a_policy_of_versions_is_tritons_where_triton_has_one(versions: str, policy: Any) -> None:
    told = config(versions=versions)
    assert told.get("version_policy") == policy
    assert ("versions" in told["parameters"]) == (policy is None)


@pytest.mark.parametrize(
    "changes", [{}, {"on_gpu": True, "max_delay_s": 0.002}, {"versions": "given v1", "in_parts": True}]
)
def test_a_config_fills_its_message(changes: dict[str, Any]) -> None:
    message = ParseDict(config(**changes), pb.ModelConfig())
    kind = pb.ModelInstanceGroup.KIND_GPU if changes.get("on_gpu") else pb.ModelInstanceGroup.KIND_CPU
    assert message.instance_group[0].kind == kind
    assert message.dynamic_batching.max_queue_delay_microseconds == (2000 if changes.get("on_gpu") else 0)


def test_statistics_fill_their_message() -> None:
    one = ModelStatistics(
        model="m",
        version="v1",
        rows=7,
        succeeded=Ended(requests=3, seconds=0.5),
        failed=Ended(requests=1, seconds=0.1),
        queued=Ended(requests=3, seconds=0.2),
        computed=Ended(requests=3, seconds=0.3),
        runs=2,
        batches=(BatchStatistics(rows=1, runs=1, seconds=0.1), BatchStatistics(rows=6, runs=1, seconds=0.2)),
        last_at_ms=5,
    )
    message = ParseDict(statistics_document(one), pb.ModelStatistics())
    assert (message.inference_count, message.execution_count, message.last_inference) == (7, 2, 5)
    assert (message.inference_stats.success.count, message.inference_stats.queue.ns) == (3, 200_000_000)
    assert [(batch.batch_size, batch.compute_infer.count) for batch in message.batch_stats] == [(1, 1), (6, 1)]


def test_where_only_rows_are_counted_only_rows_are_told() -> None:
    told = statistics_document(ModelStatistics(model="m", version="v1", rows=2, outcomes={"kept": 2}))
    assert told == {"name": "m", "version": "v1", "inference_count": 2, "rows": {"kept": 2}}
