"""A torch module or an ExportedProgram as an ONNX file, with the original's answers for two batch sizes.

Runs in toolchain ``torch``. The batch (dimension 0 of every input) is free. Does not judge the export: the caller
compares.
"""

from __future__ import annotations

import inspect
import os
import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from export_cases import answers, save, tensors
from protocol import InputError, progress, serve, short
from torch_factories import made_by

ROWS = 2  # a batch of 1 would be taken for a constant by the exporter
FREE_SIZE = 8  # of a free dimension when examples are made
MAX_BATCH = 4096

_TYPES = {
    "FP32": torch.float32, "FP64": torch.float64, "FP16": torch.float16, "BOOL": torch.bool, "UINT8": torch.uint8,
    "INT8": torch.int8, "INT16": torch.int16, "INT32": torch.int32, "INT64": torch.int64,
}  # fmt: skip


def export(job: dict[str, Any]) -> dict[str, Any]:
    """Export as the job says; writes model.onnx and cases below ``job["out"]``."""
    _seed(job["seed"])
    out = Path(job["out"])
    progress(0.05, "loading the model")
    if job["kind"] == "program":
        program, module, first, second = _program(job)
        shapes = None
    else:
        module, first, second = _module(job)
        program, shapes = module, _dynamic_shapes(first, second)
    progress(0.2, "asking the original")
    expected = answers(module, first)
    names = _output_names(tensors(expected), job["outputs"], first)
    cases = [_case(out, 0, module, first, names), _case(out, 1, module, second, names)]
    progress(0.3, "exporting")
    _write(program, first, shapes, names, job["opset"], out / "model.onnx")
    progress(1.0, "exported")
    return {"model": "model.onnx", "cases": cases, "exporter": f"torch.onnx.export of torch {torch.__version__}"}


def _case(out: Path, index: int, module: Any, inputs: Mapping[str, torch.Tensor], names: list[str]) -> str:
    try:
        given = tensors(answers(module, inputs))
    except InputError:
        raise
    except Exception as error:
        sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
        raise InputError(f"the model itself cannot answer examples of sizes {sizes}: {short(error)}") from error
    return save(out / f"case{index}.npz", inputs, dict(zip(names, given.values(), strict=True)))


def _program(job: dict[str, Any]) -> tuple[Any, Any, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    if not job["allow_pickle"]:
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        program = torch.export.load(job["file"])
    except Exception as error:
        if "weights_only" in str(error).lower() or "unpickl" in type(error).__name__.lower():
            raise InputError(
                f"{Path(job['file']).name} holds pickled objects, and loading those runs whatever code their author "
                "put in; if you trust the file, set allow_pickle = true"
            ) from error
        raise InputError(
            f"{Path(job['file']).name} is no ExportedProgram that this torch can load: {short(error)}"
        ) from error
    names = list(program.graph_signature.user_inputs)
    arguments, keywords = program.example_inputs or ((), {})
    values = [*arguments, *keywords.values()]
    if len(values) != len(names) or not all(isinstance(value, torch.Tensor) for value in values):
        raise InputError("the ExportedProgram must keep its example inputs, and take tensors only; export it again")
    first = dict(zip(names, values, strict=True))
    fixed = [name for name, value in first.items() if _is_fixed(program, name)]
    if fixed:
        raise InputError(
            f"the ExportedProgram has fixed the batch of {', '.join(fixed)}; export it again with "
            "dynamic_shapes={name: {0: torch.export.Dim('batch')}} for every input"
        )
    inner, taken = program.module(), list(keywords)

    def module(**inputs: torch.Tensor) -> Any:
        named = {keyword: inputs.pop(name) for keyword, name in zip(taken, names[len(arguments) :], strict=True)}
        return inner(*inputs.values(), **named)

    return program, module, first, _other(first, {})


def _is_fixed(program: Any, name: str) -> bool:
    (node,) = (node for node in program.graph.nodes if node.op == "placeholder" and node.name == name)
    shape = node.meta["val"].shape
    return len(shape) == 0 or isinstance(shape[0], int)


def _module(job: dict[str, Any]) -> tuple[torch.nn.Module, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    made = made_by(job, job["base"])
    module, examples = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, torch.nn.Module):
        raise InputError(_not_a_module(module, job))
    module.eval()
    names = _forward_names(module)
    if examples is None:
        first, second = _made_examples(job["inputs"], names, ROWS, 0), _made_examples(job["inputs"], names, ROWS + 1, 1)
    else:
        first = _given_examples(examples, names)
        second = _other(first, {name: tuple(axes) for name, axes in job["dynamic"].items()})
    return module, first, second


def _not_a_module(made: Any, job: dict[str, Any]) -> str:
    if hasattr(made, "fit") and hasattr(made, "predict"):
        return f'{job["named"]} returns {type(made).__name__}, a scikit-learn estimator: set framework = "sklearn"'
    return (
        f"{job['named']} returns {type(made).__name__}; expected a torch.nn.Module, or a pair of one and its example "
        "inputs {name: tensor}"
    )


def _forward_names(module: torch.nn.Module) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(module.forward).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in kinds]


