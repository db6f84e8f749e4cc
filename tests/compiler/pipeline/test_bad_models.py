"""What is wrong with a model, its data or this machine is said in a sentence on the command line; nothing is left.

Only what no other test has: each case goes through ``penstock compile`` as a process or as its entry point.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from compiler.cache import steps
from compiler.graph import files
from penstock.artifact.layout import Layout
from penstock.cli import main
from penstock.errors import CompileError
from tests.factories import onnx_model

PENSTOCK = (sys.executable, "-m", "penstock")
WEIGHT: NDArray[np.float32] = np.ones((4, 3), np.float32)


def save(path: Path, *nodes: onnx.NodeProto, batch: int | str = "n", opset: int = 17, domain: str = "") -> Path:
    """A model from x FP32 [batch, 4] to logits FP32 [batch, 3] with the weight w."""
    product = helper.make_node("MatMul", ["x", "w"], ["logits"], name="product")
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 3)] if domain else [])]
    shapes = {"inputs": {"x": [batch, 4]}, "outputs": {"logits": [batch, 3]}}
    onnx.save(onnx_model(nodes or [product], {"w": WEIGHT}, **shapes, opset_imports=opsets), path)
    return path


def compile_here(
    workspace: Path, *arguments: str, out: str = "out", **environment: str
) -> subprocess.CompletedProcess[str]:
    """``penstock compile`` in this process, by its entry point: what it prints and its exit code."""
    command = ["penstock", "compile", "recipe.toml", "-o", out, *arguments]
    code: str | int | None = 0
    printed, said = (TextIOWrapper(BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(said):
        patch.chdir(workspace)
        patch.setattr(sys, "argv", command)
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    assert code is None or isinstance(code, int)
    streams = (stream.buffer.getvalue().decode() for stream in (printed, said))
    return subprocess.CompletedProcess(command, code or 0, *streams)


def compile_in_a_process(workspace: Path, before: Callable[[], None]) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own, which calls ``before`` first."""
    return subprocess.run(
        [*PENSTOCK, "compile", "recipe.toml", "-o", "out"],
        cwd=workspace, preexec_fn=before, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("penstock: ")
    for word in words:
        assert word in last


def assert_nothing_left(workspace: Path) -> None:
    assert not (workspace / "out").exists()
    assert not list(workspace.glob(".out-*"))


@pytest.mark.parametrize(
    ("node", "domain", "words"),
    [
        (
            helper.make_node("Frobnicate", ["x", "w"], ["logits"], name="odd", domain="acme.ai"),
            "acme.ai",
            ("Frobnicate", "'acme.ai'", "'odd'"),
        ),
        (helper.make_node("Frobnicate", ["x", "w"], ["logits"], name="odd"), "", ("Frobnicate", "opset 17", "'odd'")),
        (helper.make_node("Gelu", ["x"], ["logits"], name="soft"), "", ("Gelu", "opset 17", "'soft'")),
    ],
    ids=["custom domain", "no such operator", "a later opset's"],
)
def test_an_unsupported_operator_is_named_with_its_opset_node_and_rung(
    workspace: Path, node: onnx.NodeProto, domain: str, words: tuple[str, ...]
) -> None:
    save(workspace / "student.onnx", node, domain=domain)
    assert_refused(compile_here(workspace), 1, "edge.model: student.onnx", *words)
    assert_nothing_left(workspace)


def test_a_check_of_onnx_is_one_line_without_its_context(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", helper.make_node("Frobnicate", ["x"], ["logits"], name="odd"))
    with pytest.raises(CompileError) as caught:
        files.read(path, field="model")
    assert "\n" not in caught.value.message
    assert "not a valid ONNX model" not in caught.value.message


def test_a_model_that_takes_four_rows_and_no_others_is_told_what_to_export(workspace: Path) -> None:
    rows = helper.make_node("Add", ["x", "each"], ["logits"], name="of_four")
    model = onnx_model([rows], {"each": np.ones((4, 4), np.float32)}, inputs={"x": [4, 4]}, outputs={"logits": [4, 4]})
    onnx.save(model, workspace / "student.onnx")
    assert_refused(compile_here(workspace), 1, "edge.model: takes exactly 4 rows a call", "free first dimension")


def test_free_dimensions_that_the_data_cannot_fix_are_named(workspace: Path) -> None:
    for name in ("student", "teacher"):
        model = onnx.load(workspace / f"{name}.onnx")
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "features"
        onnx.save(model, workspace / f"{name}.onnx")
    with np.load(workspace / "data.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(workspace / "data.npz", **{**arrays, "x_fit": arrays["x_fit"][:, :3]})
    done = compile_here(workspace)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert_nothing_left(workspace)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd"])
def test_external_data_outside_the_models_directory_are_refused(workspace: Path, location: str) -> None:
    path = save(workspace / "student.onnx")
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "length": "48"}.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    assert_refused(compile_here(workspace), 1, "edge.model", location, "refused")


def test_a_missing_toolchain_is_named_with_the_command_that_installs_it(
    workspace: Path, edit_recipe: Callable[[str, str], Path]
) -> None:
    edit_recipe('"student.onnx"', '"net.py:make"')
    (workspace / "net.py").write_text("def make(): ...\n")
    done = compile_here(workspace, PENSTOCK_TOOLCHAINS=str(workspace / "none"))
    assert_refused(done, 2, "torch", "penstock toolchain install torch")


def test_an_interpreter_that_is_no_toolchain_says_what_it_lacks(
    workspace: Path, edit_recipe: Callable[[str, str], Path]
) -> None:
    edit_recipe('"student.onnx"', '"net.py:make"')
    (workspace / "net.py").write_text("def make(): ...\n")
    done = compile_here(workspace, PENSTOCK_TOOLCHAIN_TORCH=sys.executable)
    assert_refused(done, 1, "torch", "No module named 'torch'")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"size"', '"size"\npasses.int8.calibratr = "minmax"', "did you mean 'calibrator'"),
        ('"size"', '"size"\npasses.prune.share = 0.5', "prune = { share"),
        ('["int8"]', '["int7"]', "'int7'; one of 'fp32'"),
    ],
)
def test_a_wrong_option_is_found_before_the_first_step(
    workspace: Path, edit_recipe: Callable[[str, str], Path], old: str, new: str, words: str
) -> None:
    edit_recipe(old, new)
    for dry_run in ((), ("--dry-run",)):
        done = compile_here(workspace, *dry_run)
        assert_refused(done, 2, words)
        assert "edge model" not in done.stderr


