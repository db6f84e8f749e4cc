"""What a student is trained to make small. Every loss is a mean over rows of logits [rows, classes]."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(student, teacher, classes) -> loss; ``classes`` [rows] are labels, or the teacher's answers where there are none."""


def distilling(temperature: float, alpha: float) -> Loss:
    """Return alpha * cross-entropy + (1 - alpha) * T^2 * KL(teacher at T || student at T).

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531; T^2 keeps the
    size of the soft targets' gradients while T changes.
    """

    def loss(student: torch.Tensor, teacher: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        wanted = functional.log_softmax(teacher / temperature, dim=1)
        given = functional.log_softmax(student / temperature, dim=1)
        soft = functional.kl_div(given, wanted, reduction="batchmean", log_target=True) * temperature**2
        if alpha == 0:
            return soft
        return alpha * functional.cross_entropy(student, classes) + (1 - alpha) * soft

    return loss


def gatekeeper(weight: float) -> Loss:
    """Return weight * cross-entropy where the student is right + (1 - weight) * KL(student || uniform) where it is
    wrong.

    Source: Rabanser et al., "Gatekeeper: Improving Model Cascades Through Confidence Tuning", arXiv 2502.19335: sure
    where it is right and unsure where it is wrong, so that a threshold on its confidence defers the wrong ones.
    """

    def loss(student: torch.Tensor, teacher: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        log_p = functional.log_softmax(student, dim=1)
        right = student.argmax(dim=1) == classes
        sure = -log_p.gather(1, classes[:, None])[:, 0]
        unsure = (log_p.exp() * log_p).sum(dim=1) + math.log(student.shape[1])
        return torch.where(right, weight * sure, (1 - weight) * unsure).mean()

    return loss


def labels_alone() -> Loss:
    """Return the cross-entropy with the labels; the teacher no longer counts."""

    def loss(student: torch.Tensor, teacher: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(student, classes)

    return loss
