"""torch through its own exporter, in its toolchain: the same model comes out, or a reason why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.sources import Exported, equivalence
from penstock import toolchain as toolchains
from penstock.errors import CompileError
from penstock.runtime import EngineOptions, load_engine

Export = Callable[..., Exported]
RUNNER = Path(__file__).parent / "many_torch_exports.py"
TEXT = {
    "input_ids": {"shape": [-1, -1], "datatype": "INT64", "high": 50},
    "attention_mask": {"shape": [-1, -1], "datatype": "INT64", "low": 1},
}


def test_a_factory_with_examples(base: Path, exported: Export, toolchain: Callable[[str], str]) -> None:
    toolchain("torch")
    made = exported("modules.py:net", base)
    engine = load_engine("onnx", made.model, EngineOptions())
    assert [(spec.name, spec.shape) for spec in engine.inputs] == [("pixels", (-1, 3, 8, 8))]
    assert [(spec.name, spec.shape) for spec in engine.outputs] == [("logits", (-1, 4)), ("features", (-1, 8))]
    x = np.random.default_rng(0).standard_normal((5, 3, 8, 8)).astype(np.float32)
    together = engine.run({"pixels": x})["logits"]
    alone = np.concatenate([engine.run({"pixels": row[None]})["logits"] for row in x])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert [found["rows"] for found in made.parity["cases"]] == [2, 3]
    assert made.facts["versions"]["torch"].startswith("2.")
    assert not made.passthrough
    again = exported("modules:net", base)
    assert again.model.read_bytes() == made.model.read_bytes(), "same module, same seed, same bytes"


def test_inputs_from_the_recipe_with_free_dimensions(
    base: Path, exported: Export, toolchain: Callable[[str], str]
) -> None:
    toolchain("torch")
    made = exported("modules.py:text", base, inputs=TEXT, outputs=["logits"])
    engine = load_engine("onnx", made.model, EngineOptions())
    assert {spec.name: spec.shape for spec in engine.inputs} == {"input_ids": (-1, -1), "attention_mask": (-1, -1)}
    for rows, length in ((1, 3), (4, 17)):
        ids = np.ones((rows, length), np.int64)
        assert engine.run({"input_ids": ids, "attention_mask": ids})["logits"].shape == (rows, 3)


def job(base: Path, out: Path, *, file: str = "modules.py", factory: str = "", **changes: Any) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    return {
        "kind": "factory" if factory else "program",
        "file": str(base / file),
        "module": "",
        "factory": factory,
        "named": f"{file}:{factory}",
        "base": str(base),
        "seed": 0,
        "opset": 0,
        "inputs": {},
        "dynamic": {},
        "outputs": [],
        "allow_pickle": False,
        "out": str(out),
        **changes,
    }


def test_what_goes_wrong_says_why_and_an_exported_program_is_exported(
    base: Path, tmp_path: Path, exported: Export, toolchain: Callable[[str], str]
) -> None:
    x = {"pixels": {"shape": [-1, 3, 8, 8], "datatype": "FP32", "low": None, "high": None}}
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "branches": (
            {"factory": "branches"},
            "control flow that depends on values cannot be exported: use torch.where",
        ),
        "frozen": ({"factory": "frozen"}, "the model itself cannot answer examples of sizes pixels [3, 3, 8, 8]"),
        "random": ({"factory": "random"}, "is different each time the model is asked the same"),
        "words": ({"factory": "words"}, "the model returns str; expected a tensor"),
        "estimator": ({"factory": "estimator"}, 'a scikit-learn estimator: set framework = "sklearn"'),
        "number": ({"factory": "number"}, "returns int; expected a torch.nn.Module"),
        "fails": ({"factory": "fails"}, "called without arguments, fails: RuntimeError: no weights here"),
        "absent": ({"factory": "absent"}, "there is no function 'absent'; it has "),
        "no examples": ({"factory": "net_alone"}, "without example inputs: return (module, {name: tensor})"),
        "unknown example": ({"factory": "unknown_example"}, "example 'sound' is no argument of forward"),
        "single number": ({"factory": "single_number"}, "is a single number; dimension 0 must be the batch"),
        "unknown input": ({"factory": "net_alone", "inputs": {"x": x["pixels"]}}, "forward takes pixels, and no x"),
        "outputs": ({"factory": "net", "outputs": ["a"]}, "source.outputs: 1 names, but the model has 2"),
        "no such axis": ({"factory": "net", "dynamic": {"pixels": [7]}}, "there is no dimension 7"),
        "missing import": ({"file": "broken.py", "factory": "make"}, "No module named 'not_there'"),
        "broken": ({"file": "raises.py", "factory": "make"}, "importing it fails: ValueError: at import"),
        "traced": ({"factory": "traced"}, ""),
        "free program": ({"file": "free.pt2"}, ""),
        "fixed program": ({"file": "fixed.pt2"}, "the ExportedProgram has fixed the batch of input"),
        "evil program": ({"file": "evil.pt2"}, "loading those runs whatever code their author put in"),
        "no program": ({"file": "junk.pt2"}, "is no ExportedProgram that this torch can load"),
    }
    (base / "broken.py").write_text("import not_there")
    (base / "raises.py").write_text("raise ValueError('at import')")
    jobs = {name: job(base, tmp_path / "out" / name, **changes) for name, (changes, _) in cases.items()}
    messages = toolchains.call(toolchain("torch"), RUNNER, {"jobs": jobs, "programs": str(base)})
    for name, (_, expected) in cases.items():
        assert expected in messages[name], f"{name}: {messages[name]}"
        assert bool(messages[name]) == bool(expected), name
        assert "Traceback" not in messages[name]

    assert not (base / "evil-was-here").exists()
    traced = [equivalence.read_case(tmp_path / "out" / "traced" / f"case{index}.npz") for index in (0, 1)]
    with pytest.raises(CompileError, match=r"does not answer as the original, for 2 rows.*is off by up to 0\.\d"):
        equivalence.check(tmp_path / "out" / "traced" / "model.onnx", traced, tolerance=1e-4)
    made = exported("free.pt2", base)
    engine = load_engine("onnx", made.model, EngineOptions())
    assert [spec.shape for spec in (*engine.inputs, *engine.outputs)] == [(-1, 4), (-1, 3)]
