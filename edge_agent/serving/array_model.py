"""A variant that answers with arrays: its engine behind a queue, and a score and a decision for each of its rows.

Runs in this process. What its answers may be trusted with is ``edge_agent.serving.hosting``'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_agent.policy import cascade
from edge_agent.policy.cascade import CascadeMode, Decision
from edge_agent.serving.local_queue import LocalQueue
from penstock.artifact.certificates import Certificate
from penstock.artifact.manifests import VariantSpec, decoder_of
from penstock.artifact.variant_files import VariantFiles
from penstock.errors import InvalidInput
from penstock.hosting import embedding, loading
from penstock.hosting.embedding import Embedding
from penstock.hosting.loading import Loaded
from penstock.policy.decoding import Answers
from penstock.process.machine import usable_cpus
from penstock.wire.tensors import Array, TensorSpec, with_sizes_of


class Standing(Protocol):
    """What a model's answers may be trusted with now."""

    @property
    def certificate(self) -> Certificate | None: ...
    @property
    def mode(self) -> CascadeMode: ...


def load(spec: VariantSpec, files: VariantFiles, *, threads: int) -> tuple[Loaded, Embedding | None]:
    """Load a variant that has to prove itself, and what makes its rows of texts. Blocks: call it from a thread.

    Raises:
        ArtifactError and others: as :func:`penstock.hosting.loading.load` and :func:`penstock.hosting.embedding.load`.
    """
    loaded = loading.load(spec, files, threads=threads, cpus=usable_cpus())
    try:
        return loaded, embedding.load(spec, files, max_rows=loaded.max_batch)
    except BaseException:
        loaded.engine.close()
        raise


class ArrayModel:
    """One variant.

    Attributes:
        embedding: makes its rows of texts; None where it takes none.
        decoder: reads and compares answers.
        can_split: rows can be merged and taken apart, so a request may be answered row by row.
        queue: what waits for the engine.
    """

    def __init__(
        self,
        spec: VariantSpec,
        loaded: Loaded,
        standing: Standing,
        *,
        max_queue_rows: int,
        texts: Embedding | None = None,
    ) -> None:
        self.engine, self.embedding = loaded.engine, texts
        self.can_split = loaded.timing.is_batchable
        self.decoder = decoder_of(spec)
        self._standing = standing
        self.queue = LocalQueue(loaded, self.judge, max_queue_rows=max_queue_rows, hidden=spec.probe)
        self.inputs: tuple[TensorSpec, ...] = with_sizes_of(loaded.engine.inputs, spec.inputs)
        self.outputs = tuple(one for one in loaded.engine.outputs if one.name != spec.probe)

    def __repr__(self) -> str:
        return f"ArrayModel({self.queue!r})"

    def judge(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], rows: int
    ) -> tuple[list[float], Decision]:
        """Score and decide about the rows of one batch.

        An output that is missing, empty or of another row count scores NaN for every row, which is never kept. So does
        an input row with NaN or infinity: an integer model turns it into finite numbers, and may sound sure of them.
        """
        scores = self._scores(outputs, rows)
        is_finite = cascade.finite_inputs(inputs, rows)
        if is_finite is not None:
            scores = np.where(is_finite, scores, np.nan)
        certificate = self._standing.certificate
        threshold = certificate.threshold if certificate else float("nan")
        decision = cascade.decide(
            scores,
            mode=self._standing.mode,
            threshold=threshold,
            is_finite=() if is_finite is None else is_finite.tolist(),
        )
        return scores.tolist(), decision

    def answers(self, outputs: Mapping[str, Array], rows: Sequence[int]) -> Answers:
        """Read what some rows of the scored output say; they are copied, or the whole batch would be kept alive."""
        return self.decoder.answers({name: outputs[name][list(rows)] for name in self.decoder.answered_by})

    def _scores(self, outputs: Mapping[str, Array], rows: int) -> NDArray[np.float64]:
        one, default = self._standing.certificate, next(iter(self.decoder.scores), "")
        name, temperature = (one.score, one.temperature) if one else (default, 1.0)
        try:
            scores = self.decoder.score(outputs, name=name, temperature=temperature)
        except (KeyError, InvalidInput):
            return np.full(rows, np.nan)
        return scores if len(scores) == rows else np.full(rows, np.nan)

    async def close(self) -> None:
        """Refuse what is queued, wait for the batch that runs, release the engine; idempotent."""
        await self.queue.close()
