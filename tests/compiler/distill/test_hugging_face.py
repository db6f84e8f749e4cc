"""Hugging Face students and teachers, in the toolchain that has transformers: a tiny BERT, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compiler.data.dataset import Split
from compiler.distill.cache import AnswerCache
from compiler.distill.student import Request, make_student
from compiler.distill.teacher import ToolchainTeacher
from compiler.distill.toolchain_models import Directory
from compiler.recipe.distill_section import DistillSection
from penstock import toolchain as toolchains
from penstock.errors import CompileError
from penstock.runtime import EngineOptions, load_engine
from penstock.wire.tensors import TensorSpec

RUNNERS = Path(__file__).parents[3] / "compiler" / "runners"
PROGRAM = f"""
import sys
sys.path.insert(0, {str(RUNNERS)!r})
import torch
from transformers import BertConfig, BertForSequenceClassification, DistilBertConfig
from protocol import serve

def make(job):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=48,
                        max_position_embeddings=16, num_labels=3, initializer_range=0.3)
    config.architectures = ["BertForSequenceClassification"]
    BertForSequenceClassification(config).save_pretrained(job["bert"])
    small = DistilBertConfig(vocab_size=60, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=16)
    small.save_pretrained(job["small"])
    return {{}}

serve(make)
"""


@pytest.fixture(scope="module")
def bert(toolchain: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``bert`` (weights) and ``small`` (a config)."""
    directory = tmp_path_factory.mktemp("bert")
    (directory / "make.py").write_text(PROGRAM)
    job = {"bert": directory / "bert", "small": directory / "small"}
    toolchains.call(toolchain("optimum"), directory / "make.py", job)
    return directory


@pytest.fixture(scope="module")
def tokens() -> Split:
    source = np.random.default_rng(0)
    mask = np.ones((240, 10), dtype=np.int64)
    mask[::3, 7:] = 0
    inputs = {"input_ids": source.integers(0, 60, (240, 10)), "attention_mask": mask}
    return Split(name="train", inputs=inputs, labels=None)


@pytest.fixture(scope="module")
def request_of(bert: Path, tokens: Split) -> Callable[..., Request]:
    def make(out: Path, **section: Any) -> Request:
        model = Directory(path=bert / "bert")
        specs = [TensorSpec(name=name, datatype="INT64", shape=(-1, -1)) for name in tokens.inputs]
        return Request(
            section=DistillSection(**{"threads": 1, "epochs": 3, **section}),
            base=bert,
            teacher=ToolchainTeacher(model, specs, work=out / "asked", base=bert),
            teacher_name="bert",
            teacher_model=model,
            train=tokens,
            cache=AnswerCache(bert / "answers"),
            work=out / "work",
            out=out / "student.onnx",
        )

    return make


def test_half_of_the_layers(request_of: Callable[..., Request], tmp_path: Path, tokens: Split) -> None:
    student = make_student(request_of(tmp_path, student="layers:2", lr=1e-12, epochs=1))
    assert student.metrics.notes[0] == "kept layers 0, 2 of the 4 in bert.encoder.layer"
    names = [node.name for node in onnx.load(str(student.path)).graph.node]
    assert any("layer.1" in name for name in names)
    assert not any("layer.2" in name for name in names)
    engine = load_engine("onnx", student.path, EngineOptions())
    shorter = {name: array[:3, :6] for name, array in tokens.inputs.items()}
    assert engine.run(shorter)["logits"].shape == (3, 3), "batch and length are free"
    embedding = next(
        numpy_helper.to_array(tensor)
        for tensor in onnx.load(str(student.path)).graph.initializer
        if "word_embeddings" in tensor.name
    )
    assert embedding.shape == (60, 32)


def test_a_config_with_fresh_weights_learns(request_of: Callable[..., Request], tmp_path: Path) -> None:
    student = make_student(request_of(tmp_path, student="small", epochs=30, lr=0.01))
    assert student.metrics.curve[-1].train_loss < 0.8 * student.metrics.curve[0].train_loss
    assert student.metrics.parameters < 10_000
    assert {spec.name for spec in load_engine("onnx", student.path, EngineOptions()).inputs} == {
        "input_ids",
        "attention_mask",
    }


def test_a_config_of_nothing_known_is_refused(request_of: Callable[..., Request], bert: Path, tmp_path: Path) -> None:
    (bert / "odd").mkdir()
    (bert / "odd" / "config.json").write_text('{"model_type": "bart-simpson"}')
    request = request_of(tmp_path, student="odd")
    with pytest.raises(CompileError, match="not a Hugging Face config that this transformers knows"):
        make_student(replace(request, work=tmp_path / "w"))
