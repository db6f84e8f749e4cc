"""Pooling as part of the graph: the formulas of sentence-transformers, computed by numpy as the oracle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from compiler.sources import pooling
from compiler.sources.pooling import Pooling
from penstock.errors import CompileError, ConfigError, InvalidInput
from tests.factories import onnx_model

TOKENS = np.random.default_rng(0).standard_normal((3, 5, 4)).astype(np.float32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=np.int64)


def tokens(opset: int) -> onnx.ModelProto:
    """A graph that gives its input back as token embeddings."""
    return onnx_model(
        [helper.make_node("Identity", ["x"], ["last_hidden_state"])],
        inputs={"x": ["batch", "tokens", 4], "attention_mask": ["batch", "tokens"]},
        outputs={"last_hidden_state": ["batch", "tokens", 4]},
        ints=("attention_mask",),
        opset=opset,
    )


def expected(mode: str, normalize: bool) -> np.ndarray:
    if mode == "cls":
        pooled = TOKENS[:, 0]
    else:
        weights = MASK[..., None].astype(np.float32)
        pooled = (TOKENS * weights).sum(1) / np.maximum(weights.sum(1), 1e-9)
    return pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12) if normalize else pooled


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_one_embedding_a_sentence(opset: int, normalize: bool, mode: Literal["mean", "cls"]) -> None:
    model = pooling.append(tokens(opset), pooled=Pooling(mode=mode, normalize=normalize))
    onnx.checker.check_model(model, full_check=True)
    (found,) = ReferenceEvaluator(model).run(None, {"x": TOKENS, "attention_mask": MASK})
    assert [output.name for output in model.graph.output] == ["sentence_embedding"]
    np.testing.assert_allclose(found, expected(mode, normalize), atol=1e-6)
    assert np.isfinite(found).all(), "a sentence of padding only is no division by zero"


def directory(path: Path, kinds: list[str], config: dict[str, Any]) -> Path:
    modules = [{"path": "1_Pooling" if kind == "Pooling" else "", "type": f"st.models.{kind}"} for kind in kinds]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("kinds", "config", "found"),
    [
        (["Transformer", "Pooling"], {"pooling_mode_mean_tokens": True}, Pooling(mode="mean", normalize=False)),
        (["Transformer", "Pooling", "Normalize"], {"pooling_mode": "cls"}, Pooling(mode="cls", normalize=True)),
    ],
)
def test_what_a_directory_says(tmp_path: Path, kinds: list[str], config: dict[str, Any], found: Pooling) -> None:
    assert pooling.read(directory(tmp_path, kinds, config)) == found


def test_an_ordinary_directory_has_none(tmp_path: Path) -> None:
    assert pooling.read(tmp_path) is None


@pytest.mark.parametrize(
    ("kinds", "config", "message"),
    [
        (["Transformer", "Pooling", "Dense"], {}, "modules Transformer, Pooling, Dense; only"),
        (["Transformer", "Pooling"], {"pooling_mode_max_tokens": True}, "pooling 'pooling_mode_max_tokens': only"),
        (["Transformer", "Pooling"], {}, "only the mean over tokens and the first token"),
        (
            ["Transformer", "Pooling"],
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            "pooling_mode_cls_token, pooling_mode_mean_tokens': only",
        ),
    ],
)
def test_modules_that_have_no_form_here(tmp_path: Path, kinds: list[str], config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pooling.read(directory(tmp_path, kinds, config))


def test_a_path_that_leaves_the_directory(tmp_path: Path) -> None:
    modules = [{"path": "", "type": "Transformer"}, {"path": "../other", "type": "Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InvalidInput, match="leaves the directory"):
        pooling.read(tmp_path)


def test_a_graph_without_tokens() -> None:
    model = tokens(17)
    model.graph.output[0].name = "other"
    with pytest.raises(CompileError, match="needs an output 'last_hidden_state'"):
        pooling.append(model, pooled=Pooling(mode="mean", normalize=False))
