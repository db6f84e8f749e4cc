"""The certifying examples before any is answered: what they are, and whether they can be enough. Pure.

What is too few is known as soon as the examples are read, and said then: not after minutes of calibration.
"""

from __future__ import annotations

from compiler.certificate import learn_then_test
from compiler.certificate.evidence import Sample
from compiler.data.dataset import Repeats, Split
from compiler.generation.prompts import PromptSet
from compiler.recipe.certificate_section import CertificateSection
from penstock.errors import CalibrationError


def sample_of(split: Split | PromptSet, repeats: Repeats, *, group_by: str) -> Sample:
    """Say of certifying examples what a certificate says of them."""
    return Sample(digest=split.digest, group_by=group_by, cluster_by=repeats.cluster_by, rows=split.stands_for)


def check_enough(split: Split | PromptSet, repeats: Repeats, promise: CertificateSection) -> None:
    """Check that examples can certify the level that agents use, if none of its examples is harmful.

    Raises:
        CalibrationError: it cannot; the message has the number that is missing, and what was found of equal rows.
    """
    try:
        learn_then_test.check_enough(
            len(split), split.groups, split.clusters, max_harm=promise.levels[0], delta=promise.level_delta
        )
    except CalibrationError as error:
        found = f". The data: {repeats.words}" if repeats.words else ""
        raise CalibrationError(f"{error.message.rstrip('.')}{found}", needed=error.needed) from error
