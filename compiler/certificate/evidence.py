"""The evidence document: from it anybody can recompute every figure of a certificate, at any time.

Decides the document's form, how the certificate that names it is built, and which figures differ when they are
computed again. It holds one row an example: scores, both models' classes, labels, groups, clusters by number (who they
are is nobody's business), grades where somebody's opinion gave some, and the thresholds that were tested. It holds no
inputs: what the examples were cannot be read from it, and an opinion cannot be asked again. Devices never fetch it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from compiler.certificate import hollow
from compiler.certificate.columns import CertifyData, Graded, Integers, check
from compiler.certificate.learn_then_test import Certified, Promised, certify, which_test
from penstock.artifact.blobs import digest_of
from penstock.artifact.caveats import Caveat
from penstock.artifact.certificates import (
    MAX_GROUPS,
    Certificate,
    Level,
    Opinion,
    Over,
    RefusedLevel,
    Subject,
    Test,
)
from penstock.errors import ArtifactError, CalibrationError, InvalidInput
from penstock.wire import tensors
from penstock.wire.tensors import Array

MAX_ROWS = 1_000_000
MAX_BYTES = 64 * 1024**2
"""Of a document: a million rows with labels and groups are less than half of it."""

_MAX_NAME_BYTES = 1024  # one long name would be as long for every row

_METHODS: Mapping[Test, str] = {
    "binomial": "fixed-sequence testing, exact binomial p-values (Learn then Test, arXiv 2110.01052)",
    "binomial-each": "fixed-sequence testing, an exact binomial p-value of every group at the whole of delta "
    "(Learn then Test, arXiv 2110.01052)",
    "betting": "fixed-sequence testing, one bet against the average harm, of every group at the whole of delta "
    "(Waudby-Smith and Ramdas, arXiv 2010.09686; Learn then Test, arXiv 2110.01052)",
    "betting-clusters": "fixed-sequence testing, one bet against the average of the clusters' shares (Waudby-Smith and "
    "Ramdas, arXiv 2010.09686; Learn then Test, arXiv 2110.01052)",
}

_SCORES, _EDGE, _CLOUD, _LABELS = "scores", "edge", "cloud", "labels"
_GROUPS, _GROUP_NAMES, _CLUSTERS, _THRESHOLDS = "groups", "group_names", "clusters", "thresholds"
_AGREED = "agreed"
_GRADES: Mapping[str, str] = {"edge": "edge_grades", "cloud": "cloud_grades", "alike": "alike_grades"}
_REQUIRED = (_SCORES, _EDGE, _CLOUD, _THRESHOLDS)
_OPTIONAL = (_LABELS, _GROUPS, _GROUP_NAMES, _AGREED, _CLUSTERS, *_GRADES.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Say what the certifying examples are, beside their columns.

    Attributes:
        digest: of the certifying split.
        group_by: what the groups are called, "" without groups.
        cluster_by: what the clusters are called, "" without clusters.
        rows: how many there were, where equal ones were counted once; 0 where none was.
    """

    digest: str
    group_by: str = ""
    cluster_by: str = ""
    rows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """Hold a decoded document: the examples as they were certified, and the thresholds that were tested."""

    data: CertifyData
    thresholds: tuple[float, ...]


def encode(data: CertifyData, thresholds: Sequence[float]) -> bytes:
    """Write the document (``penstock.wire.tensors.pack``); the same examples in the same order give the same bytes.

    Args:
        data: as it was certified: without labels where harm is disagreement, with groups where each got the promise.
        thresholds: the grid, strictest first.

    Raises:
        CalibrationError: more than MAX_ROWS rows, or malformed columns.
    """
    check(data)
    if len(data.scores) > MAX_ROWS:
        raise CalibrationError(
            f"{len(data.scores)} certifying examples, more than the {MAX_ROWS} that evidence is kept of; a sample is "
            "enough",
            needed=MAX_ROWS,
        )
    named: dict[str, Array] = {
        _SCORES: data.scores.astype(np.float64),
        _EDGE: _compact(data.edge_predictions),
        _CLOUD: _compact(data.cloud_predictions),
    }
    if data.labels is not None:
        named[_LABELS] = _compact(data.labels)
    if data.groups is not None:
        names, members = np.unique(data.groups, return_inverse=True)
        named[_GROUPS], named[_GROUP_NAMES] = _compact(members), names.astype(object)
    if data.agreed is not None:
        named[_AGREED] = data.agreed
    if data.clusters is not None:
        named[_CLUSTERS] = _compact(np.unique(data.clusters, return_inverse=True)[1])
    if data.graded is not None:
        named |= {column: getattr(data.graded, name) for name, column in _GRADES.items()}
    named[_THRESHOLDS] = np.asarray(thresholds, dtype=np.float64)
    return tensors.pack(named)


