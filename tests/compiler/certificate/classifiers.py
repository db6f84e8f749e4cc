"""The choice for a classifier, from its logits and the classes that were answered."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compiler.certificate import score_choice
from compiler.certificate.columns import CertifyData, Integers
from compiler.certificate.score_choice import Choice
from compiler.recipe.certificate_section import CertificateSection
from penstock.policy.confidence import Kind
from penstock.policy.decoding import Decoder


def choose(
    outputs: NDArray[np.floating],
    edge: Integers,
    cloud: Integers,
    labels: Integers | None,
    kind: Kind,
    promise: CertificateSection,
    *,
    groups: NDArray[np.str_] | None = None,
    learned: NDArray[np.float64] | None = None,
    rows_to_certify: int | None = None,
) -> Choice:
    """Choose, with a score of its own that was learnt on these rows where ``learned`` is given."""
    score_choice.check_labels(promise.harm, labels)
    data = CertifyData(
        scores=np.zeros(len(outputs)),
        edge_predictions=edge,
        cloud_predictions=cloud,
        labels=labels if promise.harm == "labels" else None,
        groups=groups,
    )
    return score_choice.choose(
        {"y": outputs} if learned is None else {"y": outputs, "probe": learned},
        data,
        Decoder(output="y", kind=kind, probe="" if learned is None else "probe"),
        promise,
        classes=cloud if labels is None else labels,
        is_learned=learned is not None,
        rows_to_certify=rows_to_certify,
    )
