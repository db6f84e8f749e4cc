"""Installing a toolchain for real: complete or not at all, by one process at a time, with reasons when it cannot be."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from penstock import toolchain
from penstock.errors import InvalidInput, MissingToolchain, PenstockError, StorageError, Unavailable
from penstock.toolchain import definitions, gpu, install, locations
from penstock.toolchain.pip import PipRun
from tests.penstock.toolchain.tiny import Tiny, make_wheel

RUNNER = Path(__file__).with_name("echo_runner.py")


def entries(tiny: Tiny) -> list[str]:
    """What is in the root, but for the lock file."""
    return sorted(path.name for path in tiny.root.iterdir() if path.name != ".tiny.lock")


def test_an_installed_toolchain_runs_its_packages(tiny: Tiny) -> None:
    seen: list[tuple[float, str]] = []
    done = install.install("tiny", report=lambda share, note: seen.append((share, note)))
    assert (done.packages, done.was_there, done.directory) == (1, False, tiny.directory)
    assert done.size_bytes > 1000
    assert entries(tiny) == ["tiny"]

    assert toolchain.require("tiny") == tiny.directory / "bin" / "python"
    assert toolchain.describe("tiny") == {"tinypkg": "1.0"}
    inside = toolchain.call("tiny", RUNNER, {"do": "environment"})
    assert Path(inside["prefix"]).samefile(tiny.directory)
    assert not any("site-packages" in path and str(tiny.root) not in path for path in inside["path"])

    shares = [share for share, _ in seen]
    assert shares == sorted(shares)
    assert "tinypkg 1.0" in [note for _, note in seen]


def test_scripts_still_run_after_the_move_to_the_final_place(tiny: Tiny) -> None:
    install.install("tiny")
    done = subprocess.run([tiny.directory / "bin" / "tinypkg"], capture_output=True, text=True, check=True)
    assert done.stdout == "tinypkg runs\n"


def test_a_second_installation_does_nothing_and_force_does_it_anew(tiny: Tiny) -> None:
    install.install("tiny")
    marker = tiny.directory / "marker"
    marker.touch()
    assert install.install("tiny").was_there
    assert marker.exists()
    assert not install.install("tiny", force=True).was_there
    assert not marker.exists()
    assert entries(tiny) == ["tiny"]


def test_another_lock_makes_it_outdated_and_is_installed_in_its_place(tiny: Tiny) -> None:
    install.install("tiny")
    digest = make_wheel(tiny.wheels, "tinypkg", "2.0")
    tiny.rewrite(lambda text: text.partition("tinypkg")[0] + f"tinypkg==2.0 \\\n    --hash=sha256:{digest}\n")
    with pytest.raises(MissingToolchain, match="installed, but not as this version of Penstock needs it"):
        toolchain.require("tiny")
    install.install("tiny")
    assert locations.versions_in(toolchain.require("tiny"), ("tinypkg",)) == {"tinypkg": "2.0"}


@pytest.mark.parametrize("content", [b"", b"{", b'{"lock": 1}', b"\xff\xfe", b'{"unknown": "key"}'])
def test_a_corrupt_stamp_means_outdated_and_is_repaired(tiny: Tiny, content: bytes) -> None:
    tiny.directory.mkdir(parents=True)
    (tiny.directory / locations.STAMP).write_bytes(content)
    assert locations.look(definitions.find("tiny")).state == "outdated"
    with pytest.raises(MissingToolchain, match="penstock toolchain install tiny"):
        toolchain.require("tiny")


def test_an_environment_without_its_interpreter_is_installed_again(tiny: Tiny) -> None:
    install.install("tiny")
    (tiny.directory / "bin" / "python").unlink()
    assert locations.look(definitions.find("tiny")).state == "outdated"
    assert not install.install("tiny").was_there
    assert locations.look(definitions.find("tiny")).state == "installed"


def test_an_interruption_leaves_what_was_there(tiny: Tiny) -> None:
    def interrupt(share: float, note: str) -> None:
        if note.startswith("tinypkg"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        install.install("tiny", report=interrupt)
    assert entries(tiny) == []
    install.install("tiny")
    with pytest.raises(KeyboardInterrupt):
        install.install("tiny", report=interrupt, force=True)
    assert entries(tiny) == ["tiny"]
    assert toolchain.require("tiny")


def test_kill_minus_nine_leaves_no_half_made_toolchain_and_the_next_one_cleans_up(tiny: Tiny) -> None:
    program = f"""
