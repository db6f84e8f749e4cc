"""A device keeps its name through everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.identity import device_id
from penstock.errors import StorageError


def test_a_generated_id_is_kept(tmp_path: Path) -> None:
    first = device_id(tmp_path)
    assert len(first) == 32
    assert device_id(tmp_path) == first


def test_a_configured_id_wins_and_does_not_overwrite_the_kept_one(tmp_path: Path) -> None:
    kept = device_id(tmp_path)
    assert device_id(tmp_path, "press-7") == "press-7"
    assert device_id(tmp_path) == kept


def test_a_configured_id_leaves_no_trace(tmp_path: Path) -> None:
    device_id(tmp_path, "press-7")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\x00" * 32, b"two words"])
def test_a_damaged_id_is_an_error_and_never_replaced_in_silence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "device_id").write_bytes(content)
    with pytest.raises(StorageError, match="restore it"):
        device_id(tmp_path)
    assert (tmp_path / "device_id").read_bytes() == content
