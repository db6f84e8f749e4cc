from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from cloud_core.observing.drift import Drift
from cloud_core.observing.finished import Finished
from cloud_core.observing.settings import DriftSettings
from penstock.artifact import row_reference
from penstock.artifact.row_reference import Reference
from penstock.errors import ArtifactError
from penstock.policy.distributions import described
from penstock.wire.inference import InferRequest, InferResponse

SETTINGS = DriftSettings(is_on=True, reference_rows=500, window_rows=500, min_rows=100, max_waiting_rows=2000)


def request_of(x: Any, *, version: str = "v1") -> Finished:
    rows = np.asarray(x, np.float32).reshape(-1, 1)
    return Finished(
        code="ok",
        model="mlp",
        version=version,
        rows=len(rows),
        started_at=0.0,
        request=InferRequest(model="mlp", inputs={"x": rows}),
        response=InferResponse(model="mlp", outputs={"logits": np.hstack([rows, -rows])}),
    )


def fed(drift: Drift, *batches: Any, **more: Any) -> list[str]:
    """What the log says of it."""
    for batch in batches:
        drift.finished(request_of(batch, **more))
        drift.fold()
    return [f"{event['feature']} {'shifted' if event['is_shift'] else 'is back'}" for event in drift.events]


def none(model: str, version: str) -> None:
    return None


async def test_the_first_rows_are_the_reference_where_the_artifact_has_none_and_that_is_said() -> None:
    drift, rng = Drift(SETTINGS, none), np.random.default_rng(0)
    assert fed(drift, rng.normal(size=300)) == []
    assert drift.documents()[0]["reference"] == "being collected: 300 of 500 rows"
    assert fed(drift, rng.normal(size=300), rng.normal(size=400)) == []
    (found,) = drift.documents()
    assert found["reference"] == "the first 600 rows served"
    assert (found["rows"], found["shifted"]) == (400, [])


async def test_a_shift_is_told_once_and_again_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    drift, rng = Drift(SETTINGS, none), np.random.default_rng(0)
    fed(drift, rng.normal(size=500), rng.normal(size=300))
    with caplog.at_level(logging.INFO, logger="cloud_core.observing.drift"):
        told = fed(drift, *[rng.normal(3.0, size=200) for _ in range(8)])
    assert sorted(told) == ["logits.confidence shifted", "logits.prediction shifted", "x shifted"]
    assert [record.getMessage() for record in caplog.records] == ["drift"] * 3
    assert drift.shifted(("mlp", "v1")) == {"x", "logits.confidence", "logits.prediction"}
    assert drift.documents()[0]["features"][0]["psi"] > 1.0
    told = fed(drift, *[rng.normal(size=200) for _ in range(8)])
    assert sorted(told[3:]) == ["logits.confidence is back", "logits.prediction is back", "x is back"]


async def test_the_reference_of_an_artifact_is_used_at_once() -> None:
    rng = np.random.default_rng(0)
    carried = Reference(rows=2000, columns=(described("x", rng.normal(5.0, size=2000)),))
    drift = Drift(SETTINGS, lambda model, version: carried if version == "v2" else None)
    assert fed(drift, rng.normal(5.0, size=200), version="v2") == []
    assert fed(drift, rng.normal(0.0, size=400), version="v2") == ["x shifted"]
    assert drift.documents()[0]["reference"] == "the evaluation of the artifact, 2000 rows"


async def test_what_waits_and_what_is_followed_is_bounded() -> None:
    drift = Drift(SETTINGS, none)
    for _ in range(5):
        drift.finished(request_of(np.zeros(900)))
    assert drift.skipped == 3 * 900
    small = Drift(DriftSettings(is_on=True, max_versions=2), none)
    for version in ("v1", "v2", "v3"):
        fed(small, np.zeros(10), version=version)
    assert [one["version"] for one in small.documents()] == ["v2", "v3"]


async def test_what_was_not_answered_and_what_has_no_rows_is_not_followed() -> None:
    drift = Drift(SETTINGS, none)
    drift.finished(Finished(code="invalid-input", model="mlp", started_at=0.0))
    drift.fold()
    assert drift.documents() == []


def test_a_reference_is_read_as_it_was_written_and_nonsense_is_refused() -> None:
    reference = Reference(rows=3, columns=(described("x", np.array([1.0, 2.0, np.nan])),))
    data = row_reference.encode(reference)
    assert row_reference.decode(data) == reference
    for bad in (b"{", b'{"rows": 1, "columns": [], "schema": 2}', data.replace(b"[1.0,2.0]", b"[2.0,1.0]")):
        with pytest.raises(ArtifactError, match="reference"):
            row_reference.decode(bad)


async def test_rows_that_cannot_be_counted_are_skipped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    def damaged(model: str, version: str) -> Reference:
        raise ZeroDivisionError("a defect")

    drift = Drift(SETTINGS, damaged)
    drift.finished(request_of(np.zeros(10)))
    drift.fold()
    assert drift.skipped == 10
    assert [record.getMessage() for record in caplog.records] == ["rows cannot be followed"]
