"""Answers of an original model for example inputs, saved for the comparison with its export. No runner itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from protocol import InputError


def answers(model: Any, inputs: Mapping[str, torch.Tensor]) -> Any:
    """Return what ``model(**inputs)`` returns, and check that it is the same when it is asked twice.

    Raises:
        InputError: it differs from call to call: there is nothing to compare an export with.
    """
    with torch.no_grad():
        first, second = model(**clones(inputs)), model(**clones(inputs))
    for name, value in tensors(first).items():
        again = tensors(second).get(name)
        if again is None or again.shape != value.shape or not torch.equal(again.nan_to_num(), value.nan_to_num()):
            raise InputError(
                f"output {name!r} is different each time the model is asked the same; remove randomness and state from "
                "forward (dropout stays active when a module is put back into training mode)"
            )
    return first


class Plain:
    """A Hugging Face model's answer as a dict of its tensors; caches and the like are left out."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        result = self._model(**inputs, return_dict=True)
        return {name: value for name, value in result.items() if isinstance(value, torch.Tensor)}


def tensors(result: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a result, in order: a tensor is "output", items of a tuple are "output_0", ..., keys are
    kept.

    Raises:
        InputError: something else is in it.
    """
    if isinstance(result, torch.Tensor):
        named: dict[str, Any] = {"output": result}
    elif isinstance(result, Mapping):
        named = {str(name): value for name, value in result.items() if value is not None}
    elif isinstance(result, tuple | list):
        named = {f"output_{index}": value for index, value in enumerate(result) if value is not None}
    else:
        raise InputError(f"the model returns {type(result).__name__}; expected a tensor, a tuple or a dict of tensors")
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            raise InputError(
                f"output {name!r} of the model is {type(value).__name__}; expected tensors only (wrap the module in "
                "one that returns them)"
            )
    return named


def clones(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return copies, so that a model which writes into its inputs spoils nothing."""
    return {name: value.clone() for name, value in inputs.items()}


def save(path: Path, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> str:
    """Write one case; returns its file name.

    Raises:
        InputError: a tensor of a type that cannot be compared.
    """
    arrays = {f"inputs/{name}": _array(name, value) for name, value in inputs.items()}
    np.savez(path, **arrays, **{f"outputs/{name}": _array(name, value) for name, value in outputs.items()})
    return path.name


def _array(name: str, value: torch.Tensor) -> Any:
    try:
        return value.detach().cpu().numpy()
    except TypeError as error:
        raise InputError(f"{name!r} is {value.dtype}; convert the model to float32 (module.float())") from error
