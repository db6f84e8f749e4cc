"""Encoder-decoders of five kinds through Optimum, against what transformers' own ``generate`` says, token for token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from compiler.graph import files
from compiler.sources import equivalence, tidy
from compiler.sources.encoder_decoders import Assembly
from penstock import toolchain as toolchains
from penstock.runtime import EngineOptions, load_engine

SOME = list(range(1, 40, 6))  # ends, so many that rows of random weights end at different places
RUNNER = Path(__file__).parent / "many_encoder_decoders.py"
MODELS: Mapping[str, dict[str, Any]] = {
    "t5": {"settings": {"min_new_tokens": 3, "eos_token_id": SOME}, "max_new_tokens": 24},
    "bart": {"settings": {"eos_token_id": SOME}},
    "marian": {},
    "whisper": {"prompt": [10, 12, 9], "settings": {"eos_token_id": SOME}},
    "trocr": {"settings": {"eos_token_id": SOME}},
    "no-language": {"kind": "whisper"},
    "too-long": {"kind": "trocr", "max_new_tokens": 40},
    "repeats": {"kind": "bart", "settings": {"no_repeat_ngram_size": 3}},
}


@pytest.fixture(scope="module")
def exports(toolchain: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("encoder-decoders")
    return out, toolchains.call(toolchain("optimum"), RUNNER, {"out": str(out), "models": MODELS})


def test_one_graph_says_what_generate_says(exports: tuple[Path, dict[str, Any]]) -> None:
    out, results = exports
    seen = {}
    for name in ("t5", "bart", "marian", "whisper", "trocr"):
        result, assembly = results[name], Assembly()
        model = assembly(out / name, result)
        cases = [equivalence.read_case(out / name / case) for case in result["cases"]]
        tidy.tidy(model, cases[0])
        files.write(model, out / f"{name}.onnx")
        parity = equivalence.check(out / f"{name}.onnx", cases, tolerance=1e-4)
        assert all(case["outputs"]["token_ids"]["equal"] for case in parity["cases"])
        check_rows_alone(out / f"{name}.onnx", cases[1])
        tokens = np.concatenate([case.outputs["token_ids"].ravel() for case in cases])
        lengths = {int(n) for case in cases for n in (case.outputs["token_probabilities"] > 0).sum(axis=1)}
        seen[name] = (len(np.unique(tokens)), len(lengths), assembly.words)
    assert min(kinds for kinds, _, _ in seen.values()) >= 4, seen
    assert sum(lengths > 1 for _, lengths, _ in seen.values()) >= 3, f"rows have to end at different places: {seen}"
    assert seen["marian"][2] == "greedy search for up to 30 tokens (its settings ask for 4 beams)"


def check_rows_alone(path: Path, case: equivalence.Case) -> None:
    """A row of a batch, without its padding, is answered as it is in the batch."""
    engine = load_engine("onnx", path, EngineOptions(threads=1))
    for row in range(case.rows):
        given = {name: array[row : row + 1] for name, array in case.inputs.items()}
        if "attention_mask" in given:
            given = {name: array[:, : int(given["attention_mask"].sum())] for name, array in given.items()}
        assert np.array_equal(engine.run(given)["token_ids"][0], case.outputs["token_ids"][row])
    engine.close()


def test_what_cannot_be_honoured_is_refused_in_a_sentence(exports: tuple[Path, dict[str, Any]]) -> None:
    _, results = exports
    assert (
        "Give the tokens behind the start: language, task, no timestamps; for <|en|> [10, 12, 9]"
        in (results["no-language"]["refused"])
    )
    assert "40 given, but the decoder has 26 places, 1 of them for the prompt" in results["too-long"]["refused"]
    assert "no_repeat_ngram_size = 3 cannot become part of the graph" in results["repeats"]["refused"]


def test_the_graph_holds_no_operators_of_one_runtime(exports: tuple[Path, dict[str, Any]]) -> None:
    out, results = exports
    model = Assembly()(out / "t5", results["t5"])
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
    onnx.checker.check_model(model)
