"""A Hugging Face encoder-decoder as ONNX parts by Optimum's exporter, with what the original generates greedily.

Runs in toolchain ``optimum``. Code that a directory brings along is never run. Joins nothing and judges nothing: the
caller makes one graph of the parts, and compares it.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pretrained
import torch
import transformers
from export_cases import save
from greedy_settings import beams_of, greedy_of
from optimum.exporters.onnx import onnx_export_from_model
from optimum.exporters.tasks import TasksManager
from protocol import InputError, progress, serve, short
from transformers import GenerationMixin

PARTS = {"encoder": "encoder_model", "first": "decoder_model", "following": "decoder_with_past_model"}
SIZES = ((3, 13), (5, 7))  # rows and tokens of the examples


def export(job: dict[str, Any]) -> dict[str, Any]:
    """Export as the job says; writes the parts and cases below ``job["out"]``."""
    torch.manual_seed(job["seed"])
    out, task = Path(job["out"]), job["task"]
    progress(0.05, "loading the model")
    model = _load(job)
    settings = model.generation_config.to_dict()
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    greedy = greedy_of(settings, job, positions=_positions(model), vocabulary=vocabulary)
    progress(0.2, "asking the original")
    cases = []
    for index, size in enumerate(SIZES):
        torch.manual_seed(index)
        inputs = _examples(model, *size)
        cases.append(save(out / f"case{index}.npz", inputs, _generated(model, inputs, greedy)))
    progress(0.4, "exporting")
    frames = {"nb_max_frames": 2 * model.config.max_source_positions} if "input_features" in inputs else {}
    try:
        onnx_export_from_model(
            model,
            out / "parts",
            task=f"{task}-with-past",
            opset=job["opset"] or None,
            do_validation=False,  # the caller compares what it makes of them
            no_post_process=True,  # merging the decoders would give them a branch for what is one loop here
            **frames,
        )
    except (ValueError, NotImplementedError, KeyError, RuntimeError) as error:
        raise InputError(f"Optimum cannot export {model.config.model_type} for {task}: {short(error)}") from error
    parts = {name: f"parts/{file}.onnx" for name, file in PARTS.items()}
    missing = [name for name in parts.values() if not (out / name).is_file()]
    if missing:
        made = ", ".join(sorted(path.name for path in (out / "parts").glob("*.onnx")))
        raise InputError(
            f"Optimum made {made} of {model.config.model_type}, which are not the parts of an encoder-decoder"
        )
    progress(1.0, "exported")
    return {"parts": parts, "greedy": greedy, "instead_of": beams_of(settings), "cases": cases, "exporter": "Optimum"}


def _load(job: dict[str, Any]) -> Any:
    directory, name = job["directory"], job["architecture"]
    kind = getattr(transformers, name, None)
    if kind is None or not issubclass(kind, GenerationMixin):
        raise InputError(f"{directory}: this transformers has no class {name!r} that generates")
    try:
        model, missing = pretrained.load(kind, directory)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"{directory}: transformers cannot load it: {short(error)}") from error
    if missing:
        raise InputError(
            f"{directory} has no weights for {', '.join(missing[:4])}, which {name} needs; the "
            "files are incomplete, or made for another class"
        )
    known = TasksManager.get_supported_tasks_for_model_type(
        model.config.model_type, "onnx", library_name="transformers"
    )
    if f"{job['task']}-with-past" not in known:
        raise InputError(
            f"Optimum exports {model.config.model_type} for {', '.join(sorted(known))}; not for {job['task']!r} with a "
            "cache, which one graph of encoder and decoder needs"
        )
    TasksManager.standardize_model_attributes(model, library_name="transformers")
    return model.eval()


def _positions(model: Any) -> int:
    """Return how many tokens a decoder can have; 0 where it knows positions only by their distance."""
    decoder = getattr(model.config, "decoder", model.config)
    for name in ("max_target_positions", "max_position_embeddings"):
        if isinstance(getattr(decoder, name, None), int):
            return int(getattr(decoder, name))
    return 0


def _examples(model: Any, rows: int, tokens: int) -> dict[str, torch.Tensor]:
    """Return examples for what the encoder takes: tokens of several lengths, pixels or features of sound.

    Raises:
        InputError: it takes something else.
    """
    config, name = getattr(model.config, "encoder", model.config), model.main_input_name
    if name == "input_ids":
        mask = torch.ones(rows, tokens, dtype=torch.int64)
        for row in range(rows):
            mask[row, max(1, tokens - 3 * row) :] = 0  # a mask that the export ignores would show
        return {"input_ids": torch.randint(0, config.vocab_size, (rows, tokens)) * mask, "attention_mask": mask}
    if name == "pixel_values":
        size = getattr(config, "image_size", 224)
        height, width = size if isinstance(size, tuple | list) else (size, size)
        return {name: torch.randn(rows, getattr(config, "num_channels", 3), height, width)}
    if name == "input_features":
        return {name: torch.randn(rows, config.num_mel_bins, 2 * config.max_source_positions)}
    raise InputError(f"{type(model).__name__} takes {name}; there are examples for tokens, pixels and features only")


def _generated(model: Any, inputs: dict[str, torch.Tensor], greedy: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return what the original's own search says: tokens and the probability of each, filled up to one length."""
    rows, prompt, length = len(next(iter(inputs.values()))), greedy["prompt"], greedy["max_new_tokens"]
    first = torch.tensor([prompt]).expand(rows, -1)
    with torch.no_grad():
        # the method that all models have: Whisper's own cuts and joins sound around it
        found = GenerationMixin.generate(
            model,
            **inputs,
            decoder_input_ids=first,
            do_sample=False,
            num_beams=1,
            max_new_tokens=length,
            return_dict_in_generate=True,
            output_scores=True,
        )
    said = found.sequences[:, len(prompt) :]
    sure = torch.stack([scores.softmax(-1).amax(-1) for scores in found.scores], 1)
    tokens, chances = torch.full((rows, length), greedy["pad"]), torch.zeros(rows, length)
    tokens[:, : said.shape[1]] = said
    for row in range(rows):
        ended = [place for place, token in enumerate(said[row].tolist()) if token in greedy["ends"]]
        count = ended[0] + 1 if ended else said.shape[1]
        chances[row, :count] = sure[row, :count]
    return {"token_ids": tokens, "token_probabilities": chances}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve(export)
