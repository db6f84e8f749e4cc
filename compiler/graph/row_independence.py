"""Whether the rows of a batch change each other's answers, and which operator is the first that mixes them.

Decides by running, as the model host does (``penstock.hosting.row_independence``): what the one batches, the other has
certified. The operator is found by comparing what is between the graph's operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from compiler.graph import files, probe, rewrite
from compiler.graph.names import named
from compiler.graph.onnx_libraries import onnx
from penstock.errors import PenstockError
from penstock.hosting import row_independence
from penstock.hosting.row_independence import Company
from penstock.runtime import Engine
from penstock.wire.tensors import Array

_ALL_ROWS = 2**31
_LIMIT_S = 300.0
"""A device that loads a model gives up after ten; what is packed must not depend on how busy this machine is."""
_SHARED_SCALES = (
    "DynamicQuantizeLinear mixes rows: it scales a batch by its largest value, and what one step of a loop rounds "
    "otherwise changes all steps behind it"
)
"""Known beforehand: few rows show it. Of 1,000 answers of a small T5, 3 were others in batches of 8."""
_COUNTS = "iu"
"""Kinds of numbers that, beside the rows, are sizes and places: they may depend on how many rows there are."""


def rows_mixed_by(path: Path, engine: Engine, samples: Mapping[str, Array], *, precision: str) -> str:
    """Say which operator of an ONNX model mixes rows, and what that does to an answer; "" where rows are independent.

    A model that mixes them is asked, certified and served one row at a time: its answers are then its own again.

    Args:
        engine: runs the model at ``path``.
        samples: the rows that the model host will try, which are the golden ones.
    """
    if _has_loop_with_shared_scales(path):
        return _SHARED_SCALES
    found = row_independence.look(
        engine.run, engine, samples, precision=precision, max_batch=_ALL_ROWS, limit_s=_LIMIT_S
    )
    if not found.reason or found.company is None:
        return found.reason
    try:
        operator = _first_mixing(path, found.company, precision)
    except PenstockError:  # the answers differ; where that begins cannot be seen in a graph that cannot be opened
        operator = ""
    return f"{operator} mixes rows: {found.reason}" if operator else found.reason


def _has_loop_with_shared_scales(path: Path) -> bool:
    kinds = {node.op_type for body in rewrite.graphs(files.read(path, field="model").graph) for node in body.node}
    return {"Loop", "DynamicQuantizeLinear"} <= kinds


def _first_mixing(path: Path, company: Company, precision: str) -> str:
    """Name the first operator whose result for a row alone is not the one in company; "" where none is seen."""
    model = named(files.read(path, field="model"))
    del model.graph.value_info[:]
    made = {name: node for node in model.graph.node for name in node.output if name}
    types = probe.typed(model)
    opened = probe.Probe(model, [name for name in made if types.get(name)])
    together = opened.run(company.batch)
    alone = [opened.run({name: array[at : at + 1] for name, array in company.batch.items()}) for at in company.places]
    rows = len(next(iter(company.batch.values())))
    for name, node in made.items():
        if name in together and any(
            _is_mixed(one[name], together[name], place, rows, precision)
            for one, place in zip(alone, company.places, strict=True)
        ):
            return f"operator {node.name!r} ({_kind(node)})"
    return ""


def _is_mixed(alone: Array, together: Array, place: int, rows: int, precision: str) -> bool:
    """Say whether a tensor of one row is another one in a batch of ``rows``, where the row is at ``place``."""
    if alone.dtype.itemsize == 1 and alone.dtype.kind in _COUNTS:
        return False  # a rounding border moves such a value by one; what moves it further is seen behind it
    axis = _batch_axis(alone.shape, together.shape, rows)
    if axis is None:
        if alone.dtype.kind in _COUNTS or alone.shape != together.shape:
            return False
        return row_independence.first_apart({"": alone}, {"": together}, precision=precision) is not None
    own = np.split(together, rows, axis=axis)[place]
    return row_independence.first_apart({"": alone}, {"": own}, precision=precision) is not None


def _batch_axis(alone: tuple[int, ...], together: tuple[int, ...], rows: int) -> int | None:
    """Return the one axis that grew with the rows; None where none did."""
    if len(alone) != len(together):
        return None
    grown = [axis for axis, sizes in enumerate(zip(alone, together, strict=True)) if sizes[0] != sizes[1]]
    is_rows = len(grown) == 1 and together[grown[0]] == rows * alone[grown[0]]
    return grown[0] if is_rows else None


def _kind(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
