"""Weights in 4 or 8 bits by blocks, activations in float: for models that wait for memory rather than for arithmetic.

Decides which products are quantized and by which method; the arithmetic is ``compiler.passes.weights.blockwise``, with
``gptq`` and ``awq`` beside it. Made here rather than by onnxruntime's ``MatMulNBitsQuantizer``, which passes over
Gemm without a word, crashes on an odd number of blocks in its asymmetric form, needs torch for HQQ (and gives it float
zero points, which are slow on a CPU), and needs onnx_ir; the files are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from compiler.graph import files, probe, rewrite, shapes
from compiler.graph.names import named
from compiler.graph.onnx_libraries import TensorProto, helper, numpy_helper, onnx
from compiler.passes import integers
from compiler.passes.job import MODEL_FILE, Batches, PassJob, PassResult
from compiler.passes.options import decode
from compiler.passes.weights import awq, blockwise, gptq
from compiler.passes.weights.blockwise import Floats, Quantized
from compiler.passes.weights.gptq import Hessian
from compiler.progress import Progress
from penstock import wording
from penstock.errors import CalibrationError, CompileError

_DOMAIN = "com.microsoft"
_INT8_ARITHMETIC = 4
"""``accuracy_level`` on a CPU: activations in 8 bits by blocks too. Without it 4 bits are half as fast, and 8 bits run
at 0.06 times the speed of float (11.8 ms against 0.74 ms for 1 x 1024 x 4096 on a VNNI CPU)."""
_HESSIAN_BYTES = 1 << 30
"""Memory for the sums of GPTQ; what does not fit is gathered in further runs over the examples."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a recipe may set.

    Attributes:
        bits: of a weight; the precision asked for decides, 4 or 8.
        method: ``rtn`` rounds each value; ``hqq`` fits scales to the weights, without data; ``gptq`` and ``awq`` fit
            to the inputs that the examples cause: by making up for each rounding, or by giving the weights of large
            inputs more of the grid.
        block_size: values of a column that share a scale; fewer are more precise and larger.
        symmetric: no zero points. Left out: symmetric, except for ``hqq``, which gains from them.
        accuracy_level: of ``MatMulNBits``; left out, 4 on a CPU (8-bit arithmetic) and none elsewhere.
        damping: of ``gptq``: the share of the Hessian's mean diagonal that is added to it.
    """

    bits: Literal[4, 8] = 4
    method: Literal["rtn", "hqq", "gptq", "awq"] = "rtn"
    block_size: Literal[16, 32, 64, 128, 256] = 32
    symmetric: bool | None = None
    accuracy_level: Annotated[int, msgspec.Meta(ge=0, le=4)] | None = None
    damping: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.01

    @property
    def is_fitted(self) -> bool:
        """Say whether the method looks at the inputs that the examples cause."""
        return self.method in ("gptq", "awq")

    @property
    def is_symmetric(self) -> bool:
        return self.method != "hqq" if self.symmetric is None else self.symmetric


@dataclass(frozen=True, slots=True, kw_only=True)
class _Product:
    """A MatMul to quantize: its node, the name of its constant [K, N], and K."""

    node: onnx.NodeProto
    weight: str
    rows: int


def run(job: PassJob) -> PassResult:
    """Write the model with its constant matrices in ``bits`` bits.

    Raises:
        ConfigError: options. InvalidInput, CompileError: the model is wrong, or has nothing to quantize.
        CalibrationError: a method that needs examples without any, or with ones that the model refuses.
    """
    options = decode(job.options, Options, name="weights_only")
    if options.is_fitted and job.calibration is None:
        raise CalibrationError(
            f"weights_only: {options.method} fits weights to examples, and there are none; give some, or use hqq"
        )
    model = named(files.read(job.source, field="model"))
    rewrite.close(model)
    rewrite.lift_constants(model.graph)
    types = probe.typed(model)
    integers.check_kept(job, model, name="weights_only")
    rewrite.gemm_to_matmul(model.graph, types)
    products, left = _find(model, job.keep_float)
    if not products:
        why = "; ".join(f"{name}: {reason}" for name, reason in sorted(left.items())[:5])
        raise CompileError(
            "weights_only: no bytes were quantized: the graph has no MatMul or Gemm with a constant float32 matrix"
            + (f" that may be ({why})" if why else "")
        )
    quantize = _method(options, model, products, job.calibration)
    done = _replace(model, products, quantize, options, _level(options, job), job.progress)
    rewrite.drop_dead(model.graph)
    del model.graph.value_info[:]
    rewrite.require_domain(model, _DOMAIN, 1)
    files.write(model, job.out / MODEL_FILE)
    return _result(model, options, done, left, job)


def _level(options: Options, job: PassJob) -> int:
    if options.accuracy_level is not None:
        return options.accuracy_level
    return _INT8_ARITHMETIC if job.target.provider == "cpu" else 0


def _find(model: onnx.ModelProto, keep_float: frozenset[str]) -> tuple[list[_Product], dict[str, str]]:
    """Return the products to quantize, and why others stay in float, by node name."""
    graph = model.graph
    constants = rewrite.constants(graph)
    known = shapes.known(model)
    products, left = list[_Product](), dict[str, str]()
    for node in graph.node:
        if not rewrite.is_standard(node, "MatMul") or node.input[1] not in constants:
            continue
        weight = constants[node.input[1]]
        is_vector = len(known.get(node.input[0], ())) == 1
        reason = _reason_to_leave(weight, is_vector=is_vector, is_kept=node.name in keep_float)
        if reason:
            left[node.name] = reason
        else:
            products.append(_Product(node=node, weight=weight.name, rows=weight.dims[0]))
    inner = [node for part in rewrite.graphs(graph) if part is not graph for node in part.node]
    left |= {node.name: "inside a subgraph" for node in inner if rewrite.is_standard(node, "MatMul")}
    return products, left


def _reason_to_leave(weight: TensorProto, *, is_vector: bool, is_kept: bool) -> str:
    if is_kept:
        return "sent back to float"
    if weight.data_type != TensorProto.FLOAT:
        return f"its weight is {TensorProto.DataType.Name(weight.data_type)}, not float32"
    if len(weight.dims) != 2 or 0 in weight.dims:
        return f"its weight has shape {list(weight.dims)}, not two dimensions"
    if not np.isfinite(numpy_helper.to_array(weight)).all():
        return "its weight holds NaN or infinity"
    return "its input is a vector" if is_vector else ""


Quantize = Callable[[_Product, Floats], Quantized]


def _method(options: Options, model: onnx.ModelProto, products: list[_Product], batches: Batches | None) -> Quantize:
    shape: dict[str, Any] = {
        "bits": options.bits,
        "block": options.block_size,
        "symmetric": options.is_symmetric,
    }
    if options.method == "rtn":
        return lambda product, weight: blockwise.rtn(weight, **shape)
    if options.method == "hqq":
        return lambda product, weight: blockwise.hqq(weight, **shape)
    assert batches is not None
    hessians = _Hessians(model, products, batches, options.method)

    def fitted(product: _Product, weight: Floats) -> Quantized:
        inputs = hessians.of(product)
        try:
            if options.method == "awq":
                return awq.awq(weight, inputs, **shape)
            return gptq.gptq(weight, inputs, **shape, damping=options.damping)
        except np.linalg.LinAlgError as error:
            raise CalibrationError(
                f"weights_only: {options.method} cannot fit {product.node.name!r}: the inputs that the examples cause "
                "there are not finite or span too little; give other examples, or raise damping"
            ) from error

    return fitted


class _Hessians:
    """Sums over the inputs of products, gathered in as many runs over the examples as the memory asks for."""

    def __init__(self, model: onnx.ModelProto, products: list[_Product], batches: Batches, method: str) -> None:
        self._method = method
        self._model = rewrite.copied(model)  # as it is in float: products are replaced while others still wait
        self._batches = batches
        self._sizes: dict[str, int] = {product.node.input[0]: product.rows for product in products}
        self._input_of = {product.node.name: product.node.input[0] for product in products}
        self._ready: dict[str, Hessian] = {}

    def of(self, product: _Product) -> np.ndarray[Any, np.dtype[np.float64]]:
        name = self._input_of[product.node.name]
        if name not in self._ready:
            self._ready = self._gathered(name)
        return self._ready[name].value()

    def _gathered(self, first: str) -> dict[str, Hessian]:
        names = list(self._sizes)
        chosen: list[str] = []
        room = _HESSIAN_BYTES
        for name in names[names.index(first) :]:
            room -= 8 * self._sizes[name] ** 2
            if chosen and room < 0:
                break
            chosen.append(name)
        sums = {name: Hessian(self._sizes[name]) for name in chosen}
        opened = probe.Probe(self._model, chosen)
        for batch in self._batches():
            for name, value in opened.run(batch).items():
                sums[name].add(value)
        if not next(iter(sums.values())).rows:
            raise CalibrationError(
                f"weights_only: {self._method} was given no examples; give at least one row", needed=1
            )
        return sums


@dataclass(slots=True, kw_only=True)
class _Done:
    sqnr_db: dict[str, float] = field(default_factory=dict)
    float_bytes: int = 0
    packed_bytes: int = 0


def _replace(
    model: onnx.ModelProto,
    products: list[_Product],
    quantize: Quantize,
    options: Options,
    level: int,
    progress: Progress,
) -> _Done:
    graph = model.graph
    constants = rewrite.constants(graph)
    done = _Done()
    shared: dict[tuple[str, str], list[str]] = {}
    for index, product in enumerate(products):
        node = product.node
        weight = numpy_helper.to_array(constants[product.weight])
        # a weight used twice is stored once; fitted to inputs, each input has a form of its own
        key = (product.weight, node.input[0] if options.is_fitted else "")
        if key not in shared:
            quantized = quantize(product, weight)
            done.sqnr_db[node.name] = round(blockwise.sqnr_db(weight, quantized.dequantized()), 2)
            packed = blockwise.packed(quantized, symmetric=options.is_symmetric)
            given = node.input[0]
            if quantized.divisors is not None:
                given = _divided(graph, node, quantized.divisors)
            stored = [
                rewrite.put_constant(graph, f"{product.weight}_{what}", value)
                for what, value in _stored(packed, options.bits)
            ]
            shared[key] = [given, *stored]
            done.float_bytes += weight.nbytes
            done.packed_bytes += sum(value.nbytes for _, value in _stored(packed, options.bits))
        inputs = shared[key] if options.is_fitted else [node.input[0], *shared[key][1:]]
        _become(node, inputs, weight.shape, options, level)
        progress((index + 1) / len(products), node.name)
    return done


def _divided(graph: onnx.GraphProto, node: onnx.NodeProto, divisors: Floats) -> str:
    """Put a product before a node that divides its first input, and return what the node is to read."""
    result = rewrite.free_name(graph, f"{node.input[0]}_divided")
    factors = rewrite.put_constant(graph, f"{node.name}_factors", 1 / divisors)
    at = next(index for index, other in enumerate(graph.node) if other.name == node.name)
    graph.node.insert(at, helper.make_node("Mul", [node.input[0], factors], [result], name=f"{node.name}_divide"))
    return result


def _stored(packed: blockwise.Packed, bits: int) -> Iterator[tuple[str, Any]]:
    yield f"Q{bits}", packed.weight
    yield "scales", packed.scale
    if packed.zero is not None:
        yield "zero_points", packed.zero


def _become(node: onnx.NodeProto, inputs: list[str], shape: tuple[int, ...], options: Options, level: int) -> None:
    """Turn a MatMul into a MatMulNBits in its place; the name stays, so that the gate can send it back."""
    attributes: Mapping[str, int] = {
        "K": shape[0],
        "N": shape[1],
        "bits": options.bits,
        "block_size": options.block_size,
    }
    if level:
        attributes = {**attributes, "accuracy_level": level}
    node.CopyFrom(
        helper.make_node("MatMulNBits", inputs, list(node.output), name=node.name, domain=_DOMAIN, **attributes)
    )


def _result(model: onnx.ModelProto, options: Options, done: _Done, left: Mapping[str, str], job: PassJob) -> PassResult:
    remaining = sum(
        4 * int(np.prod(tensor.dims, dtype=np.int64))
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and not tensor.name.endswith("_scales")
    )
    form = "symmetric" if options.is_symmetric else "with zero points"
    count = sum(node.op_type == "MatMulNBits" for node in model.graph.node)
    level = _level(options, job)
    executed = {}  # whether a CUDA kernel multiplies integers cannot be seen here, and is not guessed
    if job.target.runs_here:
        key, other = ("integer_nodes", "float_nodes") if level == _INT8_ARITHMETIC else ("float_nodes", "integer_nodes")
        executed = {key: {"MatMulNBits": count}, other: {}}
    return PassResult(
        model=MODEL_FILE,
        summary=(
            f"{count} matrices in {options.bits} bits, {options.method}, blocks of {options.block_size}, {form}: "
            f"{wording.size(done.float_bytes)} to {wording.size(done.packed_bytes)}"
            + (f"; {len(left)} products left in float" if left else "")
        ),
        facts={
            "bits": options.bits,
            "method": options.method,
            "block_size": options.block_size,
            "symmetric": options.is_symmetric,
            "accuracy_level": level,
            **executed,
            "integer_weight_bytes": done.packed_bytes,
            "float_weight_bytes": remaining,
            "quantized_from_bytes": done.float_bytes,
            "quantized": sorted(node.name for node in model.graph.node if node.op_type == "MatMulNBits"),
            "kept_float": sorted(job.keep_float),
            "left_float": dict(sorted(left.items())),
            "weight_sqnr_db": done.sqnr_db,
        },
    )
