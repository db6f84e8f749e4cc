"""The steps of a QDQ graph as a torch module: rounding with gradients that pass straight through, everything in float.

Owns one row for each operator of ``compiler.graph.fake_quantized.OPERATORS``. That it answers as onnxruntime does is
compared after every training, on data: a row that is wrong is refused there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from protocol import InputError
from torch import nn
from torch.nn import functional

Attributes = Mapping[str, Any]
Inputs = list[torch.Tensor | None]
_CASTS = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool}  # of TensorProto.DataType


class Program(nn.Module):
    """A graph whose values can be trained; scales as a factor on where they began, so that they stay positive."""

    def __init__(
        self, described: dict[str, Any], constants: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]
    ) -> None:
        super().__init__()
        self._described = described
        self._constants = {name: torch.from_numpy(np.array(value)) for name, value in constants.items()}
        self._names = list(values)
        self._begun = {name: torch.from_numpy(np.array(value)) for name, value in values.items()}
        scales = set(described["scales"])
        self._is_scale = [name in scales for name in self._names]
        self._trained = nn.ParameterList(
            [
                torch.zeros_like(self._begun[name]) if is_scale else self._begun[name].clone()
                for name, is_scale in zip(self._names, self._is_scale, strict=True)
            ]
        )
        # a weight that is zero was pruned, and stays so
        self._kept = {name: (self._begun[name] != 0).float() for name in described["weights"]}

    def values(self) -> dict[str, torch.Tensor]:
        """Return what is trained as it is now, by the names of initializers."""
        found = {}
        for name, value, is_scale in zip(self._names, self._trained, self._is_scale, strict=True):
            found[name] = self._begun[name] * torch.exp(value) if is_scale else value
        for name, kept in self._kept.items():
            found[name] = found[name] * kept
        return found

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        values = self.values()
        held: dict[str, torch.Tensor | None] = {"": None, **self._constants, **values}
        held.update(zip(self._described["inputs"], inputs, strict=True))
        for name, weight in self._described["weights"].items():
            held[weight["tensor"]] = _fake_weight(values[name], values[weight["scale"]], weight)
        for name, bias in self._described["biases"].items():
            held[bias["tensor"]] = _fake_bias(values[name], *(values[scale] for scale in bias["scales"]))
        for step in self._described["steps"]:
            given = [held[name] for name in step["inputs"]]
            if step["op"] == "fake_quantize":
                made = _fake_activation(given[0], values[step["attributes"]["scale"]], step["attributes"])
            else:
                made = OPERATORS[step["op"]](given, step["attributes"])
            held.update(zip(step["outputs"], made if isinstance(made, list) else [made], strict=False))
        return held[self._described["output"]]


class Logarithm(nn.Module):
    """A program whose probabilities are learned as their logarithms."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return torch.log(self.program(*inputs).clamp_min(torch.finfo(torch.float32).tiny))


def _fake_weight(value: torch.Tensor, scale: torch.Tensor, weight: dict[str, Any]) -> torch.Tensor:
    highest, each = weight["highest"], value.numel() // max(1, scale.numel())
    scale = _slowed(scale, each * highest)
    if weight["axis"] is not None:
        shape = [1] * value.dim()
        shape[weight["axis"]] = -1
        scale = scale.reshape(shape)
    return _rounded(value, scale, -highest, highest)


