"""The promise as a recipe states it: its ``[certificate]`` table, and how one promise is divided among claims.

Pure. Decides what a level of the promise is worth: how much of ``delta`` each claim gets. Whether the data support
it is ``compiler.certificate.learn_then_test``.
"""

from __future__ import annotations

import math

import msgspec

from penstock.artifact.certificates import MAX_LEVELS, Harm
from penstock.errors import CalibrationError, ConfigError
from penstock.policy.confidence import TOKEN_SCORES
from penstock.policy.decoding import SCORES

AUTO = "auto"


class CertificateSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The promise to be certified; see ``penstock.artifact.certificates.Certificate``. Where the data have groups
    (``data.group_by``), it is made to each of them.

    Attributes:
        max_harm: share of answers that the cascade may get wrong where the cloud alone is right; or a list of such
            shares, each certified in the same artifact. Agents use the first unless they are told another.
        delta: chance that the promise, all of its levels together, does not hold.
        harm: counted by ``labels`` (edge wrong and cloud right), or as ``disagreement`` with the cloud.
        score: confidence score, or "auto" for the one that keeps most on the split for such choices. "probe" is a head
            that is trained on that split and becomes part of the variant's graph (or an output of your own model, where
            ``model.probe_output`` names one); "auto" takes a head only where it is shown to keep more than the others.
        check_cloud: refuse a promise whose cloud is not shown to be better than always giving the most frequent answer;
            against such a cloud nothing can be lost. False certifies it, and its first words say so.
    """

    max_harm: float | tuple[float, ...] = 0.02
    delta: float = 0.05
    harm: Harm = "labels"
    score: str = AUTO
    check_cloud: bool = True

    @property
    def levels(self) -> tuple[float, ...]:
        """List every promised ``max_harm``, the default first."""
        return self.max_harm if isinstance(self.max_harm, tuple) else (self.max_harm,)

    @property
    def level_delta(self) -> float:
        """Compute the share of ``delta`` that each level gets.

        An operator picks a level after reading all of them, so all must hold at once: by the union bound that has
        probability at least 1 - delta when each has 1 - delta / levels. Dividing costs few samples, since a claim needs
        log(1 / delta) of them: three levels at 2% need 203 examples without harm instead of 149.
        """
        return self.delta / len(self.levels)


def check(section: CertificateSection, *, where: str = "") -> None:
    """Check the values of the table.

    Args:
        where: put in front of messages, such as ``recipe.toml: ``.

    Raises:
        ConfigError: a score that does not exist, a share out of range, too many levels or the same twice.
    """
    levels, name = section.levels, f"{where}certificate."
    if section.score != AUTO and section.score not in SCORES and section.score not in TOKEN_SCORES:
        known = ", ".join((AUTO, *SCORES, *TOKEN_SCORES))
        raise ConfigError(f"{name}score: unknown score {section.score!r}; known: {known}")
    if not 1 <= len(levels) <= MAX_LEVELS or len(set(levels)) != len(levels):
        raise ConfigError(f"{name}max_harm: {list(levels)} given, expected 1 to {MAX_LEVELS} different shares")
    for level in levels:
        if not 0 < level < 1:
            raise ConfigError(f"{name}max_harm: {level} given, expected a share between 0 and 1 (0.02 is 2%)")
    if not 0 < section.delta <= 0.5:
        raise ConfigError(f"{name}delta: {section.delta} given, expected a share above 0 and at most 0.5")


def share_of_promise(max_harm: float, delta: float, rungs: int) -> tuple[float, float]:
    """Return (max_harm, delta) for the certificate of each rung below the cloud, so that the whole cascade keeps the
    promise.

    Rung i answers when every cheaper rung was unsure and its own score is at least its threshold; the cloud answers
    the rest. The cascade does harm where the rung that answers is wrong and the cloud is right. Then that rung was sure
    and harmful, so the cascade's harm lies within the union over rungs of "rung i is sure and harmful". Rung i's own
    certificate against the cloud bounds the probability of exactly that event, over *all* requests and not only those
    that reach it, by max_harm / rungs; the sum over rungs is at most max_harm (Boole). Each certificate fails with
    probability at most delta / rungs over its certifying sample, so one or more fail with probability at most delta,
    whether or not they share the sample. Nothing is assumed about how the rungs depend on each other.

    Args:
        rungs: models below the cloud: 1 for the usual cascade of two, which gets the whole promise.

    Raises:
        CalibrationError: no rung, or max_harm or delta not strictly between 0 and 1.
    """
    if rungs < 1:
        raise CalibrationError(f"rungs: {rungs} given; a cascade has at least one model below the cloud")
    for name, value in (("max_harm", max_harm), ("delta", delta)):
        if not (math.isfinite(value) and 0 < value < 1):
            raise CalibrationError(f"{name}: {value!r} is not strictly between 0 and 1")
    return max_harm / rungs, delta / rungs


def for_rung(section: CertificateSection, rungs: int) -> CertificateSection:
    """Return the promise of one rung of a cascade with ``rungs`` below the cloud: every level and delta by its share.

    Raises:
        CalibrationError: as :func:`share_of_promise`.
    """
    if rungs == 1:
        return section
    shares = tuple(share_of_promise(level, section.delta, rungs)[0] for level in section.levels)
    return msgspec.structs.replace(section, max_harm=shares, delta=section.delta / rungs)
