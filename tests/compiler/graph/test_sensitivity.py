"""Sensitivities against noise that is computed by hand, and names that survive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compiler.graph import sensitivity
from compiler.graph.names import named
from compiler.passes import int8_dynamic, int8_static
from penstock.errors import CalibrationError
from tests.compiler import small_models as small


def static(directory: Path, trained: small.Trained, **options: object) -> Path:
    job = small.job(directory, trained.model, calibration=trained.fit, **options)
    return job.out / int8_static.run(job).model


def ranked(directory: Path, trained: small.Trained, path: Path, size: int = 64) -> dict[str, float]:
    found = sensitivity.rank(directory / "float.onnx", path, small.batches(trained.fit, size))
    assert [item.sqnr_db for item in found] == sorted(item.sqnr_db for item in found)
    return {item.name: item.sqnr_db for item in found}


def test_products_are_ranked_by_their_own_names(tmp_path: Path) -> None:
    trained = small.cnn()
    found = ranked(tmp_path, trained, static(tmp_path, trained))
    assert set(found) == {"conv0", "conv1", "head"}
    assert all(20 < db < 70 for db in found.values())


def test_noise_is_that_of_the_operator_alone_by_hand(tmp_path: Path) -> None:
    """The second layer's noise: rounded weights times the *float* model's activations, rounded."""
    trained = small.mlp("wine")
    path = static(tmp_path, trained)
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer}
    floats = {t.name: numpy_helper.to_array(t).astype(float) for t in trained.model.graph.initializer}
    h0 = np.maximum(trained.fit @ floats["w0"] + floats["b0"], 0)
    step, zero = float(tensors["h0_scale"]), int(tensors["h0_zero_point"])
    rounded = (np.clip(np.rint(h0 / step) + zero, 0, 255) - zero) * step
    weight = tensors["w1_quantized"] * tensors["w1_scale"].astype(float)
    exact = h0 @ floats["w1"] + floats["b1"]
    noise = exact - (rounded @ weight + floats["b1"])
    expected = 10 * np.log10((exact**2).sum() / (noise**2).sum())
    assert ranked(tmp_path, trained, path)["fc1"] == pytest.approx(expected, abs=0.05)


def test_batches_do_not_matter(tmp_path: Path) -> None:
    trained = small.cnn()
    path = static(tmp_path, trained)
    whole, cut = ranked(tmp_path, trained, path, 900), ranked(tmp_path, trained, path, 37)
    assert whole == pytest.approx(cut, abs=0.01)


def test_a_spoilt_operator_comes_first_and_its_successors_are_not_blamed(tmp_path: Path) -> None:
    trained = small.mlp("digits")
    path = static(tmp_path, trained)
    before = ranked(tmp_path, trained, path)
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if tensor.name == "w1_quantized":
            coarse = (numpy_helper.to_array(tensor) // 32 * 32).astype(np.int8)
            tensor.CopyFrom(numpy_helper.from_array(coarse, tensor.name))
    onnx.save(model, str(path))
    after = ranked(tmp_path, trained, path)
    assert next(iter(after)) == "fc1"
    assert after["fc1"] < before["fc1"] - 10
    assert (after["fc0"], after["fc2"]) == (before["fc0"], before["fc2"])


def test_a_relu_that_the_quantizer_dropped_is_accounted_for(tmp_path: Path) -> None:
    """Compared without the clipping of its rounding, half of such a convolution's output would count as noise."""
    trained = small.cnn()
    path = static(tmp_path, trained)
    assert not any(node.op_type == "Relu" for node in onnx.load(str(path)).graph.node)
    assert ranked(tmp_path, trained, path)["conv0"] > 30


def test_dynamic_models_are_ranked_too(tmp_path: Path) -> None:
    trained = small.mlp("digits")
    job = small.job(tmp_path, trained.model)
    path = job.out / int8_dynamic.run(job).model
    found = ranked(tmp_path, trained, path)
    assert set(found) == {"fc0", "fc1", "fc2"}
    assert all(20 < db < 70 for db in found.values())


def test_kept_operators_are_not_ranked(tmp_path: Path) -> None:
    trained = small.cnn()
    assert "conv1" not in ranked(tmp_path, trained, static(tmp_path, trained, keep_float=["conv1"]))


def test_names_that_rank_gives_are_understood_by_the_passes(tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(small.cnn().model)
    for node in model.graph.node:
        node.name = ""
    trained = small.cnn()
    unnamed = small.Trained(model=model, fit=trained.fit, test=trained.test, labels=trained.labels)
    found = ranked(tmp_path, unnamed, static(tmp_path, unnamed))
    assert len(found) == 3
    first = next(iter(found))
    assert first not in ranked(tmp_path, unnamed, static(tmp_path, unnamed, keep_float=[first]))


def test_a_float_model_has_nothing_to_rank(tmp_path: Path) -> None:
    onnx.save(small.cnn().model, str(tmp_path / "float.onnx"))
    assert ranked(tmp_path, small.cnn(), tmp_path / "float.onnx") == {}


def test_no_examples(tmp_path: Path) -> None:
    path = static(tmp_path, small.cnn())
    with pytest.raises(CalibrationError, match="no examples"):
        sensitivity.rank(tmp_path / "float.onnx", path, lambda: iter([]))


def test_noiseless_and_silent_outputs() -> None:
    assert sensitivity._db(1.0, 0.0) == sensitivity.MAX_SQNR_DB
    assert sensitivity._db(0.0, 0.0) == sensitivity.MAX_SQNR_DB
    assert sensitivity._db(0.0, 1.0) == -sensitivity.MAX_SQNR_DB
    assert sensitivity._db(100.0, 1.0) == pytest.approx(20)


# --- names


def chain(*names: str) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Relu", ["x" if i == 0 else f"t{i - 1}"], [f"t{i}"], name=name) for i, name in enumerate(names)
    ]
    nodes[-1].output[0] = "logits"
    return small.graph(nodes, {}, x=["n", 2], y=["n", 2])


def test_every_node_gets_a_name_of_its_own() -> None:
    model = named(chain("", "twin", "twin", "", "twin/t2"))
    assert [n.name for n in model.graph.node] == ["Relu/t0", "twin", "twin/t2.2", "Relu/t3", "twin/t2"]


def test_naming_again_changes_nothing() -> None:
    once = named(chain("", "twin", "twin"))
    again = onnx.ModelProto()
    again.CopyFrom(once)
    assert named(again) == once
