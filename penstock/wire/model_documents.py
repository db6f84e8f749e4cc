"""What a server says of a model beside its metadata, as the documents of Triton's extensions: statistics and config.

One form for both transports: over HTTP it is the body, over gRPC it is what fills the message. Pure.
Source: Triton, "Statistics Extension" and "Model Configuration Extension".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from penstock.wire.inference import NOTHING, BatchStatistics, Ended, ModelConfig, ModelState, ModelStatistics
from penstock.wire.tensors import TensorSpec

_STAGES = ("compute_input", "compute_output")
"""Stages that Triton tells apart and no server here: they are part of others."""
_LATEST = "latest "


class Plane(Protocol):
    """What is asked for statistics."""

    def model_state(self, model: str, version: str, /) -> ModelState: ...

    def statistics(self) -> Sequence[ModelStatistics]: ...


def statistics_documents(plane: Plane, model: str, version: str) -> list[dict[str, Any]]:
    """Write what all versions have answered, or those of one model, or one version.

    Raises:
        NotFound: a model or version that nobody has.
    """
    if model:
        wanted = plane.model_state(model, version)
        version = wanted.version if version else ""
    return [
        statistics_document(one)
        for one in plane.statistics()
        if (not model or one.model == model) and (not version or one.version == version)
    ]


def statistics_document(one: ModelStatistics) -> dict[str, Any]:
    """Write what one version has answered. Where only rows are counted, only they are told."""
    document: dict[str, Any] = {"name": one.model, "version": one.version}
    if one.last_at_ms:
        document["last_inference"] = one.last_at_ms
    document["inference_count"] = one.rows
    ended = {"success": one.succeeded, "fail": one.failed, "queue": one.queued, "compute_infer": one.computed}
    stages = {name: _duration(told) for name, told in ended.items() if told is not None}
    if one.runs is not None:
        document["execution_count"] = one.runs
        document["batch_stats"] = [_batch(batch) for batch in one.batches]
        stages.update({name: _duration(NOTHING) for name in _STAGES})
        stages.update(cache_hit=_duration(one.cached), cache_miss=_duration(one.uncached))
    if stages:
        document["inference_stats"] = stages
    if one.outcomes:
        document["rows"] = dict(one.outcomes)
    return document


def config_document(config: ModelConfig) -> dict[str, Any]:
    """Write how a version is run. Dimensions leave out the first one where it is the batch, as Triton has it."""
    metadata, rows = config.metadata, config.max_batch_rows
    document: dict[str, Any] = {
        "name": metadata.name,
        "platform": metadata.platform,
        "backend": config.backend,
        "max_batch_size": rows,
        "input": [{**_tensor(spec, rows), "format": "FORMAT_NONE"} for spec in metadata.inputs],
        "output": [_tensor(spec, rows) for spec in metadata.outputs],
        "instance_group": [
            {"name": metadata.name, "kind": "KIND_GPU" if config.on_gpu else "KIND_CPU", "count": config.instances}
        ],
        "parameters": {name: {"string_value": text} for name, text in config.facts.items()},
        "model_transaction_policy": {"decoupled": config.in_parts},
    }
    if config.versions == "all":
        document["version_policy"] = {"all": {}}
    elif config.versions.startswith(_LATEST):
        document["version_policy"] = {"latest": {"num_versions": int(config.versions.removeprefix(_LATEST))}}
    else:  # versions are names here, and numbers in Triton's list of them
        document["parameters"]["versions"] = {"string_value": config.versions}
    if rows:
        document["dynamic_batching"] = {"max_queue_delay_microseconds": round(config.max_delay_s * 1e6)}
    return document


def _duration(ended: Ended) -> Mapping[str, int]:
    return {"count": ended.requests, "ns": round(ended.seconds * 1e9)}


def _batch(batch: BatchStatistics) -> dict[str, Any]:
    runs = _duration(Ended(requests=batch.runs, seconds=batch.seconds))
    nothing = _duration(Ended(requests=batch.runs, seconds=0.0))
    return {"batch_size": batch.rows, "compute_input": nothing, "compute_infer": runs, "compute_output": nothing}


def _tensor(spec: TensorSpec, rows: int) -> dict[str, Any]:
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": list(spec.shape[1:] if rows else spec.shape)}