def _made_examples(wanted: dict[str, Any], names: list[str], rows: int, case: int) -> dict[str, torch.Tensor]:
    if not wanted:
        raise InputError(
            "the factory returns a module without example inputs: return (module, {name: tensor}), or give the inputs "
            f"in the recipe, [edge.source.inputs.{names[0] if names else 'x'}] with shape and datatype; forward takes "
            f"{', '.join(names) or 'nothing'}"
        )
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise InputError(f"source.inputs: forward takes {', '.join(names) or 'nothing'}, and no {', '.join(unknown)}")
    source = torch.Generator().manual_seed(case)
    ordered = [name for name in names if name in wanted]
    return {name: _made_example(name, wanted[name], rows, FREE_SIZE - 2 * case, source) for name in ordered}


def _made_example(name: str, wanted: dict[str, Any], rows: int, free: int, source: torch.Generator) -> torch.Tensor:
    if wanted["datatype"] not in _TYPES:
        raise InputError(f"source.inputs.{name}: torch has no type for {wanted['datatype']}; use {', '.join(_TYPES)}")
    kind, low, high = _TYPES[wanted["datatype"]], wanted["low"], wanted["high"]
    shape = [rows, *(free if dim == -1 else dim for dim in wanted["shape"][1:])]
    if not kind.is_floating_point:
        return torch.randint(int(low or 0), int(2 if high is None else high), shape, generator=source).to(kind)
    if low is None and high is None:
        return torch.randn(shape, generator=source).to(kind)
    low, high = (0.0 if low is None else low), (1.0 if high is None else high)
    return (low + (high - low) * torch.rand(shape, generator=source)).to(kind)


def _given_examples(examples: Any, names: list[str]) -> dict[str, torch.Tensor]:
    if isinstance(examples, torch.Tensor):
        examples = (examples,)
    if isinstance(examples, tuple | list):
        examples = dict(zip(names, examples, strict=False))
    if not isinstance(examples, Mapping) or not examples:
        raise InputError(f"the factory's examples are {type(examples).__name__}; expected {{name: tensor}}")
    first = {}
    for name, value in examples.items():
        if name not in names:
            raise InputError(
                f"the factory's example {name!r} is no argument of forward, which takes {', '.join(names)}"
            )
        tensor = torch.as_tensor(value)
        if tensor.ndim == 0:
            raise InputError(f"the factory's example {name!r} is a single number; dimension 0 must be the batch")
        first[name] = torch.cat([tensor] * ROWS) if len(tensor) == 1 else tensor
    if len({len(value) for value in first.values()}) > 1:
        raise InputError("the factory's examples differ in dimension 0, the batch; give each the same number of rows")
    return {name: first[name] for name in names if name in first}


def _other(first: Mapping[str, torch.Tensor], dynamic: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Return inputs with other values, one row more, and free dimensions one shorter."""
    second = {}
    for name, value in first.items():
        changed = value * 0.75 if value.dtype.is_floating_point else value
        changed = torch.cat([changed.flip(0), value[:1]])
        for axis in dynamic.get(name, ()):
            if axis >= value.ndim:
                raise InputError(f"source.dynamic.{name}: there is no dimension {axis} in {list(value.shape)}")
            changed = changed.narrow(axis, 0, max(1, changed.shape[axis] - 1))
        second[name] = changed.contiguous()
    return second


def _dynamic_shapes(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> dict[str, dict[int, Any]]:
    """Name the batch, so that fixing it is an error; other sizes that the examples vary are free, too."""
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    return {
        name: {0: batch}
        | {
            axis: torch.export.Dim.AUTO
            for axis in range(1, value.ndim)
            if second[name].shape[axis] != value.shape[axis]
        }
        for name, value in first.items()
    }


def _output_names(outputs: Mapping[str, torch.Tensor], wanted: list[str], inputs: Mapping[str, Any]) -> list[str]:
    if wanted and len(wanted) != len(outputs):
        raise InputError(f"source.outputs: {len(wanted)} names, but the model has {len(outputs)}: {', '.join(outputs)}")
    return [f"{name}_output" if name in inputs else name for name in wanted or outputs]


def _write(
    model: Any, inputs: dict[str, torch.Tensor], shapes: Any, outputs: list[str], opset: int, path: Path
) -> None:
    options: dict[str, Any] = {"dynamo": True, "verbose": False, "output_names": outputs, "optimize": True}
    if opset:
        options["opset_version"] = opset
    try:
        if shapes is None:
            exported = torch.onnx.export(model, **options)
        else:
            exported = torch.onnx.export(
                model, (), kwargs=inputs, dynamic_shapes=shapes, input_names=list(inputs), **options
            )
        exported.save(str(path), external_data=True)
    except Exception as error:
        raise InputError(_export_failure(error)) from error


def _export_failure(error: BaseException) -> str:
    """Say what failed: the first cause in its own words, the line of the model that made it, and what usually helps."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    reason = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    _, found, rest = text.partition("The following call raised this error:")
    where = " at " + " ".join(rest.split("\n\n")[0].split()) if found else ""
    advice = ""
    if "data-dependent" in text:
        advice = "; control flow that depends on values cannot be exported: use torch.where, or torch.cond"
    elif "Constraints violated" in text or "specialized" in text:
        advice = "; the model fixes a size that must stay free (the batch is dimension 0 of every input)"
    elif "onnx" in text.lower() and "dispatch" in text.lower():
        advice = "; torch's exporter has no ONNX form of that operator: replace it, or try another opset"
    return f"torch cannot export the model: {type(error).__name__}: {reason[:600]}{where[:400]}{advice}"


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms would load torch's compiler for it


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ.setdefault("TORCH_LOGS", "")
    serve(export)
