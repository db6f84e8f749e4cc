"""The modules that distillation works with: made by a factory, from a Hugging Face config, or from a teacher's layers.

Owns that a model is called by the names of its inputs and answers with one tensor [rows, classes], whatever its forward
looks like. Imported by the runners beside it; needs torch, and transformers for Hugging Face models only.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from protocol import InputError, short
from torch import nn
from torch_factories import made_by

MAX_UNIT = 4  # modules that repeat together: Linear, norm, activation, dropout


class Scorer(nn.Module):
    """A model as a function of its inputs in a fixed order, giving logits [rows, classes]."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._names = list(names)
        self._by_name = takes_names(model, names)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        if self._by_name:
            return logits_of(self.model(**dict(zip(self._names, inputs, strict=True))))
        return logits_of(self.model(*inputs))


class Served(nn.Module):
    """A scorer whose output is like its teacher's: logits or probabilities, in the same type."""

    def __init__(self, scorer: nn.Module, kind: str, datatype: str) -> None:
        super().__init__()
        self.scorer = scorer
        self._is_softmax = kind == "probabilities"
        self._type = {"FP16": torch.float16, "FP64": torch.float64}.get(datatype, torch.float32)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        logits = self.scorer(*inputs)
        return (torch.softmax(logits, dim=1) if self._is_softmax else logits).to(self._type)


def takes_names(model: nn.Module, names: Sequence[str]) -> bool:
    """Say whether forward has an argument of each input's name; otherwise inputs go by position."""
    parameters = inspect.signature(model.forward).parameters
    return all(name in parameters for name in names)


def logits_of(answer: Any) -> torch.Tensor:
    """Return the tensor in what a forward returns: itself, ``.logits``, ``["logits"]``, or the first of several."""
    if isinstance(answer, torch.Tensor):
        return answer
    if hasattr(answer, "logits"):
        return answer.logits
    if isinstance(answer, dict):
        return answer["logits"] if "logits" in answer else next(iter(answer.values()))
    if isinstance(answer, tuple | list) and answer and isinstance(answer[0], torch.Tensor):
        return answer[0]
    raise InputError(
        f"forward returns {type(answer).__name__}; expected a tensor [rows, classes], or an object with .logits"
    )


def load(described: dict[str, Any], base: str) -> nn.Module:
    """Load a teacher with its weights: a factory's module or a Hugging Face directory."""
    if described["kind"] == "factory":
        return from_factory(described, base)
    return from_directory(Path(described["path"]))


def from_factory(described: dict[str, Any], base: str) -> nn.Module:
    made = made_by(described, base)
    if isinstance(made, tuple) and made:
        made = made[0]  # a pair of a module and its example inputs, as export takes it
    if not isinstance(made, nn.Module):
        raise InputError(f"{described['named']} returns {type(made).__name__}; expected a torch.nn.Module")
    return made.float()


def from_directory(path: Path) -> nn.Module:
    """Load a Hugging Face classifier with its weights; nothing is fetched."""
    config = _config(path / "config.json")
    try:
        return _auto(config).from_pretrained(path, local_files_only=True, attn_implementation="eager").float()
    except Exception as error:
        raise InputError(f"{path}: transformers cannot load it as a classifier: {short(error)}") from error


def from_config(file: Path, classes: int) -> nn.Module:
    """Make a Hugging Face classifier with new weights and ``classes`` outputs."""
    config = _config(file)
    config.num_labels = classes
    try:
        return _auto(config).from_config(config, attn_implementation="eager").float()
    except Exception as error:
        raise InputError(f"{file}: transformers makes no classifier of it: {short(error)}") from error


def _config(file: Path) -> Any:
    from transformers import AutoConfig

    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        kind = settings.pop("model_type")
        return AutoConfig.for_model(kind, **settings)
    except KeyError:
        raise InputError(f"{file}: no model_type in it; expected a Hugging Face config.json") from None
    except Exception as error:
        raise InputError(f"{file}: not a Hugging Face config that this transformers knows: {short(error)}") from error


