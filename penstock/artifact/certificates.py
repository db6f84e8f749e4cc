"""The certificate as data: what was promised, for which digests, with what evidence.

Decides only whether a certificate fits the variants at hand, and may be used. How one is earned is
``compiler.certificate.learn_then_test``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from penstock import wording
from penstock.artifact.caveats import Caveat
from penstock.errors import ArtifactError, CertificateMismatch, ConfigError
from penstock.policy import confidence, decoding

MEDIA_TYPE = "application/vnd.penstock.certificate.v1+json"

MAX_LEVELS = 8
MAX_GROUPS = 64

Test = Literal["binomial", "binomial-each", "betting", "betting-clusters"]
"""How a threshold passes: an exact binomial test of all examples at delta (``binomial``), or of every group's examples,
each at the whole of delta (``binomial-each``), or a bet against the average harm of examples whose harm is a number
from 0 to 1 (``betting``), or against the average of the clusters' shares of harm (``betting-clusters``); both of all,
or of every group's. A ``binomial`` with groups gave each group delta / groups."""

Over = Literal["rows", "distinct rows", "clusters"]
"""What the promise is an average over: requests; requests of which equal ones count once; or clusters of requests that
belong together, each counted once however many it has."""

Harm = Literal["labels", "disagreement"]
"""What counts as harm for a kept answer: edge wrong and cloud right (labels), or edge != cloud (disagreement). By an
:class:`Opinion` it is by how much: what the edge's answer is worth less than the cloud's by the right answer (labels),
or what it lacks to be worth as much as the cloud's by the cloud's (disagreement)."""


class Opinion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose opinion says how good an answer is: a function of the recipe's author, which gives each one 0 to 1.

    Attributes:
        metric: how the recipe names it, ``module:function`` or ``file.py:function``.
        digest: ``sha256:<hex>`` of its source.
    """

    metric: str
    digest: str

    @property
    def function(self) -> str:
        """Return the function's own name."""
        return self.metric.rpartition(":")[2]

    def words(self) -> str:
        """Return it as part of a sentence."""
        return f"{self.metric} ({self.digest[:19]})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a certificate is about, by digest; "" for what is missing, which no certificate fits.

    Attributes:
        edge_digest: manifest of the variant that answers first.
        cloud_digest: manifest of the variant that it escalates to.
        preprocessing_digest: of the canonical JSON of the preprocessing that both expect.
    """

    model: str
    edge_digest: str
    cloud_digest: str
    preprocessing_digest: str


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Evidence within one group: counts and coverage among its ``n`` examples at the level's threshold.

    Attributes:
        threshold: what this group alone would have allowed; the level's is the strictest of the groups'.
    """

    name: str
    n: int
    harm_count: int
    kept_count: int
    coverage: float
    threshold: float
    harm_mean: float | msgspec.UnsetType = msgspec.UNSET


