"""Weights taken out before anything else is done: single small ones (``magnitude``), or whole channels (``channels``).

Zeros in place of small weights make a model compress better and change no shape; they make nothing faster here.
Channels taken out make it smaller and faster. Decides which go; what that costs in accuracy is the gate's to measure.
"""

from __future__ import annotations

import gzip
import math
from collections import defaultdict
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.graph import channel_flow, channels, equivalence, files, rewrite, shapes
from compiler.graph.channels import Axis, Channels
from compiler.graph.names import named
from compiler.graph.onnx_libraries import TensorProto, numpy_helper, onnx
from compiler.passes import integers
from compiler.passes.job import MODEL_FILE, PassJob, PassResult
from compiler.passes.options import decode
from penstock import wording
from penstock.errors import CompileError, ConfigError

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_TOLERANCE = 1e-3
"""Of the largest value of an output: a product over fewer numbers is added up in another order."""
_GZIP_LEVEL = 1  # floats hardly shrink further, and a large model would take minutes


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a recipe may set.

    Attributes:
        share: of the weights (``magnitude``), or of the channels of each group of layers (``channels``), to take out.
        scope: ``tensor`` takes the share of every layer, ``global`` the smallest of all; only for ``magnitude``.
    """

    share: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    method: Literal["magnitude", "channels"] = "magnitude"
    scope: Literal["tensor", "global"] = "tensor"


def run(job: PassJob) -> PassResult:
    """Write the pruned model.

    Raises:
        InvalidInput, ConfigError, CompileError: the model or the options are wrong, or nothing can be taken out, with
            the nodes that stand in the way.
    """
    options = decode(job.options, Options, name="prune")
    model = named(files.read(job.source, field="model"))
    rewrite.close(model)
    rewrite.lift_constants(model.graph)
    del model.graph.value_info[:]
    integers.check_kept(job, model, name="prune")
    return _by_magnitude(job, options, model) if options.method == "magnitude" else _by_channel(job, options, model)


def _weights(model: onnx.ModelProto, keep_float: frozenset[str]) -> dict[str, TensorProto]:
    """Return the constant float32 factors of layers, by name."""
    constants = rewrite.constants(model.graph)
    names = {
        name: None
        for node in model.graph.node
        if rewrite.is_standard(node, *_LAYERS) and node.name not in keep_float
        for name in node.input[:2]
        if name in constants and constants[name].data_type == TensorProto.FLOAT and len(constants[name].dims) > 1
    }
    return {name: constants[name] for name in names}


# --- single weights


def _by_magnitude(job: PassJob, options: Options, model: onnx.ModelProto) -> PassResult:
    weights = _weights(model, job.keep_float)
    if not weights:
        raise CompileError(f"prune: the graph has no {', '.join(_LAYERS)} with a constant float32 weight")
    before = _gzip_bytes(model)
    arrays = {name: numpy_helper.to_array(tensor) for name, tensor in weights.items()}
    if options.scope == "tensor":
        pruned = {name: _without_smallest([array], options.share)[0] for name, array in arrays.items()}
    else:
        pruned = dict(zip(arrays, _without_smallest(list(arrays.values()), options.share), strict=True))
    for name, tensor in weights.items():
        tensor.CopyFrom(numpy_helper.from_array(pruned[name], name))
    files.write(model, job.out / MODEL_FILE)
    total, zeros = (sum(count(array) for array in pruned.values()) for count in (np.size, _zeros))
    after = _gzip_bytes(model)
    return PassResult(
        model=MODEL_FILE,
        summary=(
            f"{wording.percent(zeros / total)} of {total} weights are zero ({options.scope}); gzip "
            f"{wording.size(before)} to {wording.size(after)}"
        ),
        facts={
            "method": "magnitude",
            "scope": options.scope,
            "weights": total,
            "zero_share": zeros / total,
            "zero_share_by_tensor": {name: _zeros(array) / array.size for name, array in sorted(pruned.items())},
            "gzip_bytes_before": before,
            "gzip_bytes_after": after,
        },
    )


def _without_smallest(arrays: list[NDArray[Any]], share: float) -> list[NDArray[Any]]:
    """Set the smallest weights to zero: exactly ``floor(share * n)``, of equal ones the first."""
    sizes = np.concatenate([np.abs(array).reshape(-1) for array in arrays])
    count = math.floor(share * sizes.size)
    gone = np.zeros(sizes.size, bool)
    if count:
        limit = np.partition(sizes, count - 1)[count - 1]
        gone = sizes < limit
        equal = np.flatnonzero(sizes == limit)
        gone[equal[: count - int(gone.sum())]] = True
    pieces = np.split(gone, np.cumsum([array.size for array in arrays])[:-1])
    return [
        np.where(piece.reshape(array.shape), np.zeros((), array.dtype), array)
        for piece, array in zip(pieces, arrays, strict=True)
    ]


def _zeros(array: NDArray[Any]) -> int:
    return int(array.size - np.count_nonzero(array))


def _gzip_bytes(model: onnx.ModelProto) -> int:
    """Return the bytes that the weights take when they are compressed for transport."""
    return sum(
        len(gzip.compress(numpy_helper.to_array(tensor).tobytes(), _GZIP_LEVEL, mtime=0))
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    )


# --- channels


def _by_channel(job: PassJob, options: Options, model: onnx.ModelProto) -> PassResult:
    if options.scope != "tensor":
        raise ConfigError('prune: scope = "global" is for single weights; norms of channels of layers do not compare')
    rewrite.split_constants(model.graph)
    asked = equivalence.examples(model, job.calibration, seed=job.seed)
    sizes = {**shapes.known(model), **shapes.observed(model, asked[0])}
    found = channel_flow.find(model, sizes, fixed=job.keep_float)
    before, parameters = equivalence.weight_bytes(model), _parameters(model)
    gone = _choose(model, found, options.share)
    if options.share and not gone:
        raise CompileError(f"prune: no channel can be taken out: {_obstacles(found)}")
    masked = _masked(model, found, gone)
    _take_out(model, found, gone)
    rewrite.merge_constants(model.graph)
    # without its channels the model must answer as it does when nothing reads them
    equivalence.same(equivalence.Session(masked), equivalence.Session(model), asked, tolerance=_TOLERANCE, what="prune")
    files.write(model, job.out / MODEL_FILE)
    return _channels_result(found, gone, options, (before, parameters), model)


def _choose(model: onnx.ModelProto, found: Channels, share: float) -> frozenset[int]:
    """Choose the roots to take out: of each family of layers that share channels, the given share with the least norm.

    A channel's norm is that of all weights that make it (L2, over all layers of the family). Every layer keeps one.
    """
    constants = rewrite.constants(model.graph)
    makers = [axis for axis in found.axes if axis.role == "makes"]
    norms: dict[int, float] = defaultdict(float)
    made: list[set[int]] = []
    for axis in makers:
        weight = np.moveaxis(numpy_helper.to_array(constants[axis.constant]).astype(np.float64), axis.axis, 0)
        squares = np.sum(weight.reshape(len(weight), -1) ** 2, axis=1)
        roots = found.roots(axis.labels).tolist()
        made.append(set(roots))
        for root, square in zip(roots, squares, strict=True):
            norms[root] += float(square)
    gone: set[int] = set()
    for family in _families(made):
        members = sorted({root for index in family for root in made[index]})
        left = {index: len(made[index]) for index in family}
        room = math.floor(share * len(members))
        for root in sorted(
            (root for root in members if root not in found.frozen), key=lambda root: (norms[root], root)
        ):
            holders = [index for index in family if root in made[index]]
            if room == 0:
                break
            if all(left[index] > 1 for index in holders):
                gone.add(root)
                room -= 1
                for index in holders:
                    left[index] -= 1
    return frozenset(gone)


def _families(made: list[set[int]]) -> list[list[int]]:
    """Return the layers that make some channel together, as lists of their indices."""
    family = list(range(len(made)))
    first: dict[int, int] = {}
    for index, roots in enumerate(made):
        for root in sorted(roots):
            other = family[first.setdefault(root, index)]
            mine = family[index]
            if other != mine:
                family = [other if each == mine else each for each in family]
    return [[index for index, each in enumerate(family) if each == name] for name in sorted(set(family))]


def _kept(found: Channels, axis: Axis, gone: frozenset[int]) -> NDArray[np.bool_]:
    return np.array([root not in gone for root in found.roots(axis.labels).tolist()], bool)


def _masked(model: onnx.ModelProto, found: Channels, gone: frozenset[int]) -> onnx.ModelProto:
    """Return a copy in which no layer reads the channels that go."""
    copy = rewrite.copied(model)
    constants = rewrite.constants(copy.graph)
    for axis in found.axes:
        kept = _kept(found, axis, gone)
        if axis.role == "reads" and not kept.all():
            tensor = constants[axis.constant]
            weight = np.moveaxis(numpy_helper.to_array(tensor).copy(), axis.axis, 0)
            weight[~kept] = 0
            tensor.CopyFrom(numpy_helper.from_array(np.moveaxis(weight, 0, axis.axis).copy(), tensor.name))
    return copy


def _take_out(model: onnx.ModelProto, found: Channels, gone: frozenset[int]) -> None:
    constants = rewrite.constants(model.graph)
    nodes = {node.name: node for node in model.graph.node}
    for axis in found.axes:
        kept = _kept(found, axis, gone)
        if kept.all():
            continue
        tensor = constants[axis.constant]
        array = numpy_helper.to_array(tensor)
        if axis.role == "counts":
            array = array.copy()
            array[axis.axis] = int(kept.sum())
        else:
            array = np.compress(kept, array, axis=axis.axis)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for name, constant in found.depthwise.items():
        rewrite.set_attribute(nodes[name], "group", constants[constant].dims[0])


def _obstacles(found: Channels) -> str:
    reasons = sorted(set(found.frozen.values()))
    return "; ".join(reasons[:5]) if reasons else "no layer with a constant weight has channels to spare"


def _parameters(model: onnx.ModelProto) -> int:
    return sum(
        int(np.prod(tensor.dims, dtype=np.int64))
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    )


def _channels_result(
    found: channels.Channels, gone: frozenset[int], options: Options, before: tuple[int, int], model: onnx.ModelProto
) -> PassResult:
    made = [axis for axis in found.axes if axis.role == "makes"]
    layers = {axis.node: [len(axis.labels), int(_kept(found, axis, gone).sum())] for axis in made}
    stay = {}
    for axis in made:
        roots = found.roots(axis.labels).tolist()
        if all(root in found.frozen for root in roots):
            stay[axis.node] = found.frozen[roots[0]]  # why none of its channels can go
    after = (equivalence.weight_bytes(model), _parameters(model))
    return PassResult(
        model=MODEL_FILE,
        summary=(
            f"{len(gone)} groups of channels taken out of {sum(kept < had for had, kept in layers.values())} layers, "
            f"{len(stay)} layers cannot lose any; {before[1]} parameters to {after[1]}"
        ),
        facts={
            "method": "channels",
            "layers": layers,
            "cannot_be_pruned": stay,
            "parameters_before": before[1],
            "parameters_after": after[1],
            "weight_bytes_before": before[0],
            "weight_bytes_after": after[0],
        },
    )
