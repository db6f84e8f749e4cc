"""Calling a runner: its answers, its failures, and that nothing of it is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from penstock import toolchain
from penstock.errors import CompileError, ConfigError, Internal, InvalidInput, MissingToolchain, StorageError
from penstock.toolchain import child_process, gpu
from penstock.toolchain.call import environment
from tests.waiting import PATIENCE_S, wait_until

RUNNER = Path(__file__).with_name("echo_runner.py")

Call = Callable[..., dict[str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Call:
    """``run(do="hang", ...)`` calls the echo runner, in the interpreter of the tests."""
    monkeypatch.setenv("PENSTOCK_TOOLCHAIN_TORCH", sys.executable)

    def call(timeout_s: float = PATIENCE_S, progress: Any = None, **job: Any) -> dict[str, Any]:
        return toolchain.call("torch", RUNNER, job, progress=progress, timeout_s=timeout_s)

    return call


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def pids_in(file: Path) -> list[int]:
    wait_until("two processes", lambda: file.exists() and len(file.read_text(encoding="utf-8").split()) == 2)
    return [int(pid) for pid in file.read_text(encoding="utf-8").split()]


def test_the_result_is_what_the_runner_returned(run: Call) -> None:
    assert run(number=1.5, nested={"a": [1, None, "ü"]}) == {"job": {"number": 1.5, "nested": {"a": [1, None, "ü"]}}}


def test_a_path_in_a_job_is_absolute(run: Call) -> None:
    assert run(source=Path("model.onnx"))["job"]["source"] == str(Path.cwd() / "model.onnx")


def test_a_job_that_is_no_json_is_refused_before_anything_runs(run: Call) -> None:
    with pytest.raises(TypeError, match="plain JSON"):
        run(value=object())


def test_progress_arrives_in_order_and_between_nought_and_one(run: Call) -> None:
    seen: list[tuple[float, str]] = []
    run(progress=lambda share, note: seen.append((share, note)), steps=[[0.25, "a"], [7, "b" * 1000], [-1, ""]])
    assert seen == [(0.25, "a"), (1.0, "b" * 200), (0.0, "")]


def test_chatter_on_stdout_does_not_disturb(run: Call) -> None:
    assert run(chatter=True)["job"] == {"chatter": True}


def test_an_input_error_is_passed_on_in_its_own_words(run: Call) -> None:
    with pytest.raises(CompileError) as caught:
        run(do="input-error")
    assert caught.value.message == "epochs: expected at least 1"


def test_a_failure_says_where_and_what_without_a_traceback(run: Call) -> None:
    with pytest.raises(CompileError) as caught:
        run(do="fail", warn="the library warned")
    assert caught.value.message.startswith(
        "echo_runner (toolchain torch) failed: RuntimeError: the library gave up\n  | the library warned"
    )
    assert "Traceback" not in caught.value.message


def test_a_library_that_exits_is_a_failure(run: Call) -> None:
    with pytest.raises(CompileError, match="SystemExit: 3"):
        run(do="exit")


def test_a_result_that_is_no_json_is_a_failure(run: Call) -> None:
    with pytest.raises(CompileError, match="not JSON compliant"):
        run(do="nan")


@pytest.mark.parametrize(("how", "words"), [("die", "killed by SIGSEGV"), ("leave", "exit status 9")])
def test_a_crash_is_told_with_the_end_of_the_log(run: Call, how: str, words: str) -> None:
    with pytest.raises(Internal) as caught:
        run(do=how)
    assert caught.value.message == f"echo_runner (toolchain torch) ended without a result: {words}\n  | last words"


def test_a_runner_that_hangs_is_killed_with_its_children(
    run: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited_s = [0.0]
    monkeypatch.setattr(child_process, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + waited_s[0]))

    def it_hangs(share: float, note: str) -> None:
        waited_s[0] = 600.0

    with pytest.raises(CompileError, match="did not finish within 600 s and was stopped"):
        run(do="hang", pid_file=str(tmp_path / "pids"), ready=True, timeout_s=600.0, progress=it_hangs)
    wait_until("the end of all", lambda: not any(map(is_alive, pids_in(tmp_path / "pids"))))


def test_the_log_that_is_kept_is_bounded(run: Call) -> None:
    with pytest.raises(CompileError) as caught:
        run(do="fail", log_lines=50_000)
    assert len(caught.value.message) < 12 * 400
    log = child_process.Log()
    for _ in range(100):
        log.add(b"x" * 10_000)
    assert len(log.data) == child_process.MAX_LOG_BYTES


def test_a_large_result_in_one_line_arrives(run: Call) -> None:
    assert len(run(do="long-line", chars=3_000_000)["text"]) == 3_000_000


def test_a_line_beyond_the_limit_ends_the_runner(run: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["penstock.toolchain.call"], "MAX_LINE_BYTES", 100_000)
    with pytest.raises(Internal, match="more than 100000 bytes"):
        run(do="long-line", chars=3_000_000)


def test_a_child_left_in_the_background_does_not_hold_the_call_up(run: Call, tmp_path: Path) -> None:
    assert run(do="background", pid_file=str(tmp_path / "pids"))["job"]["do"] == "background"
    wait_until("the end of all", lambda: not any(map(is_alive, pids_in(tmp_path / "pids"))))


def test_what_progress_raises_ends_the_runner(run: Call, tmp_path: Path) -> None:
    def interrupt(share: float, note: str) -> None:
        if note == "ready":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(progress=interrupt, do="hang", pid_file=str(tmp_path / "pids"), ready=True)
    wait_until("the end of all", lambda: not any(map(is_alive, pids_in(tmp_path / "pids"))))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill -9"])
def test_nothing_survives_the_caller(number: signal.Signals, tmp_path: Path) -> None:
    pid_file = tmp_path / "pids"
    program = (
        "from pathlib import Path\nfrom penstock import toolchain\n"
        f"toolchain.call('torch', Path({str(RUNNER)!r}), {{'do': 'hang', 'pid_file': {str(pid_file)!r}}})"
    )
    caller = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PENSTOCK_TOOLCHAIN_TORCH": sys.executable},
        stderr=subprocess.PIPE,
    )
    with caller:
        runner, child = pids_in(pid_file)
        caller.send_signal(number)
        caller.wait(timeout=PATIENCE_S)
    wait_until("the end of a process", lambda: not is_alive(runner))
    if number == signal.SIGKILL:  # what the runner had started is its own affair then
        os.kill(child, signal.SIGKILL)
    wait_until("the end of a process", lambda: not is_alive(child))


def test_the_environment_is_offline_and_free_of_ours(run: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("VIRTUAL_ENV", "/nowhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = run(do="environment")
    inside = found["environment"]
    assert "/nowhere" not in {*inside.values(), *found["path"]}
    assert inside["HF_HUB_OFFLINE"] == inside["HF_HUB_DISABLE_TELEMETRY"] == inside["DO_NOT_TRACK"] == "1"
    assert inside["PYTHONHASHSEED"] == "0"
    assert inside["OMP_NUM_THREADS"] == "3"
    assert found["cwd"] == str(Path.cwd())


def test_threads_are_bounded_by_the_processors_that_may_be_used() -> None:
    assert environment({})["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))


def test_an_unknown_toolchain_names_the_nearest() -> None:
    with pytest.raises(InvalidInput, match="did you mean 'torch'"):
        toolchain.call("troch", RUNNER, {})


def test_a_missing_toolchain_says_what_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PENSTOCK_TOOLCHAIN_TORCH", raising=False)
    monkeypatch.setenv("PENSTOCK_TOOLCHAINS", str(tmp_path))
    with pytest.raises(MissingToolchain, match=r"not installed: penstock toolchain install torch \(downloads \d+ MB\)"):
        toolchain.call("torch", RUNNER, {})


def test_what_needs_a_gpu_says_so_instead_of_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PENSTOCK_TOOLCHAINS", str(tmp_path))
    monkeypatch.setattr(gpu, "driver_problem", lambda: "no NVIDIA driver")
    with pytest.raises(MissingToolchain, match="^toolchain tensorrt cannot be used here: no NVIDIA driver$"):
        toolchain.require("tensorrt")
    monkeypatch.setattr(gpu, "driver_problem", lambda: None)
    with pytest.raises(MissingToolchain, match="penstock toolchain install tensorrt$"):
        toolchain.describe("tensorrt")


def test_an_interpreter_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PENSTOCK_TOOLCHAIN_TORCH", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match="PENSTOCK_TOOLCHAIN_TORCH=.*no such program"):
        toolchain.require("torch")


def test_a_program_that_cannot_be_started_is_told(run: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "python").write_text("no program", encoding="utf-8")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("PENSTOCK_TOOLCHAIN_TORCH", str(tmp_path / "python"))
    with pytest.raises(Internal, match="cannot be started: Exec format error"):
        run()


def test_a_full_disk_is_told(run: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(StorageError, match="the disk is full"):
        run()


def test_versions_are_those_of_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_TOOLCHAIN_TORCH", sys.executable)
    versions = toolchain.describe("torch")
    assert versions["onnx"]
    assert "torch" not in versions  # not installed here: it is left out, not invented