import os, signal, sys
from pathlib import Path
from penstock.toolchain import install, lock, definitions
lock.LOCKS = Path({str(tiny.lock_file.parent)!r})
definitions.TOOLCHAINS["tiny"] = definitions.Toolchain(
    name="tiny", purpose="tests", requirements=("tinypkg==1.0",), imports=("tinypkg",))
def die(share, note):
    if note.startswith("tinypkg"):
        os.kill(os.getpid(), signal.SIGKILL)
install.install("tiny", report=die)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert all(name.startswith(".tiny.") for name in entries(tiny))
    assert locations.look(definitions.find("tiny")).state == "missing"
    # an orphaned pip holds the lock until it notices, so this one waits for it
    assert not install.install("tiny", max_wait_s=60).was_there
    assert entries(tiny) == ["tiny"]


def test_a_second_process_waits_for_the_first_and_says_so(tiny: Tiny) -> None:
    tiny.root.mkdir()
    seen: list[str] = []
    with (tiny.root / ".tiny.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="another process has been working on toolchain tiny"):
            install.install("tiny", report=lambda share, note: seen.append(note), max_wait_s=0.05)
        with pytest.raises(Unavailable, match="another process"):
            install.remove("tiny", max_wait_s=0.0)
    assert seen == ["waiting for another process that works on toolchain tiny"]
    assert not install.install("tiny", max_wait_s=0.0).was_there


def test_a_file_with_another_hash_is_never_installed(tiny: Tiny) -> None:
    make_wheel(tiny.wheels, "tinypkg", "1.0", code="import os  # not what was locked")
    with pytest.raises(MissingToolchain, match="not the one this lock names, so nothing was installed"):
        install.install("tiny")
    assert entries(tiny) == []


def test_packages_out_of_reach_are_named_with_what_to_do(tiny: Tiny) -> None:
    tiny.rewrite(lambda text: text + "".join(f"far-{i}==1.0 \\\n    --hash=sha256:{'0' * 64}\n" for i in range(12)))
    with pytest.raises(Unavailable) as caught:
        install.install("tiny")
    message = caught.value.message
    assert "pip found 1 of 13 packages, and not far-0, far-1, far-2" in message
    assert "far-7 and 4 more. Check the network" in message
    assert f"pip download --no-deps --require-hashes --dest wheels --requirement {tiny.lock_file}" in message
    assert "PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels penstock toolchain install tiny" in message
    assert entries(tiny) == []


def test_an_index_that_does_not_answer_is_said_while_pip_tries_again(tmp_path: Path) -> None:
    seen: list[tuple[float, str]] = []
    run = PipRun(total=2, report=lambda share, note: seen.append((share, note)), site=tmp_path)
    run.on_output(b"Collecting a==1\nColle")
    run.on_output(b"cting b==2 (from -r lock)\n")
    run.on_log(b"WARNING: Retrying (Retry(total=4, connect=None)) after connection broken by 'NewConnectionError'\n")
    assert seen == [(0.3, "a 1"), (0.6, "b 2"), (0.6, "an index does not answer; trying again")]


def test_advice_for_a_machine_without_network_names_the_index_of_torch(tiny: Tiny) -> None:
    tiny.rewrite(lambda text: text + f"torch==1.0+cpu \\\n    --hash=sha256:{'0' * 64}\n")
    with pytest.raises(Unavailable, match="--dest wheels --extra-index-url https://download.pytorch.org/whl/cpu --req"):
        install.install("tiny")


def test_torch_comes_from_its_own_index_only_when_the_configured_ones_lack_it(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    (index / "torch").mkdir(parents=True)
    digest = make_wheel(index / "torch", "torch", "1.0+cpu")
    link = '<a href="torch-1.0%2Bcpu-py3-none-any.whl">torch</a>'
    (index / "torch" / "index.html").write_text(link, encoding="utf-8")
    (tmp_path / "empty").mkdir()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "empty").as_uri())
    monkeypatch.setattr(install, "TORCH_CPU_INDEX", index.as_uri())
    tiny.rewrite(lambda text: text + f"torch==1.0+cpu \\\n    --hash=sha256:{digest}\n")
    install.install("tiny")
    stamp = locations.read_stamp(tiny.directory)
    assert stamp is not None
    assert stamp.packages == {"tinypkg": "1.0", "torch": "1.0+cpu"}


