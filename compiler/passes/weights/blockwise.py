"""Weights in 4 or 8 bits by blocks: how blocks get their scale and zero point, and how onnxruntime stores them.

Pure arithmetic on numpy arrays. A weight of shape [K, N] is cut along K into blocks of ``block`` values of one column;
a block's value is ``scale * (q - zero)`` with q and zero whole numbers from 0 to 2**bits - 1. That is what
``MatMulNBits`` of onnxruntime computes with. It allows float zero points too, but runs them 15 to 80 times slower on a
CPU (8.1 ms against 0.14 ms for 1 x 1024 x 4096), and not at all in 8 bits: there are none here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_NORM = 0.7
_FIRST_WEIGHT, _WEIGHT_GROWTH, _ROUNDS = 10.0, 1.01, 20
"""Of half-quadratic splitting: the p-norm, the first penalty and its growth a round, rounds; the HQQ paper's values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The values that a block can have: ``scale`` FP32 and ``zero`` whole numbers, both [N, blocks, 1]."""

    scale: Floats
    zero: Floats
    bits: int

    def rounded(self, blocks: Floats) -> Floats:
        """Return the nearest whole numbers of this grid for values [N, blocks, block]."""
        found: Floats = np.clip(np.round(blocks / self.scale) + self.zero, 0, 2**self.bits - 1)
        return found

    def values(self, whole: Floats) -> Floats:
        """Return what whole numbers stand for."""
        found: Floats = (whole - self.zero) * self.scale
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A weight of shape [``rows``, N] on a grid.

    Attributes:
        whole: UINT8 [N, blocks, block].
        divisors: what the inputs have to be divided by first, FP32 [rows]; None for nothing.
    """

    grid: Grid
    whole: NDArray[np.uint8]
    rows: int
    divisors: Floats | None = None

    def dequantized(self) -> Floats:
        """Return the weight that inputs are multiplied with in effect, FP32 [rows, N]."""
        values = unblocked(self.grid.values(self.whole.astype(np.float32)), self.rows)
        return values if self.divisors is None else values / self.divisors[:, None]


def blocked(weight: Floats, block: int) -> Floats:
    """Turn [K, N] into [N, ceil(K / block), block], the last block filled up with zeros."""
    rows, columns = weight.shape
    padded = np.pad(weight.astype(np.float32), ((0, -rows % block), (0, 0)))
    return np.ascontiguousarray(padded.T).reshape(columns, -1, block)


def unblocked(blocks: Floats, rows: int) -> Floats:
    """Undo :func:`blocked`."""
    return np.ascontiguousarray(blocks.reshape(blocks.shape[0], -1)[:, :rows].T)


def range_grid(blocks: Floats, *, bits: int, symmetric: bool) -> Grid:
    """Take scales from the range of each block, as onnxruntime's own quantizer does.

    Symmetric grids have their zero in the middle and put the value of largest magnitude on the end that reaches
    further, which is below: -8 for 4 bits, -128 for 8. Others cover [min(low, 0), max(high, 0)].
    """
    low, high = blocks.min(axis=-1, keepdims=True), blocks.max(axis=-1, keepdims=True)
    middle = 2 ** (bits - 1)
    if symmetric:
        scale = np.where(np.abs(high) > np.abs(low), high, low) / -middle
        return Grid(scale=_positive(scale), zero=np.full_like(scale, middle), bits=bits)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale = _positive((high - low) / (2**bits - 1))
    zero = np.clip(np.round(-low / scale), 0, 2**bits - 1)
    return Grid(scale=scale, zero=zero.astype(np.float32), bits=bits)


def _positive(scale: Floats) -> Floats:
    """Replace a scale of zero, which a block of zeros has, by some scale; one below zero is fine and mirrors the
    grid."""
    return np.where(scale == 0, np.float32(1), scale).astype(np.float32)


def rtn(weight: Floats, *, bits: int, block: int, symmetric: bool) -> Quantized:
    """Round each value to the nearest of its grid, by itself."""
    blocks = blocked(weight, block)
    return on_grid(blocks, range_grid(blocks, bits=bits, symmetric=symmetric), len(weight))


def on_grid(blocks: Floats, grid: Grid, rows: int) -> Quantized:
    """Round values to a grid."""
    return Quantized(grid=grid, whole=grid.rounded(blocks).astype(np.uint8), rows=rows)


def hqq(weight: Floats, *, bits: int, block: int, symmetric: bool) -> Quantized:
    """Quantize half-quadratically: scales that make the *typical* error small and let outliers be wrong; needs no data.

    Minimises the p-norm (p < 1) of the error by splitting it into a part that shrinkage takes away and a quadratic one
    (Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023). They solve the quadratic
    part for a float zero point. Ours must be whole, and rounding theirs afterwards gives back round-to-nearest exactly,
    so that it is solved for the scale instead. Of all rounds, each block keeps the one with the least squared error,
    the first of which is round-to-nearest: no block gets worse.
    """
    blocks = blocked(weight, block)
    first = range_grid(blocks, bits=bits, symmetric=symmetric)
    scale, best = first.scale, first.scale
    least = np.full(best.shape, np.inf, np.float32)
    penalty = _FIRST_WEIGHT
    for _ in range(_ROUNDS):
        grid = Grid(scale=scale, zero=first.zero, bits=bits)
        whole = grid.rounded(blocks)
        error = blocks - grid.values(whole)
        squared = np.sum(error * error, axis=-1, keepdims=True)
        best, least = np.where(squared < least, scale, best), np.minimum(squared, least)
        steps = whole - first.zero
        target = blocks - _shrunk(error, penalty)
        power = np.sum(steps * steps, axis=-1, keepdims=True)
        solved = np.sum(target * steps, axis=-1, keepdims=True) / np.where(power > 0, power, 1)
        scale = np.where(solved != 0, solved, scale).astype(np.float32)
        penalty *= _WEIGHT_GROWTH
    return on_grid(blocks, Grid(scale=best, zero=first.zero, bits=bits), len(weight))


def _shrunk(error: Floats, penalty: float) -> Floats:
    """Apply the proximal operator of the p-norm (generalised soft thresholding)."""
    size = np.abs(error)
    found: Floats = np.sign(error) * np.maximum(size - (size + 1e-8) ** (_NORM - 1) / penalty, 0)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Inputs of ``MatMulNBits``: ``weight`` UINT8 [N, blocks, block * bits / 8], ``scale`` FP32 [N, blocks], and
    ``zero`` UINT8 [N, ceil(blocks * bits / 8)] or None for the middle of the range."""

    weight: NDArray[np.uint8]
    scale: Floats
    zero: NDArray[np.uint8] | None


def packed(quantized: Quantized, *, symmetric: bool) -> Packed:
    """Pack as onnxruntime stores it: two 4-bit numbers in a byte, the first in its lower half, rows filled up."""
    bits = quantized.grid.bits
    zero = None if symmetric else _bytes(quantized.grid.zero[..., 0].astype(np.uint8), bits)
    return Packed(weight=_bytes(quantized.whole, bits), scale=quantized.grid.scale[..., 0], zero=zero)


def _bytes(whole: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return whole
    if whole.shape[-1] % 2:  # an odd number of blocks has half a byte to spare
        whole = np.concatenate([whole, np.zeros_like(whole[..., :1])], axis=-1)
    pairs: NDArray[np.uint8] = np.bitwise_or(whole[..., 0::2], np.left_shift(whole[..., 1::2], np.uint8(4)))
    return pairs


def sqnr_db(weight: Floats, dequantized: Floats) -> float:
    """Return a weight's signal to quantization noise: 10 log10 of the ratio of their energies, in dB; inf without
    noise.
    """
    noise = float(np.sum((weight - dequantized) ** 2, dtype=np.float64))
    signal = float(np.sum(weight**2, dtype=np.float64))
    return float(10 * np.log10(signal / noise)) if noise and signal else float("inf")
