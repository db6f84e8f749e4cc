"""A Hugging Face directory as an ONNX file by Optimum's exporter, with the original's answers for two batch sizes.

Runs in toolchain ``optimum``. Code that a directory brings along is never run. Does not judge the export: the
caller compares.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pretrained
import torch
from export_cases import Plain, answers, save, tensors
from optimum.exporters.onnx import onnx_export_from_model
from optimum.exporters.tasks import TasksManager
from protocol import InputError, progress, serve, short
from transformers import AutoConfig

FEATURES = "feature-extraction"
SIZES = ({"batch_size": 2, "sequence_length": 16}, {"batch_size": 3, "sequence_length": 11})


def export(job: dict[str, Any]) -> dict[str, Any]:
    """Export as the job says; writes model.onnx and cases below ``job["out"]``."""
    torch.manual_seed(job["seed"])
    out, task = Path(job["out"]), job["task"]
    progress(0.05, "loading the model")
    model = _load(job)
    onnx_config = _onnx_config(model, task)
    progress(0.3, "asking the original")
    cases = [_case(out, index, model, onnx_config) for index in range(len(SIZES))]
    progress(0.5, "exporting")
    try:
        onnx_export_from_model(
            model,
            out / "optimum",
            task=task,
            opset=job["opset"] or None,
            do_validation=False,  # the caller compares, with more than one size
            no_post_process=True,
        )
    except (ValueError, NotImplementedError, KeyError) as error:
        raise InputError(f"Optimum cannot export {model.config.model_type} for {task}: {short(error)}") from error
    made = sorted((out / "optimum").glob("*.onnx"))
    if len(made) != 1:
        names = ", ".join(path.name for path in made)
        raise InputError(
            f"Optimum made {len(made)} graphs ({names}) of this model; only models of one graph can be used"
        )
    progress(1.0, "exported")
    return {"model": f"optimum/{made[0].name}", "cases": cases, "exporter": "Optimum"}


def _load(job: dict[str, Any]) -> Any:
    directory, task = job["directory"], job["task"]
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        _check_task(config.model_type, task)
        kind = TasksManager.get_model_class_for_task(task, framework="pt", model_type=config.model_type)
        model, lacking = pretrained.load(kind, directory)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{directory}: transformers cannot load it for {task}: {short(error)}") from error
    # a pooler that feature-extraction does not export may be missing; a head with random weights would be a wrong model
    missing = [name for name in lacking if not name.startswith("pooler.") or task != FEATURES]
    if missing:
        raise InputError(
            f"{directory} has no weights for {', '.join(missing[:4])}, which task {task} needs; its class "
            f"{job['architecture']} is for another task, or the files are incomplete"
        )
    TasksManager.standardize_model_attributes(model, library_name="transformers")
    return model.eval()


def _check_task(model_type: str, task: str) -> None:
    known = TasksManager.get_supported_tasks_for_model_type(model_type, "onnx", library_name="transformers")
    if task not in known:
        raise InputError(f"Optimum exports {model_type} for {', '.join(sorted(known))}; not for {task!r}")


def _onnx_config(model: Any, task: str) -> Any:
    constructor = TasksManager.get_exporter_config_constructor(
        model=model, exporter="onnx", task=task, library_name="transformers"
    )
    return constructor(model.config)


def _case(out: Path, index: int, model: Any, onnx_config: Any) -> str:
    torch.manual_seed(index)
    inputs = onnx_config.rename_ambiguous_inputs(onnx_config.generate_dummy_inputs(framework="pt", **SIZES[index]))
    mask = inputs.get("attention_mask")
    if mask is not None and mask.ndim == 2:
        mask[-1, mask.shape[1] // 2 :] = 0  # a mask that the export ignores would show
    given = tensors(answers(Plain(model), inputs))
    wanted = list(onnx_config.outputs)
    named = given if set(wanted) <= set(given) else dict(zip(wanted, given.values(), strict=False))
    return save(out / f"case{index}.npz", inputs, {name: named[name] for name in wanted if name in named})


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve(export)
