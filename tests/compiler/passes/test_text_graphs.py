"""Passes on graphs that take text: what has weights is changed and answers nearly the same, the rest is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from compiler.passes import fp16, int8_dynamic, int8_static, optimize, prune, shard, tensorrt_rtx
from compiler.passes.weights import weights_only
from penstock.errors import CompileError
from tests.compiler import text_models
from tests.compiler.passes import build
from tests.penstock.hosting import text_graphs

ROWS = np.random.default_rng(1).choice(np.array((*text_graphs.WORDS, "unbekannt", "")), (64, 2)).astype(object)


@pytest.mark.parametrize(
    ("run", "options", "allowed"),
    [
        (optimize.run, {}, 1e-5),
        (prune.run, {"share": 0.01}, 0.05),
        (int8_static.run, {}, 0.2),
        (int8_static.run, {"calibrator": "entropy"}, 0.5),
        (int8_dynamic.run, {}, 0.1),
        (weights_only.run, {"bits": 8}, 0.05),
        (weights_only.run, {"bits": 4}, 0.5),
        (weights_only.run, {"bits": 4, "method": "gptq"}, 0.5),
        (fp16.run, {}, 0.05),
    ],
    ids=["optimize", "prune", "int8", "entropy", "dynamic", "8 bits", "4 bits", "gptq", "fp16"],
)
def test_a_network_behind_a_table_of_words(
    tmp_path: Path, run: build.Run, options: dict[str, Any], allowed: float
) -> None:
    source = text_graphs.embedding()
    target = "cuda" if run is fp16.run else "x86-64-vnni"
    made, _ = build.apply(run, source, tmp_path, options, examples=[{"x": ROWS}], target=target)
    before, after = (build.answer(one, {"x": ROWS})["logits"] for one in (source, made))
    assert np.abs(before - after).max() <= allowed * np.abs(before).max()


def test_such_a_network_in_stages(tmp_path: Path) -> None:
    _, result = build.apply(shard.run, text_graphs.embedding(), tmp_path, {"stages": 2}, examples=[{"x": ROWS}])
    assert "2 stages" in result.summary


@pytest.mark.parametrize(
    ("run", "options"),
    [
        (int8_static.run, {}),
        (int8_dynamic.run, {}),
        (weights_only.run, {"bits": 8}),
        (weights_only.run, {"bits": 4}),
        (prune.run, {"share": 0.5}),
    ],
)
def test_what_has_no_weights_to_change_says_so(
    tmp_path: Path, run: Callable[..., Any], options: dict[str, Any]
) -> None:
    model = text_models.make("mixed", tmp_path / "model")
    source, _ = build.apply(optimize.run, onnx.load(model.directory / "edge.onnx"), tmp_path)
    with pytest.raises(CompileError, match=r"(nothing to quantize|no Gemm or MatMul|no Conv|no MatMul)"):
        build.apply(run, source, tmp_path, options, examples=[dict(model.test)])


def test_tensorrt_has_no_text(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="input 'x' holds text, which TensorRT has not"):
        build.apply(tensorrt_rtx.run, text_graphs.embedding(), tmp_path, target="tensorrt-rtx")
