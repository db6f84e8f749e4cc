"""A head for answers of words sees what the engine answered by, and is taken only where it is shown to keep more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.compiler.completions import Completions, completions
from benchmarks.compiler.confidence import dealt
from benchmarks.compiler.language_confidence import Compared, compare
from compiler.certificate.probe import Seen
from compiler.recipe.certificate_section import CertificateSection
from penstock.policy.confidence import PROBE


def test_what_is_seen_is_what_the_engine_answered_by(tmp_path: Path) -> None:
    found = completions(tmp_path, 4, prompts=12)
    logits = found.logits.astype(np.float64)
    drawn = np.exp(logits.max(axis=1)) / np.exp(logits).sum(axis=1)
    assert drawn == pytest.approx([row.min() for row in found.probabilities], abs=1e-3)
    assert found.features.shape == (12, 2 * 64)
    again = completions(tmp_path, 4, prompts=12)
    assert np.array_equal(again.features, found.features)


def test_a_head_is_taken_where_hidden_states_tell_harm() -> None:
    compared = _compared(tells=3.0)
    assert compared.shown.low > 0
    assert compared.probed.score == PROBE
    assert compared.probed.certified > compared.plain.certified + 0.1


def test_a_head_that_learns_nothing_is_left_out() -> None:
    compared = _compared(tells=0.0)
    assert compared.probed == compared.plain


def _compared(*, tells: float) -> Compared:
    """Compare on drawn answers: a third are harmful, token scores know nothing of it, and one feature tells it."""
    source, count = np.random.default_rng(0), 2_000
    harm = source.random(count) < 1 / 3
    features = source.normal(size=(count, 4))
    features[:, 0] += tells * (2 * harm - 1)
    same = np.zeros(count, np.int64)
    found = Completions(
        probabilities=tuple(source.uniform(0.2, 1, (count, 3))),
        logits=source.normal(size=(count, 8)).astype(np.float32),
        features=features.astype(np.float32),
        edge=same,
        cloud=harm.astype(np.int64),
        labels=same,
    )
    seen = Seen(outputs=found.logits, features=found.features, kind="logits")
    (deal,) = dealt((800, 600, 600), 1)
    return compare(found, seen, deal, CertificateSection(max_harm=0.05, harm="disagreement"))
