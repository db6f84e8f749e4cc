"""Settings of what operators may do with traffic: version policies, shadows, and how canaries are watched."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cloud_core.policy.traffic import VersionPolicy, check_versions
from penstock.errors import ConfigError, InvalidInput

_Count = Annotated[int, msgspec.Meta(ge=1)]
_Seconds = Annotated[float, msgspec.Meta(gt=0.0)]

EVERY_MODEL = "*"


class TrafficSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which versions are served, and how splits and shadows are run.

    Attributes:
        versions: which versions of a model are served beside its default, by model, or by ``*`` for all others:
            ``all``, ``latest 3``, or tags with commas between. What an operator says of a model goes before it.
        load_s: how long a request to load a version waits for it.
        look_s: how often the arms of a split are judged.
        max_notes: of what happened to a model's traffic that are kept.
        shadow_max_rows: that may be under way at a shadow; more are left out.
        shadow_max_bytes: of their inputs.
        shadow_timeout_s: what a shadow has not answered by then is given up.
    """

    versions: dict[str, str] = msgspec.field(default_factory=dict)
    load_s: _Seconds = 120.0
    look_s: Annotated[float, msgspec.Meta(ge=0.05, le=3600.0)] = 1.0
    max_notes: _Count = 50
    shadow_max_rows: _Count = 256
    shadow_max_bytes: _Count = 16 * 1024 * 1024
    shadow_timeout_s: _Seconds = 5.0


def version_policy(text: str) -> VersionPolicy:
    """Read ``all``, ``latest N``, or tags with commas between.

    Raises:
        InvalidInput: none of these.
    """
    words = text.replace(",", " ").split()
    if words == ["all"]:
        return VersionPolicy()
    if words[:1] == ["latest"] and len(words) == 2 and words[1].isdecimal():
        policy = VersionPolicy(kind="latest", latest=int(words[1]))
    elif words[:1] == ["latest"]:
        raise InvalidInput(f"{text[:80]!r} does not say how many; expected such as 'latest 2'", field="versions")
    else:
        policy = VersionPolicy(kind="given", given=tuple(words))
    check_versions(policy)
    return policy


def version_policies(settings: TrafficSettings) -> dict[str, VersionPolicy]:
    """Return what the settings say of versions, by model.

    Raises:
        ConfigError: one of them says nothing that can be understood.
    """
    found = {}
    for model, text in settings.versions.items():
        try:
            found[model] = version_policy(text)
        except InvalidInput as error:
            raise ConfigError(f"serving.traffic.versions.{model}: {error.message}") from None
    return found
