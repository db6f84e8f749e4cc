"""A core on a disk without a byte left: it starts, serves what it has, and says what it cannot do."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from cloud_core.commands.core import command
from penstock.errors import StorageError
from penstock.registry.transfer import RegistryClient, push
from tests.cloud_core.rig import onnx_layout
from tests.waiting import PATIENCE_S, wait_until

DISK_BYTES = 4 * 1024 * 1024


@dataclass
class Serving:
    """One ``penstock core serve``, whose addresses are read from its log: endpoints.json may be missing."""

    process: subprocess.Popen[bytes]
    copier: subprocess.Popen[bytes]
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def url(self) -> str:
        def ready() -> bool:
            assert self.process.poll() is None, self.log
            return " ready http=" in self.log

        wait_until("ready", ready)
        return "http://" + self.log.partition(" ready http=")[2].split()[0]

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self.copier.wait(PATIENCE_S)
        return code


def serve(data_dir: Path, log_file: Path, *, may_write: bool = True) -> Serving:
    """Start a core; one that may not write gets EFBIG for every byte, as a limit on the size of files says it."""
    command = [sys.executable, "-m", "penstock", "core", "serve", "--data-dir", str(data_dir)]
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [*command, "--http-port", "0", "--grpc-port", "0"],
        stderr=write_end,
        preexec_fn=None if may_write else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )
    os.close(write_end)
    # a process that may not write cannot write its log into a file either; cat has no such limit
    with log_file.open("wb") as target:
        copier = subprocess.Popen(["cat"], stdin=read_end, stdout=target)
    os.close(read_end)
    return Serving(process, copier, log_file)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that a test can fill."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(where)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system takes the rights of root")
    yield where
    subprocess.run(["umount", "--lazy", str(where)], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    assert os.statvfs(disk).f_bavail == 0


def is_served(url: str) -> bool:
    with urllib.request.urlopen(f"{url}/v2/models/mlp/ready", timeout=PATIENCE_S) as response:
        return bool(response.status == 200)


def pushed(data_dir: Path, tmp_path: Path, ends_by: int) -> None:
    core = serve(data_dir, tmp_path / "first.log")
    with RegistryClient(core.url) as client:
        push(client, onnx_layout(tmp_path, "v1"))
    core.end(ends_by)


@pytest.mark.parametrize("ends_by", [signal.SIGTERM, signal.SIGKILL])
def test_a_core_starts_and_serves_with_no_byte_free(small_disk: Path, tmp_path: Path, ends_by: int) -> None:
    data_dir = small_disk / "core"
    pushed(data_dir, tmp_path, ends_by)
    left_over = data_dir / "registry" / "blobs" / "sha256" / ("a" * 64)
    left_over.write_bytes(b"x" * 512 * 1024)
    (data_dir / "endpoints.json").unlink(missing_ok=True)  # no page comes free at the start
    fill(small_disk)
    core = serve(data_dir, tmp_path / "full.log")
    try:
        assert is_served(core.url)
        assert "endpoints not written" in core.log
        with RegistryClient(core.url) as client, pytest.raises(StorageError, match="free some space"):
            push(client, onnx_layout(tmp_path, "v2", seed=2))
        assert is_served(core.url)
        os.utime(left_over, (0, 0))
        freed = CliRunner().invoke(command, ["gc", "--core", core.url])
        assert "1 blob, 524 kB" in freed.output
        with RegistryClient(core.url) as client:
            push(client, onnx_layout(tmp_path, "v2", seed=2))
    finally:
        code = core.end(signal.SIGTERM)
    assert code == 0, core.log
    again = serve(data_dir, tmp_path / "again.log")
    with urllib.request.urlopen(f"{again.url}/v2/mlp/tags/list", timeout=PATIENCE_S) as response:
        assert json.load(response)["tags"] == ["v1", "v2"], "what was pushed into the freed space is kept"
    again.end(signal.SIGTERM)


@pytest.mark.parametrize("ends_by", [signal.SIGTERM, signal.SIGKILL])
def test_a_core_that_may_write_nothing_at_all_serves_what_it_has(tmp_path: Path, ends_by: int) -> None:
    data_dir = tmp_path / "core"
    pushed(data_dir, tmp_path, ends_by)
    core = serve(data_dir, tmp_path / "full.log", may_write=False)
    try:
        assert is_served(core.url)
        assert "endpoints not written" in core.log
    finally:
        code = core.end(signal.SIGTERM)
    assert code == 0, core.log