class Level(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One promised ``max_harm`` with the threshold that keeps it; fields as in :class:`Certificate`."""

    max_harm: float
    delta: float
    threshold: float
    n: int
    harm_count: int
    kept_count: int
    coverage: float
    coverage_low: float
    coverage_high: float
    audit_max_harm: float
    groups: Annotated[tuple[Group, ...], msgspec.Meta(max_length=MAX_GROUPS)] = ()
    harm_mean: float | msgspec.UnsetType = msgspec.UNSET


class RefusedLevel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A level that was asked for and that the examples do not support; ``needed`` of them would, None if none would."""

    max_harm: float
    delta: float
    reason: str
    needed: int | None


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """With probability at least ``1 - delta`` over the certifying sample, keeping every answer whose score is at
    least ``threshold`` costs at most ``max_harm`` accuracy against always asking the cloud.

    Attributes:
        edge_digest: manifest digest of the variant that answers on the device.
        cloud_digest: manifest digest of the variant that answers above it.
        preprocessing_digest: of the canonical JSON of the preprocessing that both variants expect.
        score: name of the confidence score (``penstock.policy.decoding.SCORES``); ``temperature`` divides the logits
            first.
        n: certifying examples; ``harm_count`` of them harmful and ``kept_count`` kept at the threshold. Over clusters:
            their number, and of how many an example is.
        coverage: expected share answered on the device; ``coverage_low``/``coverage_high`` its 1 - delta interval.
        audit_max_harm: bound on P(kept and edge != cloud), the rate an audit without labels can watch in service.
            Equals ``max_harm`` when harm is disagreement; with labels it is the larger of ``max_harm`` and a
            Clopper-Pearson upper bound, Bonferroni-corrected over the thresholds looked at.
        groups: evidence by group of ``group_by``; the promise then holds within each of them. Empty for one over all.
        levels: every level of the promise, the default first; it is the one that ``threshold``, ``max_harm`` and their
            neighbours repeat. All levels hold at once with probability 1 - (the sum of their deltas). Empty in a
            certificate of one level written before there were several.
        refused: levels that were asked for and not certified.
        evidence_digest: of the document that every figure can be recomputed from; "" where none was kept.
        serial: 1 for the first certificate of an edge variant, the next number for each later one. The highest is used.
        method: how the threshold was found, in words.
        test: which test that was, so that it can be made again.
        correct: by what an answer was right, where answers are no classes: a metric with the least that it had to be,
            or a function of the recipe's author with the digest of its source.
        opinion: whose opinion grades answers, where harm is a number from 0 to 1; else not written.
        harm_mean: by that opinion, the harm of what is kept, averaged over all.
        over: what the promise is an average over.
        cluster_by: what examples belong to, over clusters.
        rows: certifying examples, where ``n`` counts something else; else 0.
        caveat: what has to be said before the promise; written only where there is something.
    """

    schema: Literal[1] = 1
    model: str
    edge_digest: str
    cloud_digest: str
    preprocessing_digest: str
    harm: Harm
    score: str
    temperature: float
    threshold: float
    max_harm: float
    delta: float
    n: int
    harm_count: int
    kept_count: int
    coverage: float
    coverage_low: float
    coverage_high: float
    audit_max_harm: float
    data_digest: str
    groups: Annotated[tuple[Group, ...], msgspec.Meta(max_length=MAX_GROUPS)] = ()
    group_by: str = ""
    levels: Annotated[tuple[Level, ...], msgspec.Meta(max_length=MAX_LEVELS)] = ()
    refused: Annotated[tuple[RefusedLevel, ...], msgspec.Meta(max_length=MAX_LEVELS)] = ()
    evidence_digest: str = ""
    serial: Annotated[int, msgspec.Meta(ge=1)] = 1
    method: str = "fixed-sequence testing, exact binomial p-values (Learn then Test, arXiv 2110.01052)"
    test: Test = "binomial"
    correct: str | msgspec.UnsetType = msgspec.UNSET
    over: Over = "rows"
    cluster_by: str = ""
    rows: int = 0
    caveat: Caveat | None = None
    opinion: Opinion | None = None
    harm_mean: float | msgspec.UnsetType = msgspec.UNSET

    @property
    def max_harms(self) -> tuple[float, ...]:
        """List every certified ``max_harm``, the default first."""
        return tuple(level.max_harm for level in self.levels) or (self.max_harm,)

    @property
    def largest_audit_max_harm(self) -> float:
        """Return the audit bound of the level that allows most: a fleet whose devices use several may show that."""
        return max((level.audit_max_harm for level in self.levels), default=self.audit_max_harm)

    def at(self, max_harm: float | None) -> Certificate:
        """Return this certificate with another of its levels as the one in use; None for the default.

        Raises:
            ConfigError: there is no such level; the message lists those there are, and why it was refused.
        """
        if max_harm is None or _same(max_harm, self.max_harm):
            return self
        for level in self.levels:
            if _same(max_harm, level.max_harm):
                return msgspec.structs.replace(self, **fields_of(level))
        why = next((f" ({r.reason})" for r in self.refused if _same(max_harm, r.max_harm)), "")
        have = ", ".join(f"{value:g}" for value in self.max_harms)
        raise ConfigError(f"max_harm {max_harm:g} is not certified for {self.model!r}{why}; certified: {have}")

    def promise(self) -> str:
        """Return the promise as one English sentence, which begins with what there is to be said against it."""
        first = "" if self.caveat is None else f"{self.caveat.words()}; "
        within = f" within each {self.group_by}" if self.groups else ""
        return (
            f"{first}with {wording.confidence(self.delta)} confidence, answering locally at {self.score} >= "
            f"{self.threshold:.4f}{self.decided} costs at most {wording.allowed(self.max_harm)} points of {self.cost} "
            f"against always asking the cloud{within}{self.average}"
        )

    @property
    def decided(self) -> str:
        """Say when an answer is decided about, where that is not when it is whole; begins with a comma and ends with
        one."""
        return ", decided before generation," if self.score in confidence.PROMPT_SCORES else ""

    @property
    def cost(self) -> str:
        """Say what is lost, and in whose opinion."""
        if self.opinion is None:
            return "accuracy"
        return f"quality, as {self.opinion.words()} grades answers by {self.compared_with},"

    @property
    def compared_with(self) -> str:
        """Say what answers are compared with."""
        return "the right answers" if self.harm == "labels" else "the cloud's answers"

    @property
    def average(self) -> str:
        """Say what the promise is an average over, where that is not simply requests; begins with a comma."""
        match self.over:
            case "rows":
                return ""
            case "distinct rows":
                return ", counting equal rows once"
            case "clusters":
                return f", on average over clusters by {self.cluster_by!r}, each counted once"

    @property
    def unit_name(self) -> str:
        """Name what ``n`` counts, for figures: "examples", "distinct examples" or "clusters"."""
        return {"rows": "examples", "distinct rows": "distinct examples", "clusters": "clusters"}[self.over]


def by_how_much(found: Certificate | Level | Group) -> str:
    """Say how harmful kept answers are on average, behind how many are; "" where none is graded, else with a comma."""
    if isinstance(found.harm_mean, msgspec.UnsetType):
        return ""
    return f", by {wording.points(found.harm_mean)} points on average over all"


_LATER = ("test", "over", "cluster_by", "rows", "caveat", "opinion")
"""Written only where they say something: a build from before there were these fields reads the others."""

_DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(Certificate)}


