"""Accuracy of really trained models after INT8, and two of them that the plain defaults break."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from onnxruntime import quantization as ortq

from compiler.calibration.ranges import Calibrator
from compiler.graph import sensitivity
from compiler.passes import int8_dynamic, int8_static
from tests.compiler import small_models as small

POINT = 0.01
TRAINED = {
    "digits by a CNN": small.cnn,
    "digits by an MLP": lambda: small.mlp("digits"),
    "wine by an MLP": lambda: small.mlp("wine"),
    "breast cancer by an MLP": lambda: small.mlp("breast_cancer"),
}


def float_accuracy(trained: small.Trained) -> float:
    return float(np.mean(small.run(trained.model, trained.test).argmax(1) == trained.labels))


def static(directory: Path, trained: small.Trained, **options: object) -> Path:
    job = small.job(directory, trained.model, calibration=trained.fit, **options)
    return job.out / int8_static.run(job).model


def dynamic(directory: Path, trained: small.Trained, **options: object) -> Path:
    job = small.job(directory, trained.model, **options)
    return job.out / int8_dynamic.run(job).model


def plain(directory: Path, trained: small.Trained) -> Path:
    """What ``quantize_static`` makes without options."""

    class Feed:
        def __init__(self) -> None:
            self._batches = small.batches(trained.fit)()

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    with contextlib.redirect_stdout(io.StringIO()):
        ortq.quantize_static(str(directory / "float.onnx"), str(directory / "plain.onnx"), Feed())
    return directory / "plain.onnx"


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("calibrator", ["minmax", "percentile", "entropy"])
@pytest.mark.parametrize("target", [pytest.param("x86-64-vnni", marks=small.needs_vnni), "x86-64"])
def test_static_costs_at_most_a_point(tmp_path: Path, name: str, calibrator: Calibrator, target: str) -> None:
    trained = TRAINED[name]()
    before = float_accuracy(trained)
    assert before > 0.93
    assert before - trained.accuracy(static(tmp_path, trained, calibrator=calibrator, target=target)) <= POINT


@pytest.mark.parametrize("name", TRAINED)
def test_dynamic_costs_at_most_a_point(tmp_path: Path, name: str) -> None:
    trained = TRAINED[name]()
    assert float_accuracy(trained) - trained.accuracy(dynamic(tmp_path, trained)) <= POINT


def test_rare_spikes_break_minmax_and_the_plain_defaults_and_a_cut_tail_or_evened_channels_heal_them(
    tmp_path: Path,
) -> None:
    trained = small.spiky()
    before = float_accuracy(trained)
    assert before > 0.95
    assert trained.accuracy(static(tmp_path, trained, target=small.HERE, calibrator="minmax", smooth=0.0)) < 0.3
    assert trained.accuracy(plain(tmp_path, trained)) < 0.3
    cut: dict[str, object] = {"calibrator": "percentile", "percentile": 99.9}
    for options in ({}, {"calibrator": "entropy", "smooth": 0.0}, {**cut, "smooth": 0.0}):
        assert before - trained.accuracy(static(tmp_path, trained, target=small.HERE, **options)) <= POINT


@pytest.mark.parametrize("name", ["wine", "breast_cancer"])
def test_features_of_unlike_size_break_every_range_and_the_layer_that_reads_them_is_found(
    tmp_path: Path, name: str
) -> None:
    """As measured, one feature is a thousand times another: no range of one tensor serves both."""
    trained = small.mlp(name, raw=True)
    before = float_accuracy(trained)
    assert before > 0.95
    broken = static(tmp_path, trained, target=small.HERE, calibrator="minmax", smooth=0.0)
    assert before - trained.accuracy(broken) > 0.2
    assert before - trained.accuracy(plain(tmp_path, trained)) > 0.2
    assert before - trained.accuracy(dynamic(tmp_path, trained, target=small.HERE)) > 0.2
    ranked = sensitivity.rank(tmp_path / "float.onnx", broken, small.batches(trained.fit))
    assert ranked[0].name == "fc0"
    for healed in (
        static(tmp_path, trained, target=small.HERE, calibrator="minmax"),  # channels are evened out
        static(tmp_path, trained, target=small.HERE, smooth=0.0, keep_float=[ranked[0].name]),
        dynamic(tmp_path, trained, target=small.HERE, keep_float=[ranked[0].name]),
    ):
        assert before - trained.accuracy(healed) <= POINT