def _auto(config: Any) -> Any:
    """Choose the head by the architecture that the config names; sequences where it names none."""
    import transformers

    named = " ".join(config.architectures or [])
    kind = "Image" if "ImageClassification" in named else "Audio" if "Audio" in named else "Sequence"
    return getattr(transformers, f"AutoModelFor{kind}Classification")


def with_fewer_layers(teacher: nn.Module, keep_every: int) -> tuple[nn.Module, str]:
    """Copy the teacher with every ``keep_every``-th of its repeated layers; return it and a note that says which.

    The repeated layers are the longest stretch of a ModuleList or Sequential in which one module, or a few together,
    come again with the same class and the same shapes of weights. (DistilBERT, arXiv 1910.01108, starts its student
    from every second layer of its teacher.)
    """
    holder = nn.Module()
    holder.teacher = teacher  # the teacher itself may be the container
    name, container, start, unit, count = _longest_stretch(holder)
    if count < 2:
        raise InputError(
            "the teacher has no repeated layers to drop: no ModuleList or Sequential in it holds the same block twice; "
            "write the student as a factory"
        )
    kept = list(range(0, count, keep_every))
    children = list(container.children())
    chosen = [child for index in kept for child in children[start + index * unit : start + (index + 1) * unit]]
    remaining = [*children[:start], *chosen, *children[start + count * unit :]]
    parent, _, last = name.rpartition(".")
    replaced = nn.ModuleList(remaining) if isinstance(container, nn.ModuleList) else nn.Sequential(*remaining)
    setattr(holder.get_submodule(parent), last, replaced)
    config = getattr(teacher, "config", None)
    if config is not None and getattr(config, "num_hidden_layers", None) == count:
        config.num_hidden_layers = len(kept)
    return holder.teacher, f"kept layers {', '.join(map(str, kept))} of the {count} in {name.removeprefix('teacher.')}"


def _longest_stretch(teacher: nn.Module) -> tuple[str, nn.Module, int, int, int]:
    """Return (name, container, first child, children a unit, units): the stretch with the most weights that repeats."""
    best: tuple[int, tuple[str, nn.Module, int, int, int]] = (0, ("", teacher, 0, 1, 0))
    for name, container in teacher.named_modules():
        if type(container) not in (nn.ModuleList, nn.Sequential):
            continue
        signs = [_sign(child) for child in container.children()]
        for unit in range(1, MAX_UNIT + 1):
            for start in range(len(signs) - 2 * unit + 1):
                count = _repeats(signs, start, unit)
                weights = sum(weight for _, _, weight in signs[start : start + count * unit])
                if count >= 2 and weights > best[0]:
                    best = (weights, (name, container, start, unit, count))
    return best[1]


def _repeats(signs: list[Any], start: int, unit: int) -> int:
    count = 1
    while signs[start + count * unit : start + (count + 1) * unit] == signs[start : start + unit]:
        count += 1
    return count


def _sign(module: nn.Module) -> tuple[str, tuple[Any, ...], int]:
    shapes = tuple((name, tuple(value.shape)) for name, value in module.state_dict().items())
    return type(module).__qualname__, shapes, sum(value.numel() for value in module.parameters())


def source_digest(model: nn.Module) -> str:
    """Return the digest of the files that define the model's classes and of its weights as they are now: what a
    checkpoint belongs to.
    """
    hasher = hashlib.sha256()
    files = set()
    for part in model.modules():
        try:
            files.add(inspect.getsourcefile(type(part)) or "")
        except (TypeError, OSError):
            continue
    for file in sorted(files):
        if file and Path(file).is_file():
            hasher.update(Path(file).read_bytes())
    for name, value in model.state_dict().items():
        hasher.update(name.encode())
        hasher.update(value.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()
