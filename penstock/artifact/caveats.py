"""What has to be said before a promise that says little. Values and words; when it applies is
``compiler.certificate.hollow``."""

from __future__ import annotations

from typing import Literal

import msgspec

CaveatKind = Literal["cloud-guesses", "same-answers", "cloud-no-better", "cloud-worthless"]


class Caveat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What has to be said before a promise that says little, as seen on the ``n`` certifying examples.

    Attributes:
        kind: the cloud is not shown to be better than guessing (a sign test at 5%, or one answer to all); the edge
            gives the cloud's answer to every example; the cloud is not shown to be right more often than the edge (or
            to be better more often than worse); or an opinion gives the cloud's answers nothing.
        edge_right: answers of the edge that are right; None without labels, and where an opinion grades them.
        cloud_right: the cloud's.
        guess_right: those of whoever always gives the most frequent answer; None where answers are no classes.
    """

    kind: CaveatKind
    n: int
    edge_right: int | None = None
    cloud_right: int | None = None
    guess_right: int | None = None

    def words(self) -> str:
        """Return it as part of a sentence."""
        right = "" if self.edge_right is None else f" (right: edge {self.edge_right}, cloud {self.cloud_right})"
        match self.kind:
            case "cloud-guesses" if self.cloud_right is None:
                return f"the cloud gives the same answer to all {self.n} certifying examples"
            case "cloud-guesses":
                guessed = "" if self.guess_right is None else f", the most frequent answer alone in {self.guess_right}"
                return (
                    f"the cloud is not shown to be better than guessing: right in {self.cloud_right} of {self.n} "
                    f"certifying examples{guessed}"
                )
            case "same-answers":
                return (
                    f"edge and cloud agree on all {self.n} certifying examples, so that escalating gains nothing{right}"
                )
            case "cloud-worthless":
                return f"the metric is not shown to find anything good in the cloud's answers to {self.n} examples"
            case "cloud-no-better":
                return f"{self.n} certifying examples do not show that escalating gains accuracy{right}"
