"""Fine-tunes a quantized graph with its rounding in the loop, for ``compiler.passes.int8_qat``; in toolchain ``torch``.

Learns the answers of the float model. What it ends with is never worse on the validation rows than what it began with:
otherwise that is given back.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import distill_losses as losses
import numpy as np
import torch
from distill_training import VALIDATION_BATCH, Examples, Limits, Phase, Training, answers, seed_everything
from protocol import InputError, progress, serve, short
from qat_program import Logarithm, Program
from torch import nn

PHASE = "quantization-aware"


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Train as the job says; writes the values, and the answers to the validation rows."""
    settings = job["settings"]
    torch.set_num_threads(settings["threads"])
    torch.set_deterministic_debug_mode("error")
    seed_everything(settings["seed"])
    program = Program(job["program"], _arrays(job["constants"]), _arrays(job["values"]))
    model: nn.Module = Logarithm(program) if job["is_softmax"] else program
    examples = _examples(job)
    loss = losses.distilling(settings["temperature"], 0.0)
    before = _loss(model, examples, loss)
    begun = {name: value.clone() for name, value in model.state_dict().items()}
    phase = Phase(name=PHASE, epochs=settings["epochs"], lr=settings["lr"], loss=loss)
    limits = Limits(
        **{name: settings[name] for name in ("batch_size", "patience", "seed", "max_seconds", "checkpoint_s")}
    )
    key = f"{job['key']} torch {torch.__version__}"
    training = Training(model, [phase], examples, limits, checkpoint=Path(job["checkpoint"]), key=key)
    note = training.resume()
    training.run()
    progress(1.0, "rounding")
    account = training.account()
    after = account["curve"][account["best_epoch"] - 1]["validation_loss"]
    if not after < before:
        model.load_state_dict(begun)
    values = {name: value.detach().numpy() for name, value in program.values().items()}
    np.savez(job["trained"], **{str(at): values[name] for at, name in enumerate(values)})
    np.save(job["said"], answers(program, examples))
    return {**account, "names": list(values), "before": before, "after": min(before, after), "note": note}


def _arrays(described: dict[str, Any]) -> dict[str, np.ndarray]:
    with np.load(described["file"], allow_pickle=False) as held:
        return {name: held[str(at)] for at, name in enumerate(described["names"])}


def _examples(job: dict[str, Any]) -> Examples:
    def array(file: str) -> np.ndarray:
        return np.load(file, mmap_mode="r", allow_pickle=False)

    teacher = array(job["teacher"])
    return Examples(
        inputs=[array(file) for file in job["inputs"]],
        teacher=teacher,
        classes=np.asarray(teacher.argmax(axis=1)).astype(np.int64),
        train=array(job["train"]),
        validation=array(job["validation"]),
    )


def _loss(model: nn.Module, examples: Examples, loss: losses.Loss) -> float:
    """Return the validation loss before the first step, in the batches in which training computes it."""
    total = 0.0
    for start in range(0, len(examples.validation), VALIDATION_BATCH):
        inputs, teacher, classes = examples.batch(examples.validation[start : start + VALIDATION_BATCH])
        try:
            with torch.no_grad():
                total += loss(model(*inputs), teacher, classes).item() * len(teacher)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"quantization-aware training cannot run the quantized student: {short(error)}") from error
    return total / len(examples.validation)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve(train)