def fields_of(level: Level) -> dict[str, Any]:
    """Return a level's fields by name, which are a certificate's too."""
    return msgspec.structs.asdict(level)


def encode(certificate: Certificate) -> bytes:
    """Write canonical JSON; same certificate, same bytes."""
    plain = msgspec.to_builtins(certificate)
    for name in _LATER:
        if plain[name] == _DEFAULTS[name]:
            del plain[name]
    return msgspec.json.encode(plain, order="sorted")


def decode(data: bytes) -> Certificate:
    """Read a certificate.

    Raises:
        ArtifactError: not a certificate, or one of another schema.
    """
    try:
        certificate = msgspec.json.decode(data, type=Certificate)
    except msgspec.MsgspecError as error:
        raise ArtifactError(f"certificate: {error}") from error
    if certificate.levels:  # an agent that is told no level reads the fields, one that is told one reads the levels
        differ = [
            name for name, value in fields_of(certificate.levels[0]).items() if getattr(certificate, name) != value
        ]
        if differ:
            raise ArtifactError(f"certificate: {', '.join(differ)} are not those of its first level")
    return certificate


def check(certificate: Certificate, subject: Subject) -> None:
    """Compare what a certificate was issued for with what is at hand (invariant 5).

    Raises:
        CertificateMismatch: names every digest that differs.
    """
    pairs = {
        "edge variant": (certificate.edge_digest, subject.edge_digest),
        "cloud variant": (certificate.cloud_digest, subject.cloud_digest),
        "preprocessing": (certificate.preprocessing_digest, subject.preprocessing_digest),
    }
    wrong = [
        f"{what}: certified {want}, have {have or 'none'}"
        for what, (want, have) in pairs.items()
        if want != have or not have
    ]
    if wrong:
        raise CertificateMismatch(
            f"the certificate of {certificate.model!r} was issued for other digests ({'; '.join(wrong)}); "
            "it is not used and every answer is escalated. Certify this pair with 'penstock compile'."
        )


def usable(
    certificate: Certificate, subject: Subject, *, max_harm: float | None = None, probe: str = ""
) -> Certificate:
    """Check that a certificate may decide about this subject's answers; return it at the level asked for.

    Args:
        max_harm: the level; None for the certificate's default.
        probe: the variant's output that holds a score of its own; "" where it has none.

    Raises:
        CertificateMismatch: issued for other digests, or with a score that this release does not know or the variant
            does not have.
        ConfigError: it has no such level.
    """
    check(certificate, subject)
    if certificate.score in confidence.LEARNED_SCORES and not probe:
        raise CertificateMismatch(
            f"the certificate's score {certificate.score!r} is an output of the variant, and this variant has none"
        )
    known = (*decoding.SCORES, *confidence.TOKEN_SCORES)
    if certificate.score not in known:
        raise CertificateMismatch(
            f"the certificate's score {certificate.score!r} is not known here; known: {', '.join(known)}"
        )
    return certificate.at(max_harm)


def newest(found: Sequence[tuple[str, Certificate]]) -> tuple[str, Certificate] | None:
    """Choose the certificate, listed with its manifest's digest, that counts: the one with the highest serial.

    Args:
        found: of one edge variant, oldest first: of equal serials, the one that was attached or pushed later counts.
    """
    return max(reversed(found), key=lambda item: item[1].serial, default=None)


def _same(one: float, other: float) -> bool:
    """Say whether two shares are the same promise: 0.02 from a file and 2 / 100 from a sum."""
    return math.isclose(one, other, rel_tol=1e-9)
