"""The head of a learned confidence in a graph: what it reads there, and its operators, as one more output.

Finds the penultimate features by structure: what the last matrix product or convolution before the scored output takes,
in whatever integers it computes. Every operator that is added has meant the same since opset 10, and none of those that
were there is touched: answers stay what they are. How a head is trained is ``compiler.certificate.probe``, whose
formula is written out here a second time; ``compiler.pipeline.probing`` compares the two on real rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from compiler.graph import rewrite
from compiler.graph.files import opset
from compiler.graph.names import first_free
from compiler.graph.onnx_libraries import TensorProto, helper, onnx
from penstock.errors import CompileError
from penstock.wire.tensors import Array

PROBE_OUTPUT = "penstock_probe"
FEATURES_OUTPUT = "penstock_features"

_LEAST_OPSET = 10
_PREFIX = "penstock_head_"
_DENSE = frozenset(
    {
        "MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulInteger", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul", "MatMulNBits", "LinearClassifier",
    }
)  # fmt: skip
_CONVOLUTIONS = frozenset({"Conv", "FusedConv", "ConvInteger", "QLinearConv", "NhwcFusedConv"})
_QUANTIZERS = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})
_FROM_CONSTANTS = frozenset({"DequantizeLinear", "Cast", "Transpose", "Reshape", "Identity", "QuantizeLinear"})


class Head(Protocol):
    """What is known of a trained head; see ``compiler.certificate.probe.Head``."""

    @property
    def temperature(self) -> float: ...
    @property
    def kind(self) -> Literal["logits", "probabilities"]: ...
    @property
    def bias(self) -> float: ...
    @property
    def base(self) -> NDArray[np.float64]: ...
    @property
    def offsets(self) -> NDArray[np.float64]: ...
    @property
    def slopes(self) -> NDArray[np.float64]: ...
    @property
    def weights(self) -> NDArray[np.float64]: ...
    @property
    def least_probability(self) -> float: ...
    @property
    def nearest(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """Where penultimate features are.

    Attributes:
        tensor: its name.
        reader: the operator that makes the answer of it, for people.
        channels: which axis is not pooled away: 1 behind convolutions, -1 elsewhere.
    """

    tensor: str
    reader: str
    channels: Literal[1, -1]


def find(model: onnx.ModelProto, output: str) -> Features:
    """Find what the last product or convolution before an output takes; of several equally near, the first.

    Raises:
        CompileError: there is none, as in a tree, or it multiplies two results with each other, as attention does.
    """
    graph = model.graph
    made, constants = rewrite.producers(graph), rewrite.constants(graph).keys()
    seen, waiting = {output}, deque([output])
    while waiting:
        node = made.get(waiting.popleft())
        if node is None:
            continue
        if node.op_type in _DENSE | _CONVOLUTIONS:
            given = [name for name in node.input[:2] if name and not _is_constant(name, made, constants)]
            if len(given) != 1:
                raise CompileError(
                    f"the last product before output {output!r}, {node.name or node.op_type!r}, multiplies results "
                    "with each other and not with weights: it has no penultimate features"
                )
            source = made.get(given[0])
            tensor = source.input[0] if source is not None and source.op_type in _QUANTIZERS else given[0]
            return Features(
                tensor=tensor,
                reader=node.name or node.op_type,
                channels=1 if node.op_type in _CONVOLUTIONS else -1,
            )
        for name in node.input:
            if name and name not in seen:
                seen.add(name)
                waiting.append(name)
    raise CompileError(f"no matrix product or convolution is before output {output!r}: it has no penultimate features")


def open_at(model: onnx.ModelProto, features: Features) -> None:
    """Make features an output as they are, for their shape to be seen."""
    if all(value.name != features.tensor for value in model.graph.output):
        model.graph.output.append(onnx.ValueInfoProto(name=features.tensor))


def with_features(model: onnx.ModelProto, features: Features, *, rank: int) -> None:
    """Add the pooled features [N, D] as an output, computed by the very operators that a head reads them through.

    Raises:
        CompileError: as :func:`with_head`.
    """
    writer = _Writer(model)
    pooled = _pooled(writer, features, rank)
    writer.call("Identity", pooled, name=FEATURES_OUTPUT)
    model.graph.output.append(helper.make_tensor_value_info(FEATURES_OUTPUT, TensorProto.FLOAT, [None, None]))


def with_head(model: onnx.ModelProto, features: Features, head: Head, *, output: str, rank: int) -> None:
    """Add a head, with its confidence [N] as an output.

    Args:
        rank: of the features.
        output: the scored one.

    Raises:
        CompileError: the graph has such an output already, or is written in an opset without these operators.
    """
    writer = _Writer(model)
    call, count = writer.call, min(head.nearest, len(head.offsets))
    logits = call("Cast", output, to=TensorProto.FLOAT)
    if head.kind == "probabilities":
        logits = call("Log", call("Max", logits, writer.put([head.least_probability])))
    logits = call("Mul", logits, writer.put([1 / head.temperature]))
    ordered, places = writer.calls("TopK", logits, writer.put(np.array([count])), results=2, axis=1)
    first, others = writer.put(np.array([0])), writer.put(np.arange(1, count))
    best, answered = call("Gather", ordered, first, axis=1), call("Gather", places, first, axis=1)
    second = call("Gather", ordered, writer.put(np.array([1])), axis=1)
    below = call("Exp", call("Sub", call("Gather", ordered, others, axis=1), second))
    odds = call(
        "Sub", call("Sub", best, second), call("Log", call("MatMul", below, writer.put(np.ones((count - 1, 1)))))
    )
    energy = call("Add", best, call("Log", call("Add", call("Exp", call("Neg", odds)), writer.put([1.0]))))
    leads = np.zeros((count, 1))  # of the first over the second, and over the third
    leads[0] += head.base[1] + head.base[2]
    leads[1] -= head.base[1]
    leads[min(2, count - 1)] -= head.base[2]
    terms = (
        call("Mul", odds, call("Gather", writer.put(head.slopes + head.base[0]), answered)),
        call("MatMul", ordered, writer.put(leads)),
        call("Mul", energy, writer.put([head.base[3]])),
        call("Gather", writer.put(head.offsets + head.bias), answered),
        call("MatMul", _pooled(writer, features, rank), writer.put(head.weights[:, None])),
    )
    harm = reduce(lambda one, other: call("Add", one, other), terms)
    call("Reshape", call("Sigmoid", call("Neg", harm)), writer.put(np.array([-1])), name=PROBE_OUTPUT)
    rows = next(value for value in model.graph.output if value.name == output).type.tensor_type.shape.dim[0]
    value = helper.make_tensor_value_info(PROBE_OUTPUT, TensorProto.FLOAT, [None])
    value.type.tensor_type.shape.dim[0].CopyFrom(rows)
    model.graph.output.append(value)


class _Writer:
    """Appends operators and constants to a graph under names that are free.

    Raises:
        CompileError: the graph is written in an opset without the operators of a head.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._taken = rewrite.names(model.graph)
        version = opset(model)
        if 0 < version < _LEAST_OPSET:
            raise CompileError(f"the graph is written in opset {version}, and a head needs {_LEAST_OPSET} or newer")
        if version == 0:
            model.opset_import.append(helper.make_opsetid("", _LEAST_OPSET))

    def call(self, kind: str, *inputs: str, name: str = "", **attributes: object) -> str:
        """Append an operator; return the name of its result.

        Raises:
            CompileError: a tensor has the name that is asked for.
        """
        return self.calls(kind, *inputs, results=1, name=name, **attributes)[0]

    def calls(self, kind: str, *inputs: str, results: int, name: str = "", **attributes: object) -> list[str]:
        """Append an operator with several results; return their names.

        Raises:
            CompileError: as :meth:`call`.
        """
        if name and name in self._taken:
            raise CompileError(f"the graph has a tensor named {name!r} already")
        made = [name or self._free(kind.lower()) for _ in range(results)]
        self._graph.node.append(helper.make_node(kind, inputs, made, name=made[0], **attributes))
        self._taken.update(made)
        return made

    def put(self, value: Array | Sequence[float]) -> str:
        """Append a constant: numbers with a fraction as float32, whole ones as int64."""
        array = np.asarray(value)
        kept = array.astype(np.int64) if array.dtype.kind == "i" else array.astype(np.float32)
        name = self._free("constant")
        self._taken.add(name)
        return rewrite.put_constant(self._graph, name, kept)

    def _free(self, what: str) -> str:
        name = first_free(f"{_PREFIX}{what}", self._taken)
        self._taken.add(name)
        return name


def _pooled(writer: _Writer, features: Features, rank: int) -> str:
    """Average features over everything but rows and channels: [N, D]."""
    floats = writer.call("Cast", features.tensor, to=TensorProto.FLOAT)
    if rank == 2:
        return floats
    if features.channels == -1:
        floats = writer.call("Transpose", floats, perm=[0, rank - 1, *range(1, rank - 1)])
    return writer.call("Flatten", writer.call("GlobalAveragePool", floats), axis=1)


def _is_constant(name: str, made: Mapping[str, onnx.NodeProto], constants: Collection[str]) -> bool:
    """Say whether a tensor is a weight, also one that is only converted on its way."""
    while name not in constants:
        node = made.get(name)
        if node is None or node.op_type not in _FROM_CONSTANTS:
            return node is not None and node.op_type == "Constant"
        name = node.input[0]
    return True
