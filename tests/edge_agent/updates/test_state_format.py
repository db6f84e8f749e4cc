"""Model states on disk: what earlier releases wrote is read, what a later one wrote is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.policy import model_state
from edge_agent.policy.audit import Audit
from edge_agent.policy.model_state import Failure, ModelState, Release, Slot, Trial
from edge_agent.updates import state_format
from edge_agent.updates.store import Store
from penstock.errors import ArtifactError, NewerState

GOLDEN = Path(__file__).parent / "golden" / "model-state-0.json"


def digest(number: int) -> str:
    return "sha256:" + f"{number:x}" * 64


def slot(number: int, **changes: Any) -> Slot:
    release = Release(version=f"v{number}", artifact_digest=digest(number), certificate_digest=digest(number + 8))
    return Slot(
        release=release, variant_digest=digest(number + 4), certificate_digest=release.certificate_digest, **changes
    )


FULL = ModelState(
    model="digits",
    active=slot(2, note="why there is none", signature_digests=(digest(14),)),
    previous=slot(1),
    desired=slot(3).release,
    trials=(Trial(key=slot(2).key, starts=1),),
    failures=(
        Failure(
            release=Release(version="v0", artifact_digest=digest(7)), kind="failed", reason="no variant for arm64",
            is_blocked=False,
        ),
        Failure(
            release=Release(version="v4", artifact_digest=digest(4)), kind="reverted", reason="golden outputs differ",
            is_blocked=False,
        ),
    ),
)  # fmt: skip


AUDITED = msgspec.structs.replace(
    FULL,
    audits=(
        Audit(artifact_digest=digest(1), certificate_digest=digest(9), max_harm=0.02, has_alarmed=True),
        Audit(
            artifact_digest=digest(2), certificate_digest=digest(10), max_harm=0.02, evidence=(0.1, 2.0, 3e9, 0, 0, 7)
        ),
    ),
)


def document(**changes: Any) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(state_format.encode(FULL)) | changes)


def test_a_state_of_the_previous_release_is_read_completely(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "models" / "digits.json").write_bytes(GOLDEN.read_bytes())
    assert store.states() == {"digits": FULL}
    store.save(FULL)
    assert store.states() == {"digits": FULL}


def test_a_state_says_its_schema_version_and_comes_back() -> None:
    data = state_format.encode(FULL)
    assert msgspec.json.decode(data)["schema_version"] == state_format.SCHEMA_VERSION == 4
    assert state_format.decode(data, "x") == FULL
    assert state_format.decode(state_format.encode(AUDITED), "x") == AUDITED


def test_the_previous_release_would_find_its_keys_where_they_were() -> None:
    """An agent that is set back one release must not lose its model: the version stands beside the old keys."""
    old, new = msgspec.json.decode(GOLDEN.read_bytes()), msgspec.json.decode(state_format.encode(FULL))
    assert {name: new[name] for name in old} == old


def test_a_state_of_a_newer_release_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = tmp_path / "models" / "digits.json"
    newer = msgspec.json.decode(document(schema_version=state_format.SCHEMA_VERSION + 1, invented=[1, 2, 3]))
    del newer["checksum"]
    path.write_bytes(msgspec.json.encode(newer | {"checksum": state_format._checksum(newer)}))
    before = path.read_bytes()
    with pytest.raises(NewerState, match=r"digits.json has schema version \d+, this Penstock knows \d+; start"):
        store.states()
    assert path.read_bytes() == before
    assert not path.with_suffix(".bad").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"is_commited": True},
        {"desired": {"version": "v1", "artifact_digset": digest(1), "artifact_digest": digest(1)}},
        {"schema_version": -1},
        {"schema_version": "1"},
        {"trials": [{"key": ["a"], "starts": 1}]},
    ],
)
def test_a_misspelt_or_senseless_document_is_an_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError):
        state_format.decode(document(**changes), "toy.json")


def test_what_the_transitions_make_can_be_kept() -> None:
    state = model_state.fail(model_state.desire(FULL, slot(1).release), slot(3).release, "failed", "x", limit=2)
    assert state_format.decode(state_format.encode(state), "x") == state
