"""An end without a last flush is noticed at the next start, and counted; an orderly one is not."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from edge_agent.reporting.ends import Ends, EndsFile, begun, ended


def test_each_unclean_end_adds_the_interval_that_was_in_force_then() -> None:
    first = begun(Ends(), 60.0)
    assert (first.unclean, first.max_lost_s) == (0, 0.0)
    second = begun(first, 5.0)
    assert (second.unclean, second.max_lost_s) == (1, 60.0)
    third = begun(second, 5.0)
    assert (third.unclean, third.max_lost_s) == (2, 65.0)
    assert begun(ended(third), 9.0) == Ends(unclean=2, max_lost_s=65.0, running_flush_s=9.0)


def test_an_end_that_was_not_told_is_counted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ends.json"
    with caplog.at_level(logging.WARNING):
        first = EndsFile(path, 60.0)
        first.begin()
        first.end()
        second = EndsFile(path, 60.0)
        second.begin()
        assert (second.ends.unclean, caplog.records) == (0, [])
        assert EndsFile(path, 60.0).ends.unclean == 1
    (record,) = caplog.records
    assert "without a last flush" in record.getMessage()


def test_it_is_written_once_at_a_start(tmp_path: Path) -> None:
    path = tmp_path / "ends.json"
    found = EndsFile(path, 60.0)
    found.begin()
    path.unlink()
    found.begin()
    assert not path.exists()


def test_a_disk_that_takes_no_writes_is_told_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "not yet"
    with caplog.at_level(logging.WARNING):
        found = EndsFile(directory / "ends.json", 60.0)
        found.begin()
        found.begin()
        found.end()
    assert [record.getMessage().partition(" error=")[0] for record in caplog.records] == [
        "an unclean end may go unnoticed"
    ]
    directory.mkdir()
    found.begin()
    assert EndsFile(directory / "ends.json", 60.0).ends.unclean == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"unclean": "many"}', b"\xff\x00"])
def test_a_damaged_file_says_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ends.json"
    path.write_bytes(content)
    assert EndsFile(path, 60.0).ends == Ends(running_flush_s=60.0)


def test_a_key_of_a_later_release_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "ends.json"
    path.write_bytes(b'{"unclean": 3, "max_lost_s": 180.0, "running_flush_s": 0.0, "later": 1}')
    assert EndsFile(path, 60.0).ends.unclean == 3
