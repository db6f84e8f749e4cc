"""What changed between two artifacts: variants, certificates, evaluation, lock, preprocessing, labels.

Decides from documents that were read already; reads nothing itself. The evaluation and the lock are taken as plain
JSON: this room does not know the compiler's types, and an artifact may be of another version of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from penstock.artifact import manifests
from penstock.artifact.certificates import Certificate, by_how_much
from penstock.artifact.manifests import Variant, VariantSpec
from penstock.artifact.overview import Overview

Change = Literal["same", "changed", "added", "removed"]

_ABSENT = ""
_SPEC_FIELDS = (
    "engine", "provider", "precision", "score_output", "score_kind", "max_batch", "golden_tolerance", "inputs",
    "outputs", "labels", "preprocessing", "decoding",
)  # fmt: skip
_MAX_CHARS = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One thing in ``section`` that is the same, or was changed ``before`` -> ``after``; "" where it is absent."""

    section: str
    what: str
    change: Change
    before: str
    after: str


def compare(before: Overview, after: Overview) -> list[Line]:
    """Compare two artifacts; return every line, those that are the same too. Name and tag of an artifact are not part
    of it.
    """
    lines = [_line("artifact", "model", before.artifact.model, after.artifact.model)]
    lines += _variants(before, after)
    lines += _certificates(before, after)
    lines += _table("evaluation", _evaluation(before), _evaluation(after))
    lines += _table("lock", _lock(before), _lock(after))
    return lines


def differs(lines: Iterable[Line]) -> bool:
    """Say whether anything changed."""
    return any(line.change != "same" for line in lines)


def _variants(before: Overview, after: Overview) -> Iterator[Line]:
    one, other = ({_name(v.spec): v for v in found.artifact.variants} for found in (before, after))
    for name in _both(one, other):
        left, right = one.get(name), other.get(name)
        yield _line("variant", name, left.digest if left else _ABSENT, right.digest if right else _ABSENT)
        if left is None or right is None or left.digest == right.digest:
            continue
        yield from _changed("variant", name, _figures(left), _figures(right))


def _figures(variant: Variant) -> dict[str, str]:
    spec = variant.spec
    figures = {"weights": variant.weights.digest, "size": f"{variant.weights.size} B"}
    figures |= {"golden": variant.golden.digest if variant.golden else _ABSENT}
    figures |= {f"file {_title(one)}": f"{one.digest} {one.size} B" for one in variant.files}
    fields = msgspec.to_builtins(spec)  # without those that are left out
    return figures | {field: _text(fields[field]) if field in fields else _ABSENT for field in _SPEC_FIELDS}


def _certificates(before: Overview, after: Overview) -> Iterator[Line]:
    one, other = _newest(before), _newest(after)
    for name in _both(one, other):
        left, right = (_promises(found[name]) if name in found else {} for found in (one, other))
        yield from _table("certificate", {f"{name} {k}": v for k, v in left.items()},
                          {f"{name} {k}": v for k, v in right.items()})  # fmt: skip


def _newest(found: Overview) -> dict[str, Certificate]:
    """Return the newest certificate of each variant, by the variant's name: digests differ between artifacts."""
    names = {variant.digest: _name(variant.spec) for variant in found.artifact.variants}
    return {names.get(one.edge_digest, one.edge_digest): one for _, one in found.certificates}


def _promises(one: Certificate) -> dict[str, str]:
    levels = one.levels or (one,)
    figures = {"score": one.score, "temperature": f"{one.temperature:.6g}", "harm": one.harm, "group by": one.group_by}
    figures |= {"average over": one.over, "cluster by": one.cluster_by, "test": one.test}
    if one.opinion is not None:
        figures["opinion"] = f"{one.opinion.metric} {one.opinion.digest}"
    for level in levels:
        at = f"at {level.max_harm:g}"
        figures |= {
            f"{at} threshold": f"{level.threshold:.6g}",
            f"{at} delta": f"{level.delta:g}",
            f"{at} coverage": f"{level.coverage:.4f} ({level.coverage_low:.4f} to {level.coverage_high:.4f})",
            f"{at} evidence": f"{level.harm_count} harmful of {level.n}{by_how_much(level)}",
        }
    return figures | {f"refused {refused.max_harm:g}": refused.reason for refused in one.refused}


def _evaluation(found: Overview) -> dict[str, str]:
    document = _plain(found.documents.get(manifests.EVALUATION))
    figures: dict[str, str] = {}
    for target in _list(document.get("targets")):
        variant = _dict(target.get("variant"))
        name = f"{target.get('role', 'edge')}/{target.get('target', '?')}"
        figures |= _measured(name, variant, str(target.get("metric", "accuracy")))
        cascade = _dict(_dict(target.get("cascade")).get("figures"))
        for what in ("accuracy", "coverage", "harm"):
            value = _dict(cascade.get(what)).get("value")
            if value is not None:
                figures[f"{name} cascade {what}"] = _text(value)
    return figures | _measured("cloud", _dict(document.get("cloud")), "accuracy")


def _measured(name: str, figures: Mapping[str, Any], metric: str) -> dict[str, str]:
    found = {f"{name} {metric}": _dict(figures.get("quality")).get("value")}
    found |= {f"{name} bytes": figures.get("size_bytes")}
    for batch, value in _dict(_dict(figures.get("speed")).get("p50_ms")).items():
        found[f"{name} p50 ms x{batch}"] = value
    return {what: _text(value) for what, value in found.items() if value is not None}


def _lock(found: Overview) -> dict[str, str]:
    document = _plain(found.documents.get(manifests.LOCK))
    figures: dict[str, str] = {name: _text(document.get(name, "")) for name in ("seed", "machine")}
    figures |= {f"made by {name}": _text(version) for name, version in _dict(document.get("made_by")).items()}
    counts: dict[str, int] = {}
    for step in _list(document.get("steps")):
        name = str(step.get("step", ""))
        counts[name] = counts.get(name, 0) + 1
        label = name if counts[name] == 1 else f"{name} {counts[name]}"
        figures[f"step {label}"] = _text(step.get("id", ""))
        figures |= {f"step {label} {key}": _text(value) for key, value in _dict(step.get("key")).items()}
    return figures


def _table(section: str, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Line]:
    for name in _both(before, after):
        yield _line(section, name, before.get(name, _ABSENT), after.get(name, _ABSENT))


def _changed(section: str, name: str, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Line]:
    lines = _table(section, {f"{name} {k}": v for k, v in before.items()}, {f"{name} {k}": v for k, v in after.items()})
    return (line for line in lines if line.change != "same")


def _line(section: str, what: str, before: str, after: str) -> Line:
    change: Change = "same" if before == after else "added" if not before else "removed" if not after else "changed"
    return Line(section=section, what=what, change=change, before=before, after=after)


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [*one, *(name for name in other if name not in one)]


def _name(spec: VariantSpec) -> str:
    return f"{spec.role}/{spec.target}"


def _title(described: manifests.Descriptor) -> str:
    return described.annotations.get(manifests.TITLE, described.digest)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.6g}"
    return manifests.canonical_json(value).decode()


def shortened(text: str) -> str:
    """Shorten for a table: digests to 19 characters, long documents cut."""
    if text.startswith("sha256:"):
        return text[:19]
    return text if len(text) <= _MAX_CHARS else f"{text[: _MAX_CHARS - 3]}..."


def _plain(data: bytes | None) -> dict[str, Any]:
    if data is None:
        return {}
    try:
        return _dict(msgspec.json.decode(data))
    except msgspec.DecodeError:
        return {}


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
