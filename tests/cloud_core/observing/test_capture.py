from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from cloud_core.observing.capture import Capture
from cloud_core.observing.finished import Finished
from cloud_core.observing.settings import CaptureSettings
from penstock.errors import StorageError
from penstock.wire.inference import InferRequest, InferResponse

AT = datetime(2026, 11, 30, 12, 0, 0, 0, UTC)


def request_of(*rows: list[float], text: bytes = b"", **changes: Any) -> Finished:
    x = np.array(rows, np.float32)
    inputs: dict[str, Any] = {"x": x}
    if text:
        inputs["text"] = np.array([[text]] * len(rows), dtype=object)
    values: dict[str, Any] = {
        "code": "ok", "model": "mail/spam", "version": "v1", "tenant": "shop", "rows": len(rows), "started_at": 0.0,
        "request": InferRequest(model="mail/spam", inputs=inputs),
        "response": InferResponse(model="mail/spam", outputs={"label": x[:, 0].astype(np.int64)}),
    }  # fmt: skip
    return Finished(**values | changes)


def capture_of(directory: Path, draw: float = 0.0, **settings: Any) -> Capture:
    values = {"directory": str(directory), "share": 1.0, **settings}
    return Capture(CaptureSettings(**values), draw=lambda: draw, at=lambda: AT)


def files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


def sizes(directory: Path) -> int:
    return sum(path.stat().st_size for path in files(directory))


def age(directory: Path, seconds: float) -> None:
    for path in files(directory):
        os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def rows_of(directory: Path) -> list[dict[str, Any]]:
    return [row for path in files(directory) for row in parquet.read_table(path).to_pylist()]


async def test_each_row_is_a_row_with_who_asked_and_what_was_answered(tmp_path: Path) -> None:
    capture = capture_of(tmp_path / "kept")
    capture.finished(request_of([1.0, 2.0], [3.0, 4.0], text=b"hello"))
    capture.finished(request_of([5.0, 6.0], text=b"bye", code="internal", response=None))
    await capture.flush()
    first, second, third = rows_of(tmp_path / "kept")
    assert (first["model"], first["tenant"], first["code"], first["at"], first["row"]) == (
        "mail/spam", "shop", "ok", AT, 0,
    )  # fmt: skip
    assert (first["input.x"], first["input.text"], first["output.label"]) == ([1.0, 2.0], [b"hello"], [1])
    assert (second["row"], second["input.x"], second["output.label"]) == (1, [3.0, 4.0], [3])
    assert (third["code"], third["output.label"]) == ("internal", None)


async def test_files_are_for_their_owner_and_nothing_is_left_half_written(tmp_path: Path) -> None:
    capture = capture_of(tmp_path / "kept")
    capture.finished(request_of([1.0]))
    await capture.flush()
    await capture.flush()  # nothing waits: no file
    (path,) = files(tmp_path / "kept")
    assert (path.stat().st_mode & 0o777, (tmp_path / "kept").stat().st_mode & 0o777) == (0o600, 0o700)
    assert path.name.startswith("mail_spam-v1-20261130T120000")


async def test_what_must_not_be_kept_is_not(tmp_path: Path) -> None:
    capture = capture_of(tmp_path, drop=("mail/spam/x",), hash=("*/text",))
    capture.finished(request_of([1.0], text=b"an@b.c"))
    await capture.flush()
    (row,) = rows_of(tmp_path)
    assert "input.x" not in row
    assert len(row["input.text"][0]) == 32
    assert b"an@b.c" not in files(tmp_path)[0].read_bytes()


async def test_only_what_is_drawn_is_kept_and_a_request_without_rows_is_not(tmp_path: Path) -> None:
    capture = capture_of(tmp_path, draw=0.5, share=0.5)
    capture.finished(request_of([1.0]))
    everything = capture_of(tmp_path)
    everything.finished(Finished(code="unauthenticated", started_at=0.0))
    for one in (capture, everything):
        await one.flush()
    assert rows_of(tmp_path) == []


async def test_what_waits_and_what_is_on_disk_is_bounded(tmp_path: Path) -> None:
    capture = capture_of(tmp_path, max_waiting_bytes=10_000, max_bytes=1 << 20)
    for _ in range(30):
        capture.finished(request_of([1.0]))
    assert 0 < capture.dropped < 30
    await capture.flush()
    size = sizes(tmp_path)
    small = capture_of(tmp_path, max_bytes=2 * size)
    for number in range(4):
        age(tmp_path, 10.0)
        small.finished(request_of([float(number)]))
        await small.flush()
    assert sizes(tmp_path) <= 2 * size
    assert rows_of(tmp_path)[-1]["input.x"] == [3.0]


async def test_a_file_that_is_too_old_goes(tmp_path: Path) -> None:
    capture = capture_of(tmp_path, keep_s=100.0)
    capture.finished(request_of([1.0]))
    await capture.flush()
    assert len(files(tmp_path)) == 1
    age(tmp_path, 101.0)
    await capture.flush()
    assert files(tmp_path) == []


async def test_a_disk_that_says_no_costs_the_requests_that_were_kept_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    capture = capture_of(tmp_path / "kept")
    (tmp_path / "kept").rmdir()
    capture.finished(request_of([1.0]))
    await capture.flush()
    assert capture.dropped == 1
    assert [record.getMessage() for record in caplog.records] == ["captured requests are lost"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        capture_of(tmp_path / "file" / "kept")