def test_a_plan_needs_the_data(workspace: Path) -> None:
    (workspace / "data.npz").unlink()
    assert_refused(compile_here(workspace, "--dry-run"), 2, "data.npz: no such file")


def test_a_destination_that_cannot_be_is_found_before_the_first_step(workspace: Path) -> None:
    (workspace / "file").write_text("")
    done = compile_here(workspace, "-o", "json", "--dry-run")
    assert done.returncode == 0
    refused = compile_here(workspace, out="file/out")
    assert_refused(refused, 1, "file")
    assert "edge model" not in refused.stderr


@pytest.mark.parametrize("size", [512, 3000])
def test_a_full_disk_is_an_error_and_leaves_nothing(workspace: Path, cache: Path, size: int) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    assert_refused(compile_in_a_process(workspace, limit), 1, "File too large")
    assert_nothing_left(workspace)
    assert not list(cache.glob("making-*"))
    assert compile_here(workspace).returncode == 0


def test_a_killed_compilation_goes_on_to_the_same_bytes(workspace: Path, cache: Path) -> None:
    program = (
        "import os, signal; from compiler.pipeline import cascade\n"
        "cascade.words = lambda certificate, refusal: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from penstock.cli.main import main; main()\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, "compile", "recipe.toml", "-o", "out"], cwd=workspace, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert_nothing_left(workspace)
    assert compile_here(workspace).returncode == 0
    fresh = subprocess.run(
        [*PENSTOCK, "compile", "recipe.toml", "-o", "fresh"],
        cwd=workspace, env={**os.environ, "PENSTOCK_CACHE": str(workspace / "cache")}, check=False,
    )  # fmt: skip
    assert fresh.returncode == 0
    assert Layout(workspace / "out").digest == Layout(workspace / "fresh").digest
    assert (workspace / "out" / "lock.json").read_bytes() == (workspace / "fresh" / "lock.json").read_bytes()


def test_a_damaged_result_is_made_again_to_the_same_bytes(workspace: Path, cache: Path) -> None:
    assert compile_here(workspace).returncode == 0
    digest = Layout(workspace / "out").digest
    for record in cache.glob("steps/*/*.onnx"):
        record.write_bytes(record.read_bytes()[:-1])
    for record in list(cache.glob(f"steps/*/{steps.ENTRY_FILE}"))[:2]:
        record.write_text("{")
    again = compile_here(workspace)
    assert again.returncode == 0, again.stderr
    assert "Traceback" not in again.stderr
    assert Layout(workspace / "out").digest == digest
