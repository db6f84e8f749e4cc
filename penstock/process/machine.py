"""What this machine is, in the compiler's words: the name of its edge target, and which targets' variants it can run.

And how much of its CPUs and memory this process may use. Reads ``/proc`` and ``/sys`` at each call; imports nothing
heavy, because an agent asks at every start. Decides names only: which integer types a target gets is
``compiler.recipe.targets``.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from penstock.errors import InvalidInput
from penstock.process.config import nearest

X86_VNNI, X86, ARM64, ANY = "x86-64-vnni", "x86-64", "arm64", "any"
CUDA, OPENVINO, QNN, COREML, XNNPACK = "cuda", "openvino", "qnn", "coreml", "xnnpack"
"""Named after what computes there. No machine is taken for one of these by itself: its agent's settings say it."""

_RUNNABLE: Mapping[str, tuple[str, ...]] = {
    # a model for x86 without VNNI has weights of reduced range: right on every x86, only less precise
    X86_VNNI: (X86_VNNI, X86, ANY),
    # never the other way round: u8s8 products saturate without VNNI, and answers go wrong silently
    X86: (X86, ANY),
    ARM64: (ARM64, ANY),
    ANY: (ANY,),
    CUDA: (CUDA, ANY),
    OPENVINO: (OPENVINO, X86, ANY),  # Intel's processors and GPUs
    QNN: (QNN, ARM64, ANY),
    COREML: (COREML, ARM64, ANY),
    XNNPACK: (XNNPACK, ANY),
}
EDGE_TARGETS: tuple[str, ...] = tuple(_RUNNABLE)

_VNNI_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
_FIRST_RUN_SHARE = 0.8
_X86_NAMES = frozenset({"x86_64", "amd64"})
_ARM_NAMES = frozenset({"aarch64", "arm64"})


def edge_target() -> str:
    """Return the target of this machine: the first word of :func:`runnable_targets` for it."""
    return target_of(platform.machine(), _cpu_flags(Path("/proc/cpuinfo")))


def target_of(architecture: str, flags: frozenset[str]) -> str:
    """Return the target of a machine from ``platform.machine()`` and the flags in its ``/proc/cpuinfo``."""
    if architecture.lower() in _X86_NAMES:
        return X86_VNNI if flags & _VNNI_FLAGS else X86
    return ARM64 if architecture.lower() in _ARM_NAMES else ANY


def runnable_targets(target: str) -> tuple[str, ...]:
    """Return targets whose variants run correctly on a machine of ``target``, the best first.

    Raises:
        InvalidInput: no such target.
    """
    try:
        return _RUNNABLE[target]
    except KeyError:
        raise InvalidInput(f"target: unknown target {target!r}; {nearest(target, _RUNNABLE)}", field="target") from None


def boot_id(path: Path) -> str:
    """Return what the kernel calls this run of the machine; "" where it does not say."""
    try:
        return path.read_text().strip()[:64]
    except (OSError, UnicodeDecodeError):
        return ""


_SERIALS = (Path("/sys/firmware/devicetree/base/serial-number"), Path("/sys/class/dmi/id/product_uuid"))


def serial_number(paths: tuple[Path, ...] = _SERIALS) -> str:
    """Return the serial number of the board or the virtual machine; "" where none is told, or not to this user."""
    for path in paths:
        try:
            found = path.read_bytes()[:256].decode("ascii", "replace").strip("\0 \n")
        except OSError:
            continue
        if found:
            return found
    return ""


def processor_name() -> str:
    """Return what the processor calls itself, for people; the architecture where it says nothing."""
    return _cpuinfo(Path("/proc/cpuinfo"), "model name") or platform.machine() or "unknown"


def usable_cpus(root: Path = Path("/")) -> int:
    """Count the CPUs that this process may use: those it may run on, or fewer where its control group has a quota.

    A quota of one and a half counts as two: a thread more than fits waits now and then, one fewer leaves half a CPU
    idle for good. Control groups of both versions; without any, the affinity alone.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for quota in map(_quota, _group_directories(root)) if quota is not None]
    return max(1, min([allowed, *(math.ceil(quota) for quota in quotas)]))


def usable_memory_bytes(root: Path = Path("/")) -> int:
    """Count the memory that this process may use: the machine's, or less where its control group has a limit."""
    total_bytes = _memory_total(root / "proc/meminfo")
    limits = [limit for limit in map(_memory_limit, _group_directories(root, "memory")) if limit is not None]
    return min([total_bytes, *limits])


def first_run_bytes() -> int:
    """Count the memory that a model may take that runs for the first time: four fifths of what is free."""
    return int(_FIRST_RUN_SHARE * available_memory_bytes())


def available_memory_bytes(root: Path = Path("/")) -> int:
    """Count the memory that is free for programs now: what the kernel says, or less where the control group has a
    limit.
    """
    return min(_memory_total(root / "proc/meminfo", "MemAvailable"), usable_memory_bytes(root))


def _memory_total(path: Path, what: str = "MemTotal") -> int:
    words = _cpuinfo(path, what).split()
    if words and words[0].isdigit():
        return int(words[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _memory_limit(group: Path) -> int | None:
    """Read the bytes that a control group may have; None where it says nothing, or "as many as there are"."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        try:
            text = (group / name).read_text().strip()
        except (OSError, UnicodeDecodeError):
            continue
        return int(text) if text.isdigit() else None
    return None


def _group_directories(root: Path, wanted: str = "cpu") -> list[Path]:
    """List the directories of this process's control group and of those around it: each may have a limit."""
    mounts = {"": root / "sys/fs/cgroup", wanted: root / "sys/fs/cgroup" / wanted}
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return list(mounts.values())
    directories = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        mount = mounts.get(wanted if wanted in controllers.split(",") else controllers)
        if mount is not None:
            # in a container the path is often the host's, and the container's own group is mounted at the top
            inner = [mount / part.strip("/") for part in (path, *map(str, Path(path).parents))]
            directories += [*inner, mount]
    return directories


def _quota(group: Path) -> float | None:
    """Read the CPUs that a control group may use; None where it says nothing or "as many as there are"."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        return int(quota) / int(period) if quota not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def resident_bytes(pid: int | None = None) -> int:
    """Return how much memory of the machine a process holds now, this one by default; 0 where nobody says."""
    try:
        pages = int(Path(f"/proc/{'self' if pid is None else pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _cpu_flags(path: Path) -> frozenset[str]:
    """Read the flags of the first processor; empty where the system has no such file, which then means the careful
    choice.
    """
    return frozenset(_cpuinfo(path, "flags").split())


def _cpuinfo(path: Path, wanted: str) -> str:
    """Read the first processor's value of that name, or ""."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == wanted:
                    return value.strip()
    except OSError:
        pass
    return ""
