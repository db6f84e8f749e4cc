"""AWQ: weights whose inputs are large are made larger before they are rounded, and their inputs smaller by as much.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (arXiv 2306.00978).

The step of a block is set by its largest weights. What multiplies large inputs costs most when it is rounded, so it
gets more of the grid; how much is searched for, as in the paper, by what the products of the examples' inputs lose.
Pure arithmetic; which inputs are multiplied, the caller finds.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from compiler.passes.weights import blockwise
from compiler.passes.weights.blockwise import Floats, Quantized

_STEPS = 20
"""Exponents tried, from 0, which is plain rounding, up to 1; the paper's number."""
_JUDGED_COLUMNS = 256
"""Of a weight, to compare exponents with: each needs a product with the Hessian."""


def awq(weight: Floats, hessian: NDArray[np.float64], *, bits: int, block: int, symmetric: bool) -> Quantized:
    """Quantize a weight [K, N] for the inputs that ``hessian`` [K, K] sums up; never worse on them than rounding.

    Raises:
        numpy.linalg.LinAlgError: the inputs are not finite.
    """
    if not np.isfinite(hessian).all():
        raise np.linalg.LinAlgError("not finite")
    # the paper takes the mean magnitude of an input; the root of its mean square is in the sums that are there
    size = np.sqrt(np.maximum(np.diag(hessian), 0.0) / 2)
    size[size == 0] = 1.0  # never seen in an example: left as it is
    columns = np.linspace(0, weight.shape[1] - 1, min(weight.shape[1], _JUDGED_COLUMNS)).astype(np.intp)
    part = np.ascontiguousarray(weight[:, columns])

    def made(values: Floats, exponent: float) -> Quantized:
        return _scaled(values, _scale(size, exponent), bits=bits, block=block, symmetric=symmetric)

    exponents = [step / _STEPS for step in range(_STEPS + 1)]
    best = min(exponents, key=lambda exponent: _loss(part, made(part, exponent), hessian))
    found, plain = made(weight, best), made(weight, 0.0)
    return found if _loss(weight, found, hessian) < _loss(weight, plain, hessian) else plain


def _scale(size: NDArray[np.float64], exponent: float) -> Floats | None:
    if exponent == 0:
        return None
    scale = size**exponent
    scale /= np.sqrt(scale.max() * scale.min())
    return np.asarray(scale, dtype=np.float32)


def _scaled(weight: Floats, scale: Floats | None, *, bits: int, block: int, symmetric: bool) -> Quantized:
    if scale is None:
        return blockwise.rtn(weight, bits=bits, block=block, symmetric=symmetric)
    larger = np.asarray(weight * scale[:, None], dtype=np.float32)
    return replace(blockwise.rtn(larger, bits=bits, block=block, symmetric=symmetric), divisors=scale)


def _loss(weight: Floats, quantized: Quantized, hessian: NDArray[np.float64]) -> float:
    """Return the mean square of what the products lose: the trace of D^T H D for the difference D of the weights."""
    difference = weight.astype(np.float64) - quantized.dequantized()
    return float(np.sum((hessian @ difference) * difference))
