"""What variants are asked for their golden vectors: noise, and words that the model knows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compiler.artifact import golden_inputs
from compiler.graph.vocabulary import Words
from penstock.policy.decoding import Decoder, Decoding
from penstock.wire.tensors import Array, TensorSpec


def fp32(name: str, *shape: int, datatype: str = "FP32") -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape)


def test_the_clouds_rows_depend_on_the_model_alone() -> None:
    specs = (fp32("x", -1, 64), fp32("ids", -1, -1, datatype="INT64"))
    first, again = (golden_inputs.of_cloud(specs, (0.0, 16.0)) for _ in range(2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
    assert first["x"].shape == (16, 64)
    assert first["ids"].shape == (16, 8)
    assert first["x"].dtype == np.float32
    assert 0 <= first["x"].min() < 1 < 15 < first["x"].max() <= 16
    assert set(np.unique(first["ids"])) <= set(range(17))


def test_open_sizes_are_those_of_real_rows_and_values_are_not() -> None:
    specs = (fp32("image", -1, 3, -1, -1), fp32("ids", -1, -1, datatype="INT64"))
    rows = {"image": np.full((5, 3, 4, 6), 7, np.float32), "ids": np.full((5, 12), 7)}
    made, again = (
        golden_inputs.of_cloud(specs, None, like=like) for like in (rows, {n: 2 * a for n, a in rows.items()})
    )
    assert made["image"].shape == (16, 3, 4, 6)
    assert made["ids"].shape == (16, 12)
    for name, array in made.items():
        np.testing.assert_array_equal(array, again[name])


def test_golden_inputs_of_other_ranges_differ() -> None:
    spec = (fp32("x", -1, 4),)
    assert not np.array_equal(golden_inputs.of_cloud(spec, None)["x"], golden_inputs.of_cloud(spec, (0.0, 2.0))["x"])


def test_text_is_made_of_the_models_own_words_and_numbers_stay_as_they_were() -> None:
    specs = (fp32("x", -1, 4), fp32("words", -1, 2, datatype="BYTES"))
    known = {"words": Words(of_column={0: ["rot", "grün"], 1: ["S", "M"]})}
    made = golden_inputs.of_cloud(specs, None, known)
    np.testing.assert_array_equal(made["x"], golden_inputs.of_cloud(specs[:1], None)["x"])
    assert made["words"].shape == (16, 2)
    assert [set(column) for column in made["words"][:-2].T] == [{"rot", "grün"}, {"S", "M"}]
    assert made["words"][-1].tolist() == ["", ""]
    assert "" not in golden_inputs.of_cloud(specs, None, known, has_unknown=False)["words"]


def test_rows_of_generated_tokens_are_those_the_model_is_surest_of() -> None:
    sureness = np.random.default_rng(0).uniform(0.1, 1, 100).astype(np.float32)
    sureness[[5, 90]] = np.nan, 1.0  # one that says nothing, and one behind those that are tried

    def run(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        chances = np.stack([sureness[inputs["x"]], np.ones(len(inputs["x"]), np.float32)], axis=1)
        return {"token_ids": np.zeros((len(chances), 2), np.int64), "token_probabilities": chances}

    decoder = Decoder(output="token_probabilities", kind="probabilities", decoding=Decoding(form="tokens"))
    inputs = {"x": np.arange(100)}
    found = golden_inputs.steady(inputs, run, decoder)["x"]
    assert len(found) == 16
    assert set(found.tolist()) == set(np.argsort(-np.nan_to_num(sureness[:64]))[:16].tolist())
    assert len(golden_inputs.steady({"x": np.arange(3)}, run, decoder)["x"]) == 1
    classes = Decoder(output="y", kind="logits")
    assert golden_inputs.steady(inputs, run, classes) is inputs


def test_prose_has_several_words() -> None:
    spec = (fp32("x", -1, datatype="BYTES"),)
    made = golden_inputs.of_cloud(spec, None, {"x": Words(of_all=["gut", "schön"], is_prose=True)})["x"]
    assert made.shape == (16,)
    assert max(len(text.split()) for text in made) > 2
    assert {word for text in made[:-2] for word in text.split()} == {"gut", "schön"}


def test_a_model_without_words_still_gets_text() -> None:
    made = golden_inputs.of_cloud((fp32("x", -1, -1, datatype="BYTES"),), None)["x"]
    assert made.shape == (16, 1)
    assert all(isinstance(text, str) for text in made.ravel())
