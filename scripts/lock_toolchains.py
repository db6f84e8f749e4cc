"""Make penstock/toolchain/locks/*.txt from the table of toolchains: every package, exact versions, hashes, sizes.

pip resolves a toolchain's top packages with the user's own configuration. Then it is asked, for each environment that
we support, which file it would install of each package; their hashes go into the lock. A package that another
environment needs (``setuptools`` from Python 3.12 on, say) is found in the metadata and joins every environment. Last,
the lock is installed into a scratch directory, which proves it and tells its sizes. Takes about a minute a toolchain.

``scripts/torch_cpu_wheels.json`` keeps the hashes of PyTorch's CPU builds, which are on an index of their own; it is
brought up to date whenever that index can be reached.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from penstock.toolchain import lock
from penstock.toolchain.definitions import TOOLCHAINS, Toolchain, find
from penstock.toolchain.pip import TORCH_CPU_INDEX

TORCH_WHEELS = Path(__file__).with_name("torch_cpu_wheels.json")
_PYTHONS = ("3.11", "3.12", "3.13", "3.14")
_GLIBC_MINORS = (31, 28, 27, 26, 24, 17, 12, 5)
_MAX_ROUNDS = 5
_INDEX_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """An interpreter on a platform: what pip is asked about, and what markers are evaluated with."""

    python: str
    system: str
    machine: str
    glibc_minor: int = 28

    @property
    def tag(self) -> str:
        return f"cp{self.python.replace('.', '')}-{self.system}-{self.machine}"

    @property
    def platforms(self) -> list[str]:
        if self.system == "macos":
            return [f"macosx_14_0_{self.machine}"]
        legacy = ["manylinux2014", "manylinux2010", "manylinux1"] if self.machine == "x86_64" else ["manylinux2014"]
        minors = [minor for minor in _GLIBC_MINORS if minor <= self.glibc_minor]
        names = [f"manylinux_2_{minor}" for minor in minors] + legacy
        return [f"{name}_{self.machine}" for name in names]

    @property
    def markers(self) -> dict[str, str]:
        is_mac = self.system == "macos"
        return {
            "python_version": self.python,
            "python_full_version": f"{self.python}.0",
            "sys_platform": "darwin" if is_mac else "linux",
            "platform_system": "Darwin" if is_mac else "Linux",
            "platform_machine": self.machine,
            "os_name": "posix",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "extra": "",
        }


ENVIRONMENTS = tuple(
    Environment(python=python, system=system, machine=machine)
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("macos", "arm64"))
    for python in _PYTHONS
)


@dataclass(slots=True)
class Resolution:
    """A toolchain's packages: name to version; and for each environment that has them all, name to hash."""

    versions: dict[str, str]
    hashes: dict[Environment, dict[str, str]] = field(default_factory=dict)
    unmet: set[str] = field(default_factory=set)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"toolchains to lock; all by default: {', '.join(TOOLCHAINS)}")
    names = parser.parse_args().names or list(TOOLCHAINS)
    _refresh_torch_wheels()
    for name in names:
        toolchain = find(name)
        path = lock.LOCKS / f"{name}.txt"
        if toolchain.needs_gpu:
            path.write_text(_unlocked(toolchain), encoding="utf-8")
        else:
            resolution = _complete(toolchain)
            path.write_text(_lock_text(toolchain, resolution, {}), encoding="utf-8")
            path.write_text(_lock_text(toolchain, resolution, _measured(path)), encoding="utf-8")
        print(f"{name}: {len(lock.read(path).packages)} packages, {len(lock.read(path).environments)} environments")


# --- asking pip --------------------------------------------------------------------------------------------------


def _pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)


def _report(requirements: Sequence[str], *arguments: str) -> list[dict[str, Any]]:
    """Ask pip what it would install.

    Raises:
        RuntimeError: it would install nothing; the message holds its errors.
    """
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report), *arguments]
        done = _pip(*command, *requirements)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise RuntimeError("; ".join(errors) or done.stderr[-500:])
        found: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["install"]
        return found


def _name(item: Mapping[str, Any]) -> str:
    return str(canonicalize_name(item["metadata"]["name"]))