def _fake_bias(value: torch.Tensor, given: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Round a bias to 32 bits: where an image is empty every sum is the bias, and all pass a half together."""
    return _rounded(value, (given * weight).detach(), -(2**31), 2**31 - 1)


def _fake_activation(value: torch.Tensor, scale: torch.Tensor, at: Attributes) -> torch.Tensor:
    slowed = _slowed(scale, value.numel() // max(1, len(value)) * (at["high"] - at["low"]))
    return _rounded(value, slowed, at["low"] - at["zero"], at["high"] - at["zero"])


def _slowed(scale: torch.Tensor, size: int) -> torch.Tensor:
    """Return the same scale, whose gradient is divided by the root of how many values share it and of their steps.

    Source: Esser et al., "Learned Step Size Quantization", arXiv 1902.08153, section 2.2; without it the clipping of
    gradients sees the scales alone.
    """
    share = 1 / math.sqrt(max(1, size))
    return scale * share + (scale * (1 - share)).detach()


def _rounded(value: torch.Tensor, scale: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Round to steps of ``scale`` within bounds, to even at a half as onnxruntime does; gradients pass the rounding."""
    steps = torch.clamp(value / scale, low, high)
    return (steps + (torch.round(steps) - steps).detach()) * scale


def _conv(given: Inputs, at: Attributes) -> torch.Tensor:
    x, weight, bias = given[0], given[1], given[2] if len(given) > 2 else None
    dims = weight.dim() - 2
    x, pads = _padded(x, at, dims)
    run = (functional.conv1d, functional.conv2d, functional.conv3d)[dims - 1]
    strides, dilations = (at.get(name) or [1] * dims for name in ("strides", "dilations"))
    return run(x, weight, bias, strides, pads, dilations, at.get("group", 1))


def _padded(x: torch.Tensor, at: Attributes, dims: int, value: float = 0.0) -> tuple[torch.Tensor, list[int]]:
    """Return x and the pads that torch can still add itself: the same on either side."""
    if at.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise InputError(f"quantization-aware training knows no auto_pad {at['auto_pad']}; export with pads")
    pads = at.get("pads") or [0] * 2 * dims
    before, after = pads[:dims], pads[dims:]
    if before == after:
        return x, before
    sides = [side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair]
    return functional.pad(x, sides, value=value), [0] * dims


def _max_pool(given: Inputs, at: Attributes) -> torch.Tensor:
    dims = len(at["kernel_shape"])
    x, pads = _padded(given[0], at, dims, -math.inf)
    run = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[dims - 1]
    strides, dilations = (at.get(name) or [1] * dims for name in ("strides", "dilations"))
    return run(x, at["kernel_shape"], strides, pads, dilations, bool(at.get("ceil_mode", 0)))


def _average_pool(given: Inputs, at: Attributes) -> torch.Tensor:
    dims = len(at["kernel_shape"])
    x, pads = _padded(given[0], at, dims)
    run = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[dims - 1]
    counts = bool(at.get("count_include_pad", 0))
    return run(x, at["kernel_shape"], at.get("strides") or [1] * dims, pads, bool(at.get("ceil_mode", 0)), counts)


def _gemm(given: Inputs, at: Attributes) -> torch.Tensor:
    a, b = given[0], given[1]
    a, b = (a.t() if at.get("transA") else a), (b.t() if at.get("transB") else b)
    made = at.get("alpha", 1.0) * (a @ b)
    return made if len(given) < 3 or given[2] is None else made + at.get("beta", 1.0) * given[2]


def _batch_norm(given: Inputs, at: Attributes) -> torch.Tensor:
    x, scale, bias, mean, var = given
    return functional.batch_norm(x, mean, var, scale, bias, False, 0.0, at.get("epsilon", 1e-5))


def _layer_norm(given: Inputs, at: Attributes) -> torch.Tensor:
    x, axis = given[0], at.get("axis", -1)
    bias = given[2] if len(given) > 2 else None
    return functional.layer_norm(x, list(x.shape[axis:]), given[1], bias, at.get("epsilon", 1e-5))


def _clip(given: Inputs, at: Attributes) -> torch.Tensor:
    low, high = ((given[index] if index < len(given) else None) for index in (1, 2))
    low, high = (at.get("min") if low is None else low), (at.get("max") if high is None else high)
    made = given[0] if low is None else torch.maximum(given[0], torch.as_tensor(low))
    return made if high is None else torch.minimum(made, torch.as_tensor(high))


def _axes(given: Inputs, at: Attributes) -> list[int]:
    held = given[1].tolist() if len(given) > 1 and given[1] is not None else at.get("axes")
    return list(held) if held is not None else []


def _reduce(function: Callable[..., torch.Tensor]) -> Callable[[Inputs, Attributes], torch.Tensor]:
    def run(given: Inputs, at: Attributes) -> torch.Tensor:
        axes = _axes(given, at) or list(range(given[0].dim()))
        return function(given[0], dim=axes, keepdim=bool(at.get("keepdims", 1)))

    return run


def _flatten(given: Inputs, at: Attributes) -> torch.Tensor:
    x, axis = given[0], at.get("axis", 1)
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _reshape(given: Inputs, at: Attributes) -> torch.Tensor:
    wanted = given[1].tolist()
    kept = [given[0].shape[at_] if size == 0 and not at.get("allowzero") else size for at_, size in enumerate(wanted)]
    return given[0].reshape(tuple(kept))


def _squeeze(given: Inputs, at: Attributes) -> torch.Tensor:
    axes = _axes(given, at)
    return given[0].squeeze(tuple(axes)) if axes else given[0].squeeze()


def _unsqueeze(given: Inputs, at: Attributes) -> torch.Tensor:
    x, axes = given[0], _axes(given, at)
    for axis in sorted(axis % (x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _split(given: Inputs, at: Attributes) -> list[torch.Tensor]:
    axis = at.get("axis", 0)
    sizes = given[1].tolist() if len(given) > 1 and given[1] is not None else at.get("split")
    if sizes is None:
        sizes = math.ceil(given[0].shape[axis] / at["num_outputs"])
    return list(given[0].split(sizes, axis))


def _slice(given: Inputs, at: Attributes) -> torch.Tensor:
    x, starts, ends = given[0], given[1].tolist(), given[2].tolist()
    axes = given[3].tolist() if len(given) > 3 and given[3] is not None else list(range(len(starts)))
    steps = given[4].tolist() if len(given) > 4 and given[4] is not None else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        rows = range(x.shape[axis])[start:end:step]
        x = x.index_select(axis, torch.tensor(list(rows), dtype=torch.int64))
    return x


def _gather(given: Inputs, at: Attributes) -> torch.Tensor:
    x, rows, axis = given[0], given[1].long(), at.get("axis", 0) % given[0].dim()
    rows = torch.where(rows < 0, rows + x.shape[axis], rows)
    found = x.index_select(axis, rows.reshape(-1))
    return found.reshape((*x.shape[:axis], *rows.shape, *x.shape[axis + 1 :]))


def _pad(given: Inputs, at: Attributes) -> torch.Tensor:
    if at.get("mode", "constant") != "constant" or (len(given) > 3 and given[3] is not None):
        raise InputError("quantization-aware training pads all axes with a constant only")
    pads = given[1].tolist()
    half = len(pads) // 2
    sides = [side for pair in zip(reversed(pads[:half]), reversed(pads[half:]), strict=True) for side in pair]
    value = float(given[2]) if len(given) > 2 and given[2] is not None else 0.0
    return functional.pad(given[0], sides, value=value)


def _cast(given: Inputs, at: Attributes) -> torch.Tensor:
    if at["to"] not in _CASTS:
        raise InputError(f"quantization-aware training knows no Cast to type {at['to']} of ONNX")
    return given[0].to(_CASTS[at["to"]])


def _prelu(given: Inputs, at: Attributes) -> torch.Tensor:
    return torch.where(given[0] < 0, given[0] * given[1], given[0])


def _hard_sigmoid(x: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    return (alpha * x + beta).clamp(0, 1)


def _folded(function: Callable[..., torch.Tensor]) -> Callable[[Inputs, Attributes], torch.Tensor]:
    def run(given: Inputs, at: Attributes) -> torch.Tensor:
        made = given[0]
        for other in given[1:]:
            made = function(made, other)
        return made

    return run


OPERATORS: Mapping[str, Callable[[Inputs, Attributes], Any]] = {
    "Abs": lambda x, at: x[0].abs(),
    "Add": lambda x, at: x[0] + x[1],
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda x, at: torch.cat(x, dim=at["axis"]),
    "Conv": _conv,
    "Div": lambda x, at: x[0] / x[1] if x[0].is_floating_point() else torch.div(x[0], x[1], rounding_mode="trunc"),
    "Dropout": lambda x, at: x[0],
    "Elu": lambda x, at: functional.elu(x[0], at.get("alpha", 1.0)),
    "Equal": lambda x, at: x[0] == x[1],
    "Erf": lambda x, at: torch.erf(x[0]),
    "Exp": lambda x, at: torch.exp(x[0]),
    "Expand": lambda x, at: x[0] * torch.ones(x[1].tolist(), dtype=x[0].dtype),
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x, at: x[0].mean(dim=list(range(2, x[0].dim())), keepdim=True),
    "GlobalMaxPool": lambda x, at: x[0].amax(dim=list(range(2, x[0].dim())), keepdim=True),
    "HardSigmoid": lambda x, at: _hard_sigmoid(x[0], at.get("alpha", 0.2), at.get("beta", 0.5)),
    "HardSwish": lambda x, at: x[0] * _hard_sigmoid(x[0], 1 / 6, 0.5),
    "Identity": lambda x, at: x[0],
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda x, at: functional.leaky_relu(x[0], at.get("alpha", 0.01)),
    "Log": lambda x, at: torch.log(x[0]),
    "LogSoftmax": lambda x, at: torch.log_softmax(x[0], dim=at.get("axis", -1)),
    "MatMul": lambda x, at: x[0] @ x[1],
    "Max": _folded(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _folded(torch.minimum),
    "Mul": lambda x, at: x[0] * x[1],
    "Neg": lambda x, at: -x[0],
    "PRelu": _prelu,
    "Pad": _pad,
    "Pow": lambda x, at: torch.pow(x[0], x[1]),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Relu": lambda x, at: torch.relu(x[0]),
    "Reshape": _reshape,
    "Shape": lambda x, at: torch.tensor(list(x[0].shape)[at.get("start", 0) : at.get("end")], dtype=torch.int64),
    "Sigmoid": lambda x, at: torch.sigmoid(x[0]),
    "Slice": _slice,
    "Softmax": lambda x, at: torch.softmax(x[0], dim=at.get("axis", -1)),
    "Softplus": lambda x, at: functional.softplus(x[0]),
    "Split": _split,
    "Sqrt": lambda x, at: torch.sqrt(x[0]),
    "Squeeze": _squeeze,
    "Sub": lambda x, at: x[0] - x[1],
    "Tanh": lambda x, at: torch.tanh(x[0]),
    "Transpose": lambda x, at: x[0].permute(at.get("perm") or list(reversed(range(x[0].dim())))),
    "Unsqueeze": _unsqueeze,
    "Where": lambda x, at: torch.where(x[0].bool(), x[1], x[2]),
}
