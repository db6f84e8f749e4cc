"""GPTQ: weights rounded one row after another, each row's error made up for by the rows that are still to come.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (arXiv 2210.17323).
Written here because onnxruntime's own derives the scales a second time from weights that it has already rounded, keeps
all examples in memory and stores 4 bits only. Pure arithmetic; which activations are multiplied, the caller finds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compiler.passes.weights import blockwise
from compiler.passes.weights.blockwise import Floats, Grid, Quantized

_LAZY_ROWS = 32
"""Rows after which the rest of the weight is brought up to date: one matrix product instead of many small ones."""


class Hessian:
    """2 / n * X^T X over the rows of all activations [n, K] given so far: K * K numbers, however many examples."""

    def __init__(self, size: int) -> None:
        self._sum: NDArray[np.float64] = np.zeros((size, size))
        self.rows = 0

    def add(self, activations: NDArray[np.generic]) -> None:
        """Count activations of any shape [..., K]."""
        rows = activations.reshape(-1, self._sum.shape[0]).astype(np.float32)
        self._sum += rows.T @ rows
        self.rows += len(rows)

    def value(self) -> NDArray[np.float64]:
        """Return FP64 [K, K]."""
        return self._sum * (2 / max(self.rows, 1))


def gptq(
    weight: Floats, hessian: NDArray[np.float64], *, bits: int, block: int, symmetric: bool, damping: float
) -> Quantized:
    """Quantize a weight [K, N] for the inputs that ``hessian`` [K, K] sums up.

    Args:
        damping: share of the mean of the Hessian's diagonal that is added to it, so that it can be inverted.

    Raises:
        numpy.linalg.LinAlgError: the damped Hessian is not positive definite: activations that are not finite.
    """
    rows, columns = weight.shape
    left = np.pad(weight.astype(np.float32), ((0, -rows % block), (0, 0)))
    inverse = _inverse_root(hessian, damping, len(left)).astype(np.float32)
    scales: list[Floats] = []
    zeros: list[Floats] = []
    whole = np.zeros((len(left), columns), np.uint8)
    lazy = max(block, _LAZY_ROWS)
    for start in range(0, len(left), lazy):
        stop = min(start + lazy, len(left))
        errors = np.zeros((stop - start, columns), np.float32)
        for row in range(start, stop):
            if row % block == 0:
                # the grid of a block is chosen when everything before it has been made up for
                values = left[row : row + block].T[:, None, :]
                grid = blockwise.range_grid(values, bits=bits, symmetric=symmetric)
                scales.append(grid.scale)
                zeros.append(grid.zero)
            whole[row], rounded = _row(left[row], grid)
            errors[row - start] = (left[row] - rounded) / inverse[row, row]
            left[row + 1 : stop] -= np.outer(inverse[row, row + 1 : stop], errors[row - start])
        left[stop:] -= inverse[start:stop, stop:].T @ errors
    grid = Grid(scale=np.concatenate(scales, axis=1), zero=np.concatenate(zeros, axis=1), bits=bits)
    blocks = np.ascontiguousarray(whole.T).reshape(columns, -1, block)
    return Quantized(grid=grid, whole=blocks, rows=rows)


def _row(values: Floats, grid: Grid) -> tuple[NDArray[np.uint8], Floats]:
    whole = grid.rounded(values[:, None, None])
    return whole[:, 0, 0].astype(np.uint8), grid.values(whole)[:, 0, 0]


def _inverse_root(hessian: NDArray[np.float64], damping: float, size: int) -> NDArray[np.float64]:
    """Return upper triangular U with U^T U the inverse of the damped Hessian, filled up to ``size`` with the
    identity."""
    if not np.isfinite(hessian).all():
        raise np.linalg.LinAlgError("not finite")  # which a decomposition would pass on without a word
    damped = np.eye(size)
    known = len(hessian)
    damped[:known, :known] = hessian
    diagonal = np.diag(hessian)
    # inputs that are zero in every example: their weights are rounded by themselves. (The paper's program sets them to
    # zero, which would be wrong for the first example that is not)
    dead = np.flatnonzero(diagonal == 0)
    damped[dead, dead] = 1
    index = np.arange(known)
    damped[index, index] += damping * float(np.mean(diagonal)) if diagonal.any() else 1.0
    lower = np.linalg.cholesky(damped)
    inverse_lower = np.linalg.solve(lower, np.eye(size))
    # the Cholesky factor of the inverse, transposed: rows of it are what the updates need
    return np.ascontiguousarray(np.linalg.cholesky(inverse_lower.T @ inverse_lower).T)
