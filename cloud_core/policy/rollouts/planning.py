"""Decides which devices are in a rollout, and in which wave.

A plan is frozen once made: the same fleet, request and seed give the same plan. Decides only membership and order; what
a wave must show is ``gates``, what happens next is ``rollout``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cloud_core.policy.rollouts.assignments import PlannedDevice
from penstock.errors import InvalidInput

DEFAULT_WAVES = (0.1, 0.5, 1.0)
MAX_WAVES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Describes a known device, as one rollout sees it.

    Attributes:
        desired_digest: what it should run now, and would go back to; "" when there is nothing.
        desired_certificate: the certificate that belongs to it.
        certificate_digest: the one of its variant of the artifact that is planned.
        is_runnable: the artifact has an edge variant for its target.
    """

    device_id: str
    labels: Mapping[str, str]
    target: str
    is_subscribed: bool
    is_runnable: bool
    silent_s: float
    desired_digest: str
    desired_certificate: str = ""
    certificate_digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Says which devices are wanted: those named, or those whose labels match; all when both are empty."""

    device_ids: tuple[str, ...] = ()
    labels: Mapping[str, str]

    @property
    def is_everyone(self) -> bool:
        """Say whether no device was left out by choice."""
        return not self.device_ids and not self.labels


def choose(
    candidates: Sequence[Candidate], selection: Selection, *, target: str, max_silence_s: float
) -> tuple[list[Candidate], list[str]]:
    """Choose the devices to update, and say ``device: reason`` for each that was asked for and is left out."""
    known = {candidate.device_id: candidate for candidate in candidates}
    skipped = [f"{name}: unknown device" for name in selection.device_ids if name not in known]
    chosen = []
    for candidate in sorted(candidates, key=lambda c: c.device_id):
        if not _is_wanted(candidate, selection):
            continue
        reason = _obstacle(candidate, target, max_silence_s)
        if reason:
            skipped.append(f"{candidate.device_id}: {reason}")
        else:
            chosen.append(candidate)
    return chosen, skipped


def assign_waves(chosen: Sequence[Candidate], shares: Sequence[float], seed: int) -> tuple[PlannedDevice, ...]:
    """Shuffle by seed and cut into waves; every wave has at least one device, so there may be fewer than shares.

    The order comes from a hash of seed and device id: one more device in the fleet does not reshuffle the others.

    Args:
        shares: cumulative, checked by :func:`check_shares`.
    """
    shuffled = sorted(chosen, key=lambda c: hashlib.sha256(f"{seed}:{c.device_id}".encode()).digest())
    planned: list[PlannedDevice] = []
    wave = 0
    for share in shares:
        # the small subtraction: 0.1 * 30 is 3.0000000000000004 and must not become 4
        end = min(math.ceil(share * len(shuffled) - 1e-9), len(shuffled))
        members = shuffled[len(planned) : end]
        planned += [_planned(candidate, wave) for candidate in members]
        wave += bool(members)
    return tuple(planned)


def default_shares(chosen: Sequence[Candidate]) -> tuple[float, ...]:
    """Return the waves of a plan that names none: where no device runs the model yet, all of them are one wave."""
    return DEFAULT_WAVES if any(candidate.desired_digest for candidate in chosen) else (1.0,)


def check_shares(shares: Sequence[float]) -> tuple[float, ...]:
    """Check cumulative wave shares and return them; none stay none.

    Raises:
        InvalidInput: not increasing from above 0 to exactly 1, or too many.
    """
    if not shares:
        return ()
    increasing = all(a < b for a, b in zip([0.0, *shares], shares, strict=False))
    if not increasing or shares[-1] != 1.0 or len(shares) > MAX_WAVES:
        listed = ", ".join(f"{share:g}" for share in shares[:10])
        raise InvalidInput(
            f"waves: {listed} are not cumulative shares; they must increase and end with 1, as in 0.1, 0.5, 1",
            field="waves",
        )
    return tuple(shares)


def _is_wanted(candidate: Candidate, selection: Selection) -> bool:
    if selection.device_ids:
        return candidate.device_id in selection.device_ids
    if not all(candidate.labels.get(name) == value for name, value in selection.labels.items()):
        return False
    return candidate.is_subscribed


def _planned(candidate: Candidate, wave: int) -> PlannedDevice:
    return PlannedDevice(
        device_id=candidate.device_id,
        wave=wave,
        base_digest=candidate.desired_digest,
        certificate_digest=candidate.certificate_digest,
        base_certificate=candidate.desired_certificate,
    )


def _obstacle(candidate: Candidate, target: str, max_silence_s: float) -> str:
    if not candidate.is_subscribed:
        return "does not subscribe to this model"
    if not target and not candidate.desired_digest:
        return "does not have it"
    is_same = candidate.desired_certificate == candidate.certificate_digest
    if target and candidate.desired_digest == target and is_same:
        return "already on it"
    if target and not candidate.is_runnable:
        return f"no edge variant for its target {candidate.target!r}"
    if candidate.silent_s > max_silence_s:
        return f"silent for {candidate.silent_s:.0f} s"
    return ""