def _complete(toolchain: Toolchain) -> Resolution:
    """Resolve, look at every environment, and add what one of them lacks, until none does."""
    roots = [_with_cpu_build(requirement) for requirement in toolchain.requirements]
    for _ in range(_MAX_ROUNDS):
        resolution = _resolve(roots, toolchain)
        if not resolution.unmet:
            return resolution
        print(f"{toolchain.name}: further packages for other environments: {', '.join(sorted(resolution.unmet))}")
        roots += sorted(resolution.unmet)
    raise RuntimeError(f"{toolchain.name}: no complete set of packages within {_MAX_ROUNDS} rounds")


def _resolve(roots: Sequence[str], toolchain: Toolchain) -> Resolution:
    left_out = toolchain.left_out
    alone: list[dict[str, Any]] = []
    if left_out:  # pip knows no way to leave something out: it is asked for what the first one needs, in its place
        first, *others = roots
        alone = _report([first], "--no-deps")
        roots = [*others, *_needs_here(alone[0]["metadata"].get("requires_dist", []), left_out)]
    try:
        items = _report(roots)
    except RuntimeError:
        items = _report(roots, "--extra-index-url", TORCH_CPU_INDEX)
    items += alone
    needs = {
        _name(item): [line for line in item["metadata"].get("requires_dist", []) if _named(line) not in left_out]
        for item in items
    }
    extras = {_name(item): set(item.get("requested_extras", [])) for item in items}
    resolution = Resolution({_name(item): item["metadata"]["version"] for item in items})
    for usual in ENVIRONMENTS:
        environment = replace(usual, glibc_minor=toolchain.glibc_minor)
        try:
            hashes = _hashes(resolution.versions, environment)
        except RuntimeError as error:
            print(f"  {environment.tag}: not covered: {error}")
            continue
        resolution.hashes[environment] = hashes
        resolution.unmet |= set(_unmet(needs, extras, resolution.versions, environment))
    return resolution


def _needs_here(lines: Sequence[str], left_out: Collection[str]) -> list[str]:
    """Return requirements that hold on this machine, but for those that are left out."""
    wanted = [line for line in lines if _named(line) not in left_out]
    held = [one for one in map(Requirement, wanted) if one.marker is None or one.marker.evaluate({"extra": ""})]
    for one in held:
        one.marker = None
    return [str(one) for one in held]


def _named(line: str) -> str:
    return str(canonicalize_name(Requirement(line).name))


def _hashes(versions: Mapping[str, str], environment: Environment) -> dict[str, str]:
    """Hash of the file that pip would install there, by package."""
    has_torch = "torch" in versions
    pins = [f"{name}=={version}" for name, version in versions.items() if name != "torch"]
    if has_torch and environment.system == "macos":
        pins.append(f"torch=={lock.public_version(versions['torch'])}")
    platforms = [word for name in environment.platforms for word in ("--platform", name)]
    with tempfile.TemporaryDirectory() as target:
        items = _report(
            pins, "--no-deps", "--only-binary", ":all:", "--python-version", environment.python, *platforms,
            "--target", target,
        )  # fmt: skip
    found: dict[str, str] = {_name(item): item["download_info"]["archive_info"]["hashes"]["sha256"] for item in items}
    if has_torch and environment.system != "macos":
        found["torch"] = _torch_hash(versions["torch"], environment)
    return found


def _unmet(
    needs: Mapping[str, Sequence[str]],
    extras: Mapping[str, set[str]],
    versions: Mapping[str, str],
    environment: Environment,
) -> Iterator[str]:
    """Return requirements that hold in the environment and that no package of the set satisfies."""
    for name, lines in needs.items():
        for requirement in map(Requirement, lines):
            wanted = {"", *extras[name]}
            markers = environment.markers
            holds = requirement.marker is None or any(
                requirement.marker.evaluate({**markers, "extra": extra}) for extra in wanted
            )
            version = versions.get(canonicalize_name(requirement.name))
            if holds and (version is None or not requirement.specifier.contains(version, prereleases=True)):
                yield f"{requirement.name}{requirement.specifier}"


# --- PyTorch's CPU builds ----------------------------------------------------------------------------------------


def _with_cpu_build(requirement: str) -> str:
    """Take PyTorch's CPU build on Linux, where PyPI's brings gigabytes of CUDA; macOS has one build for everything."""
    return f"{requirement}+cpu" if requirement.startswith("torch==") and sys.platform != "darwin" else requirement


