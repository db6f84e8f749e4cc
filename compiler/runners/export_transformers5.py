"""A Hugging Face directory as an ONNX file by transformers' own exporter, with the original's answers.

Runs in toolchain ``transformers5``. Code that a directory brings along is never run. Does not judge the export: the
caller compares.
"""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import onnx_ir
import pretrained
import torch
import transformers
from export_cases import Plain, answers, save
from protocol import InputError, progress, serve, short
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

SIZES = ((2, 16), (3, 11))  # rows and tokens of the examples
AUDIO_SAMPLES = 16_000


def export(job: dict[str, Any]) -> dict[str, Any]:
    """Export as the job says; writes model.onnx and cases below ``job["out"]``."""
    torch.manual_seed(job["seed"])
    out = Path(job["out"])
    progress(0.05, "loading the model")
    model = _load(job)
    progress(0.3, "asking the original")
    cases = []
    for index, (rows, tokens) in enumerate(SIZES):
        torch.manual_seed(index)
        inputs = _examples(model, rows, tokens)
        cases.append(save(out / f"case{index}.npz", inputs, answers(Plain(model), inputs)))
    progress(0.4, "exporting")
    config = OnnxConfig(dynamic=True, opset_version=job["opset"] or None)
    try:
        exported = OnnxExporter().export(model, _examples(model, *SIZES[0]), config=config)
    except Exception as error:
        raise InputError(f"transformers cannot export {type(model).__name__}: {_cause(error)}") from error
    onnx_ir.save(exported.program, str(out / "model.onnx"), external_data="model.onnx.data")
    progress(1.0, "exported")
    return {"model": "model.onnx", "cases": cases, "exporter": "transformers' own exporter"}


def _load(job: dict[str, Any]) -> Any:
    kind = getattr(transformers, job["architecture"], None)
    if kind is None:
        raise InputError(f"{job['directory']}: this transformers has no class {job['architecture']!r}")
    try:
        model, missing = pretrained.load(kind, job["directory"])
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{job['directory']}: transformers cannot load it: {_cause(error)}") from error
    if missing:
        raise InputError(
            f"{job['directory']} has no weights for {', '.join(missing[:4])} of "
            f"{job['architecture']}; the files are incomplete, or made for another class"
        )
    return model.eval()


def _examples(model: Any, rows: int, tokens: int) -> dict[str, torch.Tensor]:
    """Return examples for what ``forward`` takes first: tokens, pixels, or sound.

    Raises:
        InputError: it takes something else.
    """
    takes, config = inspect.signature(model.forward).parameters, model.config
    if "input_ids" in takes:
        mask = torch.ones(rows, tokens, dtype=torch.int64)
        mask[-1, tokens // 2 :] = 0  # a mask that the export ignores would show
        inputs = {"input_ids": torch.randint(0, config.vocab_size, (rows, tokens)), "attention_mask": mask}
        if "token_type_ids" in takes and getattr(config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = torch.randint(0, config.type_vocab_size, (rows, tokens))
        return inputs
    if "pixel_values" in takes:
        size = getattr(config, "image_size", 224)
        height, width = size if isinstance(size, tuple | list) else (size, size)
        return {"pixel_values": torch.randn(rows, getattr(config, "num_channels", 3), height, width)}
    if "input_values" in takes:
        return {"input_values": torch.randn(rows, AUDIO_SAMPLES)}
    raise InputError(
        f"{type(model).__name__} takes {', '.join(list(takes)[:6])}; this exporter makes examples for input_ids, "
        'pixel_values and input_values only; set toolchain = "optimum"'
    )


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return short(error)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve(export)