def decode(data: bytes) -> Evidence:
    """Read the document, and refuse one that nothing could be certified on.

    Raises:
        ArtifactError: not an evidence document, or one with columns that cannot be certified on.
    """
    try:
        named = tensors.unpack(data)
    except InvalidInput as error:
        raise ArtifactError(f"evidence: {error.message}") from error
    missing = [name for name in _REQUIRED if name not in named]
    unknown = [name for name in named if name not in (*_REQUIRED, *_OPTIONAL)]
    if missing or unknown:
        raise ArtifactError(f"evidence: missing columns {missing}, unknown columns {unknown}")
    columns = CertifyData(
        scores=_floats(named[_SCORES]),
        edge_predictions=_integers(named[_EDGE]),
        cloud_predictions=_integers(named[_CLOUD]),
        labels=_integers(named[_LABELS]) if _LABELS in named else None,
        groups=_names(named) if _GROUPS in named or _GROUP_NAMES in named else None,
        agreed=np.asarray(named[_AGREED], dtype=np.bool_) if _AGREED in named else None,
        clusters=_integers(named[_CLUSTERS]) if _CLUSTERS in named else None,
        graded=_graded(named),
    )
    try:
        check(columns)
    except CalibrationError as error:
        raise ArtifactError(f"evidence: {error.message}") from error
    return Evidence(data=columns, thresholds=tuple(_floats(named[_THRESHOLDS]).ravel().tolist()))


def bind(
    found: Promised,
    subject: Subject,
    sample: Sample,
    *,
    score: str,
    temperature: float,
    evidence: bytes = b"",
    serial: int = 1,
    correct: str = "",
    caveat: Caveat | None = None,
    opinion: Opinion | None = None,
) -> Certificate:
    """Make the certificate of what was found, for exactly these variants, this preprocessing and this data.

    Args:
        evidence: the document it names, b"" where none is kept.
        serial: one more than the last certificate's of this edge variant.
        correct: by what an answer was right, "" where it was equal to its label.
        caveat: what has to be said before the promise.
        opinion: whose grades the evidence has; None without any.
    """
    levels = tuple(_level(level) for level in found.levels)
    return Certificate(
        model=subject.model,
        edge_digest=subject.edge_digest,
        cloud_digest=subject.cloud_digest,
        preprocessing_digest=subject.preprocessing_digest,
        harm=found.default.harm,
        score=score,
        temperature=temperature,
        **msgspec.structs.asdict(levels[0]),
        group_by=sample.group_by,
        levels=levels,
        refused=tuple(
            RefusedLevel(max_harm=item.max_harm, delta=item.delta, reason=item.reason, needed=item.needed)
            for item in found.refused
        ),
        data_digest=sample.digest,
        evidence_digest=digest_of(evidence) if evidence else "",
        serial=serial,
        method=_METHODS[found.test],
        test=found.test,
        correct=correct or msgspec.UNSET,
        over=_over(found, sample),
        cluster_by=sample.cluster_by,
        rows=sample.rows if found.default.n != sample.rows else 0,
        caveat=caveat,
        opinion=opinion,
    )


def _over(found: Promised, sample: Sample) -> Over:
    if found.test == "betting-clusters":
        return "clusters"
    return "distinct rows" if sample.rows > found.default.n else "rows"


def differences(certificate: Certificate, evidence: Evidence) -> list[str]:
    """List what a certificate says and its evidence does not; [] when every figure is found again.

    Every level is certified again on the stored examples, by the test and at the delta it names. Counts and thresholds
    must be equal; intervals to nine digits, since another machine's logarithms differ in the last. Only numbers are
    compared, never the words of a refusal: a certificate outlives the release that worded it.
    """
    harm = "disagreement" if evidence.data.labels is None else "labels"
    found = [] if harm == certificate.harm else [f"harm: {certificate.harm} certified, the evidence is of {harm}"]
    found += _test_differences(certificate, evidence)
    caveats = [hollow.caveat(evidence.data, are_classes=are_classes) for are_classes in (True, False)]
    if certificate.caveat is not None and certificate.caveat not in caveats:
        found.append("caveat: not what the evidence says of edge and cloud")
    again = partial(
        certify, evidence.data, thresholds=evidence.thresholds, is_delta_divided=certificate.test == "binomial"
    )
    for level in certificate.levels or (_own_level(certificate),):
        found += [f"level {level.max_harm:g}: {text}" for text in _level_differences(level, again)]
    for refused in certificate.refused:
        try:
            again(max_harm=refused.max_harm, delta=refused.delta)
            found.append(f"level {refused.max_harm:g}: refused, but the evidence supports it")
        except CalibrationError as error:
            # the reason is prose: a later release may word it better, and the number says the same thing
            if error.needed != refused.needed:
                numbers = f"{refused.needed} certified, {error.needed} recomputed"
                found.append(f"level {refused.max_harm:g}: refused, needed: {numbers}")
    return found