def _torch_hash(version: str, environment: Environment) -> str:
    for name, digest in json.loads(TORCH_WHEELS.read_text(encoding="utf-8")).items():
        _, found, _, tags = parse_wheel_filename(name)
        interpreter = f"cp{environment.python.replace('.', '')}"
        if str(found) == version and any(
            tag.interpreter == tag.abi == interpreter and tag.platform in environment.platforms for tag in tags
        ):
            return str(digest)
    raise RuntimeError(f"no hash of torch {version} is known")


def _refresh_torch_wheels() -> None:
    """Read names and hashes as the index lists them; what is known stays when it cannot be reached."""
    version = lock.public_version(TOOLCHAINS["torch"].pins["torch"])
    try:
        with urllib.request.urlopen(f"{TORCH_CPU_INDEX}/torch/", timeout=_INDEX_TIMEOUT_S) as answer:
            page = answer.read().decode("utf-8")
    except (urllib.error.URLError, OSError) as error:
        print(f"{TORCH_CPU_INDEX} is out of reach ({error}); using the hashes in {TORCH_WHEELS.name}")
        return
    pattern = re.compile(
        rf"(torch-{re.escape(version)}%2Bcpu-cp3\d+-cp3\d+-manylinux[\w.]+\.whl)#sha256=([0-9a-f]{{64}})"
    )
    wheels = {name.replace("%2B", "+"): digest for name, digest in pattern.findall(page)}
    if wheels:
        TORCH_WHEELS.write_text(json.dumps(wheels, indent=2, sort_keys=True) + "\n", encoding="utf-8")


# --- the file ----------------------------------------------------------------------------------------------------


def _lock_text(toolchain: Toolchain, resolution: Resolution, sizes: Mapping[str, int]) -> str:
    covered = [environment.tag for environment in resolution.hashes]
    lines = [
        f"# Locked packages of toolchain {toolchain.name}, made by scripts/lock_toolchains.py; do not edit.",
        f"# environments: {' '.join(covered)}",
        *(f"# {name}: {value}" for name, value in sizes.items()),
    ]
    # torch first: where an index lacks its CPU build, pip says so before it has fetched anything else
    for name in sorted(resolution.versions, key=lambda name: (name != "torch", name)):
        lines += _entry(name, resolution)
    return "\n".join(lines) + "\n"


def _entry(name: str, resolution: Resolution) -> Iterator[str]:
    version = resolution.versions[name]
    groups: dict[str, set[str]] = {}
    for environment, hashes in resolution.hashes.items():
        pin = f"{name}=={version}"
        if name == "torch":
            is_mac = environment.system == "macos"
            pin = f"torch=={lock.public_version(version)}"
            pin += ' ; sys_platform == "darwin"' if is_mac else '+cpu ; sys_platform != "darwin"'
        groups.setdefault(pin, set()).add(hashes[name])
    for pin, digests in groups.items():
        yield " \\\n".join([pin, *(f"    --hash=sha256:{digest}" for digest in sorted(digests))])


def _unlocked(toolchain: Toolchain) -> str:
    return "\n".join(
        [
            f"# Top package of toolchain {toolchain.name}, made by scripts/lock_toolchains.py; do not edit.",
            "# hashes: none; the package is a stub that downloads its libraries from NVIDIA's own index",
            *toolchain.requirements,
            "",
        ]
    )


def _measured(path: Path) -> dict[str, int]:
    """Download and install the lock here; what that took. In bytes, rounded up to megabytes."""
    with tempfile.TemporaryDirectory() as scratch:
        wheels, target = Path(scratch) / "wheels", Path(scratch) / "target"
        for command in (
            ["download", "--quiet", "--no-deps", "--require-hashes", "--dest", str(wheels), "-r", str(path)],
            ["install", "--quiet", "--no-deps", "--require-hashes", "--no-index", "--no-compile",
             "--find-links", str(wheels), "--target", str(target), "-r", str(path)],
        ):  # fmt: skip
            done = _pip(*command)
            if done.returncode:
                raise RuntimeError(f"{path.name} does not install here: {done.stderr[-1000:]}")
        return {"download-bytes": _size_bytes(wheels), "disk-bytes": _size_bytes(target)}


def _size_bytes(directory: Path) -> int:
    total = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    return -(-total // 1_000_000) * 1_000_000


if __name__ == "__main__":
    main()
