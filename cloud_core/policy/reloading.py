"""Says what changed between two readings of the settings, and what of it a running core can take on.

Pure: gets plain trees of values, returns a list of differences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

LIVE = (
    "tenants",
    "log.level",
    "observing.slo",
    "serving.drain_s",
    "serving.lame_duck_s",
    "serving.traffic.load_s",
    "serving.traffic.look_s",
    "serving.traffic.max_notes",
    "serving.traffic.versions",
)
"""What a core takes on while it runs: these settings, and all below them."""

_SECRET = ("token", "database")
_MAX_SHOWN = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One setting that is another one now.

    Attributes:
        setting: its dotted name; a tenant's has the tenant's name in it.
        before: as it was, in words; secrets are never shown.
        after: as it is in what was read.
        is_live: a core takes it on while it runs; otherwise it is what the next start does.
    """

    setting: str
    before: str
    after: str
    is_live: bool


def differences(
    before: Mapping[str, object], after: Mapping[str, object], *, fixed: Sequence[str] = ()
) -> tuple[Difference, ...]:
    """Compare two trees of settings, by names.

    Args:
        fixed: settings that this core cannot take on although others could.
    """
    old, new = dict(_leaves(before)), dict(_leaves(after))
    found = []
    for name in sorted({*old, *new}):
        if name not in old or name not in new or old[name] != new[name]:
            is_live = _is_below(name, LIVE) and not _is_below(name, fixed)
            shown = (_shown(name, one[name]) if name in one else "(none)" for one in (old, new))
            found.append(Difference(setting=name, before=next(shown), after=next(shown), is_live=is_live))
    return tuple(found)


def _leaves(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{name}.")
        elif key == "tenants" and isinstance(value, Sequence):
            for tenant in value:
                yield from _leaves(tenant, f"{name}.{tenant['name']}.")
        else:
            yield name, value


def _is_below(name: str, sections: Sequence[str]) -> bool:
    return any(name == section or name.startswith(f"{section}.") for section in sections)


def _shown(name: str, value: object) -> str:
    if name.rpartition(".")[2] in _SECRET:
        return "(secret)" if value else "(none)"
    text = str(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