def _test_differences(certificate: Certificate, evidence: Evidence) -> list[str]:
    """Compare the test with the evidence; before there were others, "binomial" was of groups too."""
    made = which_test(evidence.data)
    known = {"binomial", made} if made == "binomial-each" else {made}
    found = [] if certificate.test in known else [f"test: {certificate.test} certified, the evidence is for {made}"]
    if (certificate.opinion is None) != (evidence.data.graded is None):
        held = "no grades" if evidence.data.graded is None else "grades"
        found.append(f"opinion: {certificate.opinion and certificate.opinion.metric}, the evidence has {held}")
    if (certificate.over == "clusters") != (evidence.data.clusters is not None):
        found.append(f"over: {certificate.over} certified, the evidence has {_clusters(evidence.data)}")
    rows = len(evidence.data.scores)
    if certificate.over == "clusters" and certificate.rows not in (0, rows):
        found.append(f"rows: {certificate.rows} certified, the evidence has {rows}")
    return found


def _clusters(data: CertifyData) -> str:
    return "no clusters" if data.clusters is None else f"{len(np.unique(data.clusters))} clusters"


def _level_differences(level: Level, again: Callable[..., Certified]) -> list[str]:
    try:
        found = _level(again(max_harm=level.max_harm, delta=level.delta))
    except CalibrationError as error:
        return [f"the evidence does not support it: {error.message}"]
    return _differences(msgspec.to_builtins(level), msgspec.to_builtins(found))


def _differences(said: Mapping[str, Any], found: Mapping[str, Any], prefix: str = "") -> list[str]:
    listed = []
    for name, value in said.items():
        other = found.get(name, ())
        if name == "groups":
            listed += _group_differences(value, other)
        elif isinstance(value, float) and isinstance(other, float):
            if not math.isclose(value, other, rel_tol=1e-9, abs_tol=1e-12):
                listed.append(f"{prefix}{name}: {value:.9g} certified, {other:.9g} recomputed")
        elif value != other:
            listed.append(f"{prefix}{name}: {value} certified, {other} recomputed")
    return listed


def _group_differences(said: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> list[str]:
    names, others = [group["name"] for group in said], [group["name"] for group in found]
    if names != others:
        return [f"groups: {names} certified, {others} in the evidence"]
    return [
        text
        for one, other in zip(said, found, strict=True)
        for text in _differences(one, other, prefix=f"group {one['name']!r}: ")
    ]


def _level(found: Certified) -> Level:
    values = {field.name: getattr(found, field.name) for field in fields(found)}
    values["harm_mean"] = msgspec.UNSET if found.harm_mean is None else found.harm_mean
    return Level(**{name: values[name] for name in Level.__struct_fields__})


def _own_level(certificate: Certificate) -> Level:
    """Return the only level of a certificate that lists none, as they were written before there were several."""
    return Level(**{name: getattr(certificate, name) for name in Level.__struct_fields__})


def _compact(column: Integers) -> Array:
    """Return the same integers in the smallest type that travels: a class is a byte, not eight."""
    low, high = int(column.min()), int(column.max())
    for dtype in (np.uint8, np.uint16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return column.astype(dtype)
    return column.astype(np.int64)


def _floats(column: Array) -> NDArray[np.float64]:
    if column.dtype != np.float64:
        raise ArtifactError(f"evidence: a column of {column.dtype}, expected float64")
    return column.astype(np.float64)


def _graded(named: Mapping[str, Array]) -> Graded | None:
    held = {name: _floats(named[column]) for name, column in _GRADES.items() if column in named}
    if held and len(held) < len(_GRADES):
        raise ArtifactError(f"evidence: {', '.join(_GRADES.values())} come together; {len(held)} are there")
    return Graded(**held) if held else None


def _integers(column: Array) -> Integers:
    if column.dtype.kind not in "iu":
        raise ArtifactError(f"evidence: a column of {column.dtype}, expected integers")
    return column.astype(np.int64)


def _names(named: Mapping[str, Array]) -> NDArray[np.str_]:
    members, names = named.get(_GROUPS), named.get(_GROUP_NAMES)
    if members is None or names is None or names.dtype != object or not 1 <= names.size <= MAX_GROUPS:
        raise ArtifactError(f"evidence: groups need their members' numbers and a list of 1 to {MAX_GROUPS} names")
    numbers = _integers(members)
    if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(names)):
        raise ArtifactError(f"evidence: group numbers from {numbers.min()} to {numbers.max()} of {len(names)} names")
    try:
        words = np.array([name[:_MAX_NAME_BYTES].decode() for name in names.ravel().tolist()])
    except UnicodeDecodeError as error:
        raise ArtifactError(f"evidence: a group's name is no text: {error}") from error
    return np.asarray(words[numbers])
