"""Whole files, from reading to certificate: rows that repeat or belong together, as the compiler itself takes them.

Each file is drawn, saved, read, divided and certified by the compiler's own code, with thresholds from its tuning
split. A row is a score, uniform on [0, 1], and whether its answer is harmful, 0.4 (1 - score) of the time. Service
brings more of the world that the file was drawn from.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compiler.certificate import learn_then_test, score_choice
from compiler.certificate.binomial import clopper_pearson
from compiler.certificate.columns import CertifyData
from compiler.data import DataSection, Split, loading
from compiler.recipe.certificate_section import CertificateSection
from compiler.recipe.data_section import RepeatsAre
from penstock.errors import CalibrationError
from penstock.wire.tensors import TensorSpec

PROMISE = CertificateSection(max_harm=0.02, delta=0.05)
_FILES = 400
_INPUTS = [TensorSpec(name="x", datatype="FP32", shape=(-1, 2))]
_SLOPE = 0.4

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class File:
    """What is saved, and the harm that service has at a threshold."""

    scores: Floats
    harmful: NDArray[np.bool_]
    true_harm: Callable[[float], float]
    columns: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)


def natural(rng: np.random.Generator) -> File:
    """Draw 5,000 rows from 300 distinct ones with Zipf frequencies, which service draws from too."""
    frequencies = 1 / np.arange(1, 301)
    frequencies = frequencies / frequencies.sum()
    scores, harmful = _rows(rng, 300)

    def true_harm(threshold: float) -> float:
        return float(frequencies[harmful & (scores >= threshold)].sum())

    drawn = rng.choice(300, 5000, p=frequencies)
    return File(scores=scores[drawn], harmful=harmful[drawn], true_harm=true_harm)


def copies(rng: np.random.Generator) -> File:
    """Copy 1,500 rows 1 to 200 times each; service brings new ones."""
    scores, harmful = _rows(rng, 1500)
    copied = np.repeat(np.arange(1500), np.minimum(rng.zipf(1.6, 1500), 200))
    return File(scores=scores[copied], harmful=harmful[copied], true_harm=_expected)


def patients(rng: np.random.Generator) -> File:
    """Draw 1,500 patients with 1 to 100 rows, half of them with harmful answers; service brings new ones."""
    patient = np.repeat(np.arange(1500), np.minimum(rng.zipf(1.6, 1500), 100))
    scores, harmful = _rows(rng, len(patient), slope=2 * _SLOPE)
    is_bad = rng.random(1500) < 0.5
    return File(scores=scores, harmful=harmful & is_bad[patient], true_harm=_expected, columns={"patient": patient})


WORLDS: Mapping[str, tuple[Callable[[np.random.Generator], File], RepeatsAre]] = {
    'Zipf by nature, repeats = "natural"': (natural, "natural"),
    "Zipf by nature, nothing said": (natural, ""),
    "copies, nothing said": (copies, ""),
    "patients, nothing said": (patients, ""),
}


def table() -> str:
    """Certify many files of every world; return what came of it as Markdown."""
    lines = [
        f"{_FILES} files of each world, at most {PROMISE.levels[0]:.0%} of harm with {1 - PROMISE.delta:.0%} "
        "confidence. Broken: of those certified, the true harm is above the promise (95% interval).",
        "",
        "| file | certified | broken | kept on the device |",
        "|---|---|---|---|",
    ]
    for name, (draw, repeats) in WORLDS.items():
        broken, coverage = outcomes(draw, repeats, _FILES)
        share = "none certified"
        if len(broken):
            low, high = clopper_pearson(int(broken.sum()), len(broken), 0.05)
            share = f"{broken.mean():.2%} ({low:.2%} to {high:.2%})"
        kept = f"{coverage.mean():.1%}" if len(broken) else "-"
        lines.append(f"| {name} | {len(broken)} | {share} | {kept} |")
    return "\n".join(lines)


def outcomes(
    draw: Callable[[np.random.Generator], File], repeats: RepeatsAre, files: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return, of the files that were certified, whether the promise is broken and the share that is kept."""
    found = []
    with tempfile.TemporaryDirectory() as directory:
        for seed in range(files):
            file = draw(np.random.default_rng(seed))
            certified = _certified(file, repeats, Path(directory), seed)
            if certified is not None:
                found.append((file.true_harm(certified.threshold) > PROMISE.levels[0], certified.coverage))
    columns = np.array(found, dtype=np.float64).reshape(-1, 2)
    return columns[:, 0] > 0, columns[:, 1]


def _certified(file: File, repeats: RepeatsAre, base: Path, seed: int) -> learn_then_test.Certified | None:
    """Save, read, divide and certify one file; None for a refusal."""
    order = np.random.default_rng(seed).permutation(len(file.scores))
    x = np.stack([file.scores, file.harmful.astype(np.float32)], axis=1)
    arrays = {"x": x, "y": np.zeros(len(x), np.int64), **file.columns}
    np.savez(base / "rows.npz", **{name: array[order] for name, array in arrays.items()})  # type: ignore[arg-type]
    data = loading.load(DataSection(source="rows.npz", repeats=repeats, seed=seed), base, _INPUTS, classes=None)
    grid = score_choice.grid_for(_columns(data.tune).scores.astype(np.float64))
    try:
        return learn_then_test.promise(_columns(data.certify), PROMISE, thresholds=grid).default
    except CalibrationError:
        return None


def _columns(split: Split) -> CertifyData:
    """Make the columns of a certificate of a split whose inputs say what its answers would be."""
    x, zero = split.inputs["x"], np.zeros(split.rows, dtype=np.int64)
    return CertifyData(
        scores=x[:, 0].astype(np.float64),
        edge_predictions=x[:, 1].astype(np.int64),
        cloud_predictions=zero,
        labels=zero,
        clusters=split.clusters,
    )


def _rows(rng: np.random.Generator, n: int, slope: float = _SLOPE) -> tuple[Floats, NDArray[np.bool_]]:
    scores = rng.random(n, dtype=np.float32)
    return scores, rng.random(n) < slope * (1 - scores)


def _expected(threshold: float) -> float:
    """Return E[kept and harmful]: the integral of 0.4 (1 - s) from the threshold to 1."""
    return _SLOPE / 2 * max(1 - threshold, 0.0) ** 2
