"""Every graph pass on the nine vision networks that onnx ships, as a recipe would chain them: optimized, then changed.

Tolerances are shares of the largest score. ReferenceEvaluator is the second oracle where it is fast enough.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from compiler.graph import equivalence
from compiler.passes import fp16, int8_static, optimize, prune, shard
from compiler.passes.job import PassResult
from compiler.passes.weights import weights_only
from penstock.errors import CompileError
from tests.compiler.passes import build, cases, graphs
from tests.compiler.passes.build import Run

WITHOUT_MATRICES = {"densenet121", "squeezenet"}
UNPRUNABLE = {"shufflenet"}  # all of its convolutions but the first read channels in groups
OPTIMIZED_NODES = {
    "bvlc_alexnet": 22,
    "densenet121": 491,
    "inception_v1": 142,
    "inception_v2": 164,
    "resnet50": 123,
    "shufflenet": 154,
    "squeezenet": 67,
    "vgg19": 44,
    "zfnet512": 22,
}


class Subject:
    """A network, optimized once, its input and its scores."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name, self._directory = name, directory
        self.source = onnx.load_model_from_string(graphs.vision(name))
        self.feeds = {self.source.graph.input[0].name: build.floats(1, 3, 224, 224, seed=5)}
        self.scores = build.answer(self.source, self.feeds)
        self.optimized, self.facts = build.apply(optimize.run, self.source, directory, examples=[self.feeds])

    def after(self, run: Run, options: dict[str, Any] | None = None) -> tuple[float, onnx.ModelProto, PassResult]:
        """The pass on the optimized graph; how far its answers are from the original's."""
        made, result = build.apply(run, self.optimized, self._directory, options, examples=[self.feeds])
        outs = [path for path in self._directory.glob("out-*") if (path / result.model).exists()]
        path = max(outs, key=lambda each: int(each.name[4:])) / result.model
        return equivalence.difference(self.scores, cases.answers(path, self.feeds)).relative, made, result


@pytest.fixture(scope="module", params=graphs.VISION)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(request.param, tmp_path_factory.mktemp(request.param))


def test_optimized(subject: Subject) -> None:
    assert equivalence.difference(subject.scores, build.answer(subject.optimized, subject.feeds)).relative < 1e-5
    assert len(subject.optimized.graph.node) == OPTIMIZED_NODES[subject.name]
    assert "onnxslim" in subject.facts.facts
    assert np.ptp(next(iter(subject.scores.values()))) > 0  # scores that say something


@pytest.mark.parametrize("subject", ["shufflenet", "squeezenet", "vgg19"], indirect=True)
def test_the_reference_evaluator_reads_it_the_same(subject: Subject) -> None:
    """It takes many seconds for the others."""
    (expected,) = subject.scores.values()
    (found,) = ReferenceEvaluator(subject.optimized).run(None, subject.feeds)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_half_precision(subject: Subject) -> None:
    apart, _, result = subject.after(fp16.run)
    assert apart < 0.005
    assert result.facts["kept_float32"] == {}
    assert result.facts["weight_bytes_after"] < 0.51 * result.facts["weight_bytes_before"]


@pytest.mark.parametrize(("options", "tolerance"), [({}, 0.3), ({"bits": 8}, 0.05)])
def test_weights_only_is_the_product_with_rounded_weights(
    subject: Subject, options: dict[str, Any], tolerance: float
) -> None:
    if subject.name in WITHOUT_MATRICES:
        with pytest.raises(CompileError, match="no bytes were quantized"):
            subject.after(weights_only.run, options)
        return
    apart, made, result = subject.after(weights_only.run, options)
    assert apart < tolerance
    assert 0 < result.facts["integer_weight_bytes"] < 0.32 * result.facts["quantized_from_bytes"]
    assert "Gemm" not in build.kinds(made)


def test_no_channels_taken_out(subject: Subject) -> None:
    apart, made, _ = subject.after(prune.run, {"method": "channels", "share": 0.0})
    assert apart < 1e-5
    assert equivalence.weight_bytes(made) <= equivalence.weight_bytes(subject.optimized)


@pytest.mark.parametrize("subject", ["shufflenet", "squeezenet"], indirect=True)
def test_no_weights_zeroed(subject: Subject) -> None:
    """Nothing here depends on the network, and compressing weights takes seconds."""
    apart, _, result = subject.after(prune.run, {"share": 0.0})
    assert apart < 1e-5
    assert result.facts["gzip_bytes_after"] == result.facts["gzip_bytes_before"]


def test_half_of_the_channels_taken_out(subject: Subject) -> None:
    """The pass itself compares with the network in which nothing reads those channels."""
    if subject.name in UNPRUNABLE:
        with pytest.raises(CompileError, match="no channel can be taken out.*Conv 'n4' cannot be followed"):
            subject.after(prune.run, {"method": "channels", "share": 0.5})
        return
    _, made, result = subject.after(prune.run, {"method": "channels", "share": 0.5})
    assert result.facts["parameters_after"] < 0.75 * result.facts["parameters_before"]
    (scores,) = build.answer(made, subject.feeds).values()
    assert scores.shape == next(iter(subject.scores.values())).shape
    layers = {n.name: n for n in made.graph.node if n.op_type == "Conv"}
    weights = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    for name, (had, kept) in result.facts["layers"].items():
        if name in layers:
            assert weights[layers[name].input[1]].shape[0] == kept <= had


def test_three_stages(subject: Subject) -> None:
    apart, _, result = subject.after(shard.run, {"stages": 3})
    assert apart < 1e-5
    assert result.facts["largest_difference_with_layouts"] < 1e-5
    memory = [stage["memoryBytes"] for stage in result.facts["stages"]]
    assert max(memory) < 0.6 * sum(memory)


def test_int8(subject: Subject) -> None:
    apart, _, result = subject.after(int8_static.run)
    assert result.facts["integer_weight_bytes"] > 0
    assert apart < 0.5
