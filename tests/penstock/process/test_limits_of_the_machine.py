"""CPUs and memory that a process may use: affinity, and control groups of either version, in containers and outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.process import machine
from penstock.process.machine import usable_cpus, usable_memory_bytes


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (
            {"proc/self/cgroup": "0::/system.slice/a.service\n", "sys/fs/cgroup/system.slice/cpu.max": "300000 100000"},
            3,
        ),
        ({"proc/self/cgroup": "0::/docker/1f\n", "sys/fs/cgroup/cpu.max": "400000 100000"}, 4),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/kube/pod\n0::/\n",
                "sys/fs/cgroup/cpu/kube/pod/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu/kube/pod/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
        ({"proc/self/cgroup": "not a line\n0::/\n", "sys/fs/cgroup/cpu.max": "garbage"}, 8),
    ],
)
def test_the_smallest_limit_counts(tmp_path: Path, files: dict[str, str], cpus: int) -> None:
    assert usable_cpus(written(tmp_path, files)) == cpus


def test_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: {3})
    assert usable_cpus(tmp_path) == 1


_TOTAL = {"proc/meminfo": "MemTotal:        8388608 kB\nMemFree: 1 kB\n"}


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        ({}, 8),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 8),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": f"{2 << 30}\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{64 << 30}\n"}, 8),
        (
            {"proc/self/cgroup": "9:memory:/pod\n0::/\n",
             "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": f"{1 << 30}\n"},
            1,
        ),
        (
            {"proc/self/cgroup": "9:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{(1 << 63) - 4096}\n"},
            8,
        ),
    ],
)  # fmt: skip
def test_memory_is_the_machines_or_the_smallest_limit(tmp_path: Path, files: dict[str, str], gib: int) -> None:
    assert usable_memory_bytes(written(tmp_path, {**_TOTAL, **files})) == gib << 30
