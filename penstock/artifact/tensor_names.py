"""What a variant's spec says about its tensors by name: columns, classes, units. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.artifact.manifests import VariantSpec
from penstock.wire.inference import ModelMetadata
from penstock.wire.tensors import TensorSpec


def columns_of(spec: VariantSpec) -> dict[str, tuple[str, ...]]:
    """Return the columns of a table that make each input, in order, as far as the preprocessing names them."""
    named = spec.preprocessing.get("columns")
    if not isinstance(named, dict):  # a recipe's own table [preprocessing] may hold anything
        return {}
    known = {one.name for one in spec.inputs}
    return {
        name: tuple(columns)
        for name, columns in named.items()
        if name in known and isinstance(columns, list) and columns and all(isinstance(each, str) for each in columns)
    }


def labels_of(spec: VariantSpec) -> dict[str, tuple[str, ...]]:
    """Return the names of the classes by the output that scores them, where that has one entry for each."""
    scored = next((one for one in spec.outputs if one.name == spec.score_output), None)
    has_one_each = scored is not None and scored.shape[-1:] == (len(spec.labels),)
    return {spec.score_output: spec.labels} if spec.labels and has_one_each else {}


def units_of(spec: VariantSpec) -> dict[str, tuple[str, ...]]:
    """Return the units of inputs and outputs, as far as the preprocessing names them: one for each column or all."""
    named = spec.preprocessing.get("units")
    if not isinstance(named, dict):  # a recipe's own table [preprocessing] may hold anything
        return {}
    known = {one.name for one in (*spec.inputs, *spec.outputs)}
    found = {name: [units] if isinstance(units, str) else units for name, units in named.items() if name in known}
    return {
        name: tuple(units)
        for name, units in found.items()
        if isinstance(units, list) and units and all(isinstance(each, str) for each in units)
    }


def metadata_of(
    spec: VariantSpec,
    *,
    name: str,
    versions: tuple[str, ...],
    platform: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    properties: Mapping[str, str] | None = None,
) -> ModelMetadata:
    """Make the metadata of a model: what its server says of it, with the names that its spec has."""
    return ModelMetadata(
        name=name,
        versions=versions,
        platform=platform,
        inputs=inputs,
        outputs=outputs,
        properties=properties or {},
        columns=columns_of(spec),
        labels=labels_of(spec),
        units=units_of(spec),
    )
