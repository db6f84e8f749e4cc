"""Whether a toolchain works here, and why not: probed in a process of its own, within a time limit.

Reads and explains; mends nothing. The probe itself is ``programs/probe.py``, run by the toolchain's interpreter.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from penstock.errors import PenstockError
from penstock.process.exit_status import status_words
from penstock.toolchain import child_process, gpu, locations, lock
from penstock.toolchain.call import environment
from penstock.toolchain.definitions import Toolchain, find
from penstock.toolchain.install import refuse_if_impossible

_PROBE = Path(__file__).parent / "programs" / "probe.py"
_PROBE_TIMEOUT_S = 240.0  # the first import of transformers and torch from a cold disk takes a minute
_MAX_PROBE_BYTES = 1024 * 1024


Verdict = Literal["works", "broken", "absent", "impossible"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What was found out about one toolchain.

    Attributes:
        verdict: ``works``; ``broken``: it is here and does not work; ``absent``: it is not here, and could be;
            ``impossible``: it is not here, and cannot be on this machine.
        state: as ``locations.Found``.
        python: its interpreter, or "".
        findings: what works, a line each.
        problems: what does not, each with what to do.
    """

    name: str
    verdict: Verdict
    state: str
    python: str
    findings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class _Line(msgspec.Struct, frozen=True):
    step: str | None = None
    ok: str | None = None
    problem: str | None = None


def diagnose(name: str, *, timeout_s: float = _PROBE_TIMEOUT_S) -> Diagnosis:
    """Look at one toolchain, and try it if it is here.

    Raises:
        InvalidInput: no such toolchain.
    """
    toolchain = find(name)
    try:
        found = locations.look(toolchain)
    except PenstockError as error:
        return Diagnosis(name=name, verdict="broken", state="explicit", python="", problems=(error.message,))
    if found.python is None:
        absent = _not_usable(toolchain, found)
        return dataclasses.replace(absent, problems=(*absent.problems, *_pair_problems(toolchain, timeout_s)))
    findings, problems = _probe(found.python, name, toolchain.imports, timeout_s)
    if found.python != Path(sys.executable):
        problems = [*problems, *_pair_problems(toolchain, timeout_s)]
    if found.state == "explicit":
        findings, problems = _compare(toolchain, found.python, findings, problems)
    if problems and found.state == "installed":
        problems = [*problems, f"if it worked before: penstock toolchain install {name} --force"]
    return Diagnosis(
        name=name,
        verdict="broken" if problems else "works",
        state=found.state,
        python=str(found.python),
        findings=tuple(findings),
        problems=tuple(problems),
    )


def _not_usable(toolchain: Toolchain, found: locations.Found) -> Diagnosis:
    advice = f"penstock toolchain install {toolchain.name}"
    locked = lock.lock_of(toolchain)
    size = locations.size_words(locked.download_bytes)
    verdict: Verdict = "absent"
    problem = f"not installed: {advice}" + (f" (downloads {size})" if size else "")
    if found.state == "outdated":
        words = "was installed for another version of Penstock" if found.stamp else "is incomplete"
        verdict, problem = "broken", f"{found.directory} {words}: {advice}"
    else:
        try:
            refuse_if_impossible(toolchain, locked)
        except PenstockError as error:
            verdict, problem = "impossible", error.message
    return Diagnosis(name=toolchain.name, verdict=verdict, state=found.state, python="", problems=(problem,))


def _pair_problems(toolchain: Toolchain, timeout_s: float) -> list[str]:
    """Say what does not fit: onnxruntime-gpu and TensorRT must fit together where onnxruntime-gpu is, in our own
    environment.
    """
    return _probe(Path(sys.executable), "pair", (), timeout_s)[1] if toolchain.name == "tensorrt" else []


def _probe(python: Path, name: str, modules: tuple[str, ...], timeout_s: float) -> tuple[list[str], list[str]]:
    """Say what works and what does not, in the probe's order; a step that never ended is where the process died."""
    output = bytearray()
    log = child_process.Log()

    def keep(chunk: bytes) -> bool:
        output.extend(chunk[: max(0, _MAX_PROBE_BYTES - len(output))])
        return False

    try:
        status = child_process.run(
            [str(python), "-I", str(_PROBE), name, *modules],  # isolated: our directory must not hide its modules
            environment=environment(os.environ),
            on_output=keep,
            on_log=log.add,
            timeout_s=timeout_s,
        )
    except PenstockError as error:
        return [], [error.message]
    findings, problems, unfinished = _read(bytes(output))
    if status is None:
        problems.append(f"{unfinished or 'starting the interpreter'} took more than {timeout_s:g} s")
    elif status != 0:
        doing = unfinished or "starting the interpreter"
        problems.append(f"{doing} ended the process: {status_words(status)}{log.tail()}")
    return findings, problems


def _read(output: bytes) -> tuple[list[str], list[str], str]:
    findings: list[str] = []
    problems: list[str] = []
    step = ""
    for line in output.splitlines():
        try:
            said = msgspec.json.decode(line, type=_Line)
        except msgspec.DecodeError:
            continue  # a library's chatter
        if said.step is not None:
            step = said.step
        elif said.problem is not None:
            problems.append(f"{step}: {_explained(said.problem)}")
            step = ""
        elif said.ok is not None:
            findings.append(f"{step}: {said.ok or 'ok'}")
            step = ""
    return findings, problems, step


def _explained(problem: str) -> str:
    """Explain TensorRT's own words for a missing driver, which tell a user nothing."""
    if "nullptr" in problem and (reason := gpu.driver_problem()) is not None:
        return reason
    return problem


def _compare(
    toolchain: Toolchain, python: Path, findings: list[str], problems: list[str]
) -> tuple[list[str], list[str]]:
    """Compare versions: an interpreter of the user's own may have other ones than those tested, which is said but no
    failure.
    """
    try:
        versions = locations.versions_in(python, tuple(toolchain.pins))
    except PenstockError as error:
        return findings, [*problems, error.message]
    other = [
        f"{package} {versions.get(package, 'missing')} instead of {pinned}, which was tested"
        for package, pinned in toolchain.pins.items()
        if lock.public_version(versions.get(package, "")) != pinned
    ]
    return [*findings, *other], problems
