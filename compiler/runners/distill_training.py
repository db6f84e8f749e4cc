"""Training as a sequence of phases, resumable after any step: same job, same weights, however often it was interrupted.

Nothing that decides the weights is kept outside the state: the order of the rows follows from (seed, phase, epoch),
dropout from (seed, step), the learning rate from the step. Time decides only when a checkpoint is written, and whether
``max_seconds`` is over.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distill_checkpoint
import numpy as np
import torch
from distill_losses import Loss
from protocol import InputError, progress
from torch import nn

WARM_UP = 0.05  # share of a phase's steps in which the learning rate rises
LOWEST_RATE = 0.01  # of the highest, at the end of a phase
WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 5.0
VALIDATION_BATCH = 256
SAY_EVERY_S = 0.2
_STRIDE = 1_000_003  # steps of one seed never meet those of the next


@dataclass(frozen=True)
class Examples:
    """Memory-mapped inputs, the teacher's logits [rows, classes], classes [rows], and who uses which rows."""

    inputs: Sequence[np.ndarray]
    teacher: np.ndarray
    classes: np.ndarray
    train: np.ndarray
    validation: np.ndarray

    def batch(self, rows: np.ndarray) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        inputs = [torch.from_numpy(np.ascontiguousarray(array[rows])) for array in self.inputs]
        return inputs, torch.from_numpy(self.teacher[rows]), torch.from_numpy(self.classes[rows])


@dataclass(frozen=True)
class Phase:
    """One stretch of training with its own loss and its own rise and fall of the learning rate."""

    name: str
    epochs: int
    lr: float
    loss: Loss


@dataclass(frozen=True)
class Limits:
    """When to stop, and when to save."""

    batch_size: int
    patience: int
    seed: int
    max_seconds: float
    checkpoint_s: float


