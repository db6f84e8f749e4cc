"""Grades of two models' answers, by a metric of the recipe's author: what a certificate of open text is made of.

Owns what is compared with what: with the right answers where harm is counted by them, else with the cloud's. The metric
itself is ``penstock.hosting.generation.text_metric``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from compiler.certificate.columns import Graded
from compiler.generation.prompts import PromptSet
from penstock.hosting.generation.text_metric import TextMetric

Progress = Callable[[float, str], None]
_SHOWN = 60


def grade(
    metric: TextMetric,
    prompts: PromptSet,
    edge: Sequence[str],
    cloud: Sequence[str],
    *,
    by_answers: bool,
    progress: Progress | None = None,
) -> Graded:
    """Grade the answers of both models to the same prompts.

    Args:
        edge: texts [N].
        cloud: texts [N].
        by_answers: compare with the right answers, which the prompts have; else the cloud's are worth 1.

    Raises:
        InvalidInput: the metric failed or gave no number from 0 to 1; for which row.
    """
    references = prompts.answers if by_answers else None
    alike, ours, theirs = np.empty((3, len(prompts)), dtype=np.float64)
    for row, (prompt, one, other) in enumerate(zip(prompts.prompts, edge, cloud, strict=True)):
        where = f"row {row} of {prompts.name} ({prompt[:_SHOWN]!r})"
        alike[row] = metric.grade(prompt, one, other, where=f"{where}, edge by cloud")
        if references is None:
            ours[row], theirs[row] = alike[row], 1.0
        else:
            ours[row] = metric.grade(prompt, one, references[row], where=f"{where}, edge")
            theirs[row] = metric.grade(prompt, other, references[row], where=f"{where}, cloud")
        if progress is not None:
            progress((row + 1) / len(prompts), f"graded {row + 1} of {len(prompts)}")
    return Graded(edge=ours, cloud=theirs, alike=alike)
