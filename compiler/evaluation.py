"""The evaluation document: every figure of a compilation, as the artifact carries it and the report shows it."""

from __future__ import annotations

from typing import Literal

import msgspec

from compiler.evaluate import CascadeFigures, VariantFigures
from penstock.certificate import Certificate, Harm


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where latencies were measured and golden outputs computed."""

    target: str
    processor: str
    cores: int
    onnxruntime: str


class Quantization(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What quantization did.

    Attributes:
        types: integer types, as text. ``rows``: calibration rows that set the ranges, all of them.
        integer_weight_bytes, float_weight_bytes: constants that ended as 8-bit integers, and those left in float.
        integer_nodes, float_nodes: matrix products and convolutions by operator, as onnxruntime executes them here.
    """

    types: str
    rows: int
    integer_weight_bytes: int
    float_weight_bytes: int
    integer_nodes: dict[str, int]
    float_nodes: dict[str, int]


class CurvePoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shares of all examples of a split: ``coverage`` kept, and ``harm`` kept with harm, at ``threshold``."""

    threshold: float
    coverage: float
    harm: float


class SplitFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many rows a split has, and the digest of its examples."""

    rows: int
    digest: str


class Evaluation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything measured. ``refusal`` says why there is no certificate; "" when there is one.

    Attributes:
        curve_certify, curve_test: risk against coverage on the two splits, strictest threshold first.
        gate: the accuracy gate in words, with its figures.
    """

    schema: Literal[1] = 1
    model: str
    version: str
    target: str
    machine: Machine
    splits: dict[str, SplitFigures]
    variants: tuple[VariantFigures, ...]
    quantization: Quantization | None
    gate: str
    harm: Harm
    score: str
    temperature: float
    cascade: CascadeFigures | None
    curve_certify: tuple[CurvePoint, ...]
    curve_test: tuple[CurvePoint, ...]
    certificate: Certificate | None
    refusal: str


def encode(evaluation: Evaluation) -> bytes:
    """Indented JSON, for people too."""
    return msgspec.json.format(msgspec.json.encode(evaluation, order="sorted"), indent=2) + b"\n"


def decode(data: bytes) -> Evaluation:
    """
    Raises:
        msgspec.ValidationError: another schema.
    """
    return msgspec.json.decode(data, type=Evaluation)