def test_an_interpreter_that_the_lock_does_not_cover_is_refused_before_anything_is_fetched(tiny: Tiny) -> None:
    tiny.rewrite(lambda text: "# environments: cp39-linux-x86_64 cp39-macos-arm64\n" + text.partition("\n")[2])
    with pytest.raises(MissingToolchain, match="locked for Python 3.9 on linux-x86_64, macos-arm64; this is Python 3"):
        install.install("tiny")
    assert not tiny.root.exists()


def test_a_toolchain_for_gpus_is_refused_where_there_is_no_driver(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PENSTOCK_TOOLCHAINS", str(tmp_path / "root"))
    monkeypatch.setattr(gpu, "driver_problem", lambda: "no NVIDIA driver")
    with pytest.raises(MissingToolchain, match="tensorrt cannot be used here: no NVIDIA driver"):
        install.install("tensorrt")
    assert not (tmp_path / "root").exists()


def test_a_missing_driver_library_is_named_with_what_to_do() -> None:
    problem = gpu.driver_problem("libnone.so.1")
    assert problem is not None
    assert "libnone.so.1 is not found" in problem
    assert "--gpus all" in problem
    assert gpu.driver_problem("libc.so.6") is None


def test_an_unknown_toolchain_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no toolchain 'tinny'"):
        install.install("tinny")


def test_a_disk_that_is_too_small_is_refused_before_anything_is_fetched(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10_000, 9_000, 1_000))
    with pytest.raises(StorageError, match="1.0 kB are free and about 3.0 kB are needed.*PENSTOCK_TOOLCHAINS"):
        install.install("tiny")
    assert entries(tiny) == []


def test_a_disk_that_fills_up_leaves_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        with pytest.raises(StorageError, match="the disk is full"):
            install.install("tiny")
    assert entries(tiny) == []


def test_a_root_that_is_a_file_is_told(tiny: Tiny) -> None:
    tiny.root.write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="a file is where a directory should be"):
        install.install("tiny")


def test_without_a_pip_of_ours_the_bundled_one_is_used(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "_has_pip", lambda: False)
    install.install("tiny")
    assert toolchain.describe("tiny") == {"tinypkg": "1.0"}


def test_an_interpreter_that_cannot_make_environments_is_told(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(MissingToolchain, match="cannot make a virtual environment"):
        install.install("tiny")
    assert entries(tiny) == []


def test_removing_frees_the_disk_and_leftovers(tiny: Tiny) -> None:
    install.install("tiny")
    (tiny.root / ".tiny.left" / "over").mkdir(parents=True)
    (tiny.root / ".tiny-rtx.left").mkdir()
    assert install.remove("tiny") > 1000
    assert entries(tiny) == [".tiny-rtx.left"]
    assert install.remove("tiny") == 0


def test_the_stamp_says_what_was_installed(tiny: Tiny) -> None:
    install.install("tiny")
    stamp = json.loads((tiny.directory / locations.STAMP).read_text(encoding="utf-8"))
    assert stamp.keys() == {"lock", "python", "packages", "size_bytes"}
    assert stamp["packages"] == {"tinypkg": "1.0"}


def test_our_own_interpreter_stands_in_when_it_has_the_versions(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"tinypkg": "1.0+local"}
    monkeypatch.setattr("importlib.metadata.version", versions.__getitem__)
    assert locations.look(definitions.find("tiny")).state == "own"
    assert toolchain.require("tiny") == Path(sys.executable)
    assert toolchain.describe("tiny") == {"tinypkg": "1.0+local"}
    versions["tinypkg"] = "1.1"
    assert locations.look(definitions.find("tiny")).state == "missing"


def test_users_settings_of_pip_are_kept_but_for_where_packages_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    found = install._pip_environment()
    assert found["PIP_INDEX_URL"] == "https://mirror.example/simple"
    assert "/elsewhere" not in found.values()


def test_every_refusal_is_an_error_of_ours() -> None:
    assert issubclass(MissingToolchain, PenstockError)
    assert MissingToolchain("").code == "missing-toolchain"