class Training:
    """Trains ``model`` in place; afterwards it holds the best weights of the last phase."""

    def __init__(
        self,
        model: nn.Module,
        phases: Sequence[Phase],
        examples: Examples,
        limits: Limits,
        *,
        checkpoint: Path,
        key: str,
    ) -> None:
        self._model, self._phases, self._examples, self._limits = model, phases, examples, limits
        self._path, self._key = checkpoint, key
        self._steps = max(1, math.ceil(len(examples.train) / limits.batch_size))
        self._state: dict[str, Any] = {
            "phase": 0, "epoch": 0, "step": 0, "loss_sum": 0.0, "curve": [], "stops": [], "best_epoch": 0,
            "best_loss": math.inf, "stale": 0, "seconds": 0.0, "best": None, "note": "",
            "taken": None, "taken_area": math.inf, "taken_epoch": 0,
        }  # fmt: skip
        self._optimizer = self._new_optimizer()
        self._saved_at = self._ticked_at = time.monotonic()
        self._said_at = 0.0

    @property
    def note(self) -> str:
        """Say what a person should know of the phases, or ""."""
        return self._state["note"]

    def account(self) -> dict[str, Any]:
        """Return the curve, the epoch with the best weights, counted over all phases from 1, and why the last one
        ended.
        """
        state = self._state
        return {"curve": state["curve"], "best_epoch": state["best_epoch"], "stop": state["stops"][-1]}

    def resume(self) -> str:
        """Take up the state on disk, if there is one of this very training; a note for people, or ""."""
        kept, note = distill_checkpoint.load(self._path, self._key)
        if kept is None:
            return note
        self._model.load_state_dict(kept.pop("model"))
        self._optimizer.load_state_dict(kept.pop("optimizer"))
        self._state = kept
        return ""

    def run(self) -> None:
        """Train to the end, whatever has been done already."""
        state = self._state
        while state["phase"] < len(self._phases):
            phase = self._phases[state["phase"]]
            while state["epoch"] < phase.epochs and not self._is_over():
                self._epoch(phase)
            self._finish(phase)

    def _epoch(self, phase: Phase) -> None:
        state = self._state
        batches = self._batches(state["phase"], state["epoch"])
        self._model.train()
        while state["step"] < len(batches):
            self._step(phase, batches[state["step"]])
            state["step"] += 1
            self._tick(phase)
            if self._is_out_of_time():
                if state["best"] is not None:
                    return
                break  # not one epoch fitted: judge what there is
        self._judge(phase)

    def _step(self, phase: Phase, rows: np.ndarray) -> None:
        state = self._state
        done = state["epoch"] * self._steps + state["step"]
        rate = rate_at(done, phase.epochs * self._steps, phase.lr)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        seed_everything(self._limits.seed * _STRIDE + state["phase"] * 500_009 + done)
        inputs, teacher, classes = self._examples.batch(rows)
        loss = phase.loss(self._model(*inputs), teacher, classes)
        if not math.isfinite(value := loss.item()):
            raise InputError(
                f"the loss became {value} in epoch {state['epoch'] + 1}, step {state['step'] + 1} ({phase.name}), at a "
                f"learning rate of {rate:.2g}; lower distill.lr (now {phase.lr:g}), and see that inputs are scaled to "
                "about -1 to 1 before the first layer"
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), MAX_GRADIENT_NORM)
        self._optimizer.step()
        state["loss_sum"] += value * len(rows)

    def _judge(self, phase: Phase) -> None:
        """End an epoch: compute the validation loss, and see whether this one is the best so far."""
        state = self._state
        loss, correct = self._validation(phase.loss)
        if not math.isfinite(loss):
            raise InputError(f"the validation loss became {loss} in epoch {state['epoch'] + 1}; lower distill.lr")
        done = min((state["epoch"] + 1) * self._steps, phase.epochs * self._steps) - 1
        seen = sum(len(rows) for rows in self._batches(state["phase"], state["epoch"])[: state["step"]])
        state["curve"].append(
            {
                "phase": phase.name, "epoch": state["epoch"] + 1, "train_loss": state["loss_sum"] / max(seen, 1),
                "validation_loss": loss, "correct": correct, "lr": rate_at(done, phase.epochs * self._steps, phase.lr),
            }
        )  # fmt: skip
        if loss < state["best_loss"]:
            state["best_loss"], state["stale"], state["best_epoch"] = loss, 0, len(state["curve"])
            state["best"] = {name: value.clone() for name, value in self._model.state_dict().items()}
        else:
            state["stale"] += 1
        state["epoch"] += 1
        state["step"], state["loss_sum"] = 0, 0.0
        self._tick(phase)

    def _validation(self, loss: Loss) -> tuple[float, float]:
        """Mean loss of the validation rows, and the share that is answered right."""
        total, right, rows = 0.0, 0, 0
        for said, teacher, classes in self._validation_answers():
            total += loss(said, teacher, classes).item() * len(said)
            right += int((said.argmax(dim=1) == classes).sum())
            rows += len(said)
        return total / rows, right / rows

    def _validation_answers(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        self._model.eval()
        rows = self._examples.validation
        for start in range(0, len(rows), VALIDATION_BATCH):
            inputs, teacher, classes = self._examples.batch(rows[start : start + VALIDATION_BATCH])
            with torch.no_grad():
                yield self._model(*inputs), teacher, classes

    def _finish(self, phase: Phase) -> None:
        """Go back to the phase's best weights, and begin the next phase."""
        state = self._state
        over = self._is_out_of_time()
        state["stops"].append("time" if over else "epochs" if state["epoch"] >= phase.epochs else "patience")
        if state["best"] is not None:
            self._model.load_state_dict(state["best"])
        self._take(phase)
        if state["phase"] + 1 < len(self._phases) and not over:
            state.update(best_loss=math.inf, stale=0)  # the next phase's first epoch replaces these best weights
        state.update(phase=len(self._phases) if over else state["phase"] + 1, epoch=0, step=0, loss_sum=0.0)
        self._optimizer = self._new_optimizer()
        self._save()

    def _take(self, phase: Phase) -> None:
        """Keep what the phase made, unless what was there before it defers better on the validation rows."""
        state = self._state
        area = self._harm_area()
        if state["taken"] is None or area < state["taken_area"]:
            taken = {name: value.clone() for name, value in self._model.state_dict().items()}
            state.update(taken=taken, taken_area=area, taken_epoch=state["best_epoch"])
            return
        self._model.load_state_dict(state["taken"])
        state.update(best=state["taken"], best_epoch=state["taken_epoch"])
        state["note"] = (
            f"{phase.name}: did not help (area under the harm curve {area:.4f} after it, {state['taken_area']:.4f} "
            "before, on the validation rows); the student before it is taken"
        )

    def _harm_area(self) -> float:
        """Return the area under the curve of kept harm against coverage, from the surest validation row to the least
        sure.

        Harmful is a row that the student gets wrong and the teacher right, as in a certificate. With every wrong row
        counted this is AUGRC (Traub et al., arXiv 2407.01032).
        """
        sure, harmful = [], []
        for said, teacher, classes in self._validation_answers():
            sure.append(torch.softmax(said.double(), dim=1).max(dim=1).values)
            harmful.append((said.argmax(dim=1) != classes) & (teacher.argmax(dim=1) == classes))
        order = torch.argsort(torch.cat(sure), descending=True, stable=True)
        harm = torch.cumsum(torch.cat(harmful)[order].double(), dim=0)
        return float(harm.mean() / len(harm))

    def _is_over(self) -> bool:
        patience = self._limits.patience
        return (patience > 0 and self._state["stale"] >= patience) or self._is_out_of_time()

    def _is_out_of_time(self) -> bool:
        return self._state["seconds"] > self._limits.max_seconds

    def _batches(self, phase: int, epoch: int) -> list[np.ndarray]:
        """Yield every row once, in batches that differ by at most one row: a batch norm cannot be given a single last
        row.
        """
        order = np.random.default_rng([self._limits.seed, phase, epoch]).permutation(self._examples.train)
        return np.array_split(order, self._steps)

    def _tick(self, phase: Phase) -> None:
        now, state = time.monotonic(), self._state
        state["seconds"] += now - self._ticked_at
        self._ticked_at = now
        is_due = now - self._saved_at >= self._limits.checkpoint_s
        if is_due:
            self._save()
        if is_due or now - self._said_at >= SAY_EVERY_S:
            self._said_at = now
            progress(self._share(), self._words(phase))

    def _share(self) -> float:
        whole = sum(phase.epochs for phase in self._phases)
        before = sum(phase.epochs for phase in self._phases[: self._state["phase"]])
        return (before + self._state["epoch"] + self._state["step"] / self._steps) / whole

    def _words(self, phase: Phase) -> str:
        words = f"{phase.name}: epoch {self._state['epoch'] + 1} of {phase.epochs}"
        if not self._state["curve"]:
            return words
        last = self._state["curve"][-1]
        return f"{words}, validation loss {last['validation_loss']:.4g}, {last['correct']:.1%} right"

    def _save(self) -> None:
        whole = {**self._state, "model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}
        distill_checkpoint.save(self._path, self._key, whole)
        self._saved_at = time.monotonic()

    def _new_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self._model.parameters(), lr=1e-3, weight_decay=WEIGHT_DECAY)


def answers(model: nn.Module, examples: Examples) -> np.ndarray:
    """Return what a model says of the validation rows."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(examples.validation), VALIDATION_BATCH):
            inputs, _, _ = examples.batch(examples.validation[start : start + VALIDATION_BATCH])
            parts.append(model(*inputs).numpy())
    return np.concatenate(parts)


def rate_at(step: int, steps: int, highest: float) -> float:
    """Return the learning rate: a linear rise over the first steps, then half a cosine down (Loshchilov and Hutter,
    arXiv 1608.03983).
    """
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return highest * (step + 1) / rise
    share = (step - rise) / max(1, steps - rise)
    return highest * (LOWEST_RATE + (1 - LOWEST_RATE) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
