"""What devices are assigned, and the plan that freezes it: values only."""

from __future__ import annotations

from dataclasses import dataclass

from cloud_core.policy.rollouts.gate_settings import Gate


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDevice:
    """Names a device of a plan.

    Attributes:
        wave: 0 is the first.
        base_digest: the artifact that the device goes back to; "" for nothing.
        certificate_digest: the certificate that it is to use: that of its own variant.
        base_certificate: the one that it goes back to; None in a plan of a release that did not keep it.
    """

    device_id: str
    wave: int
    base_digest: str
    certificate_digest: str | None = None
    base_certificate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Says what a device should run, exactly: both digests.

    Attributes:
        artifact_digest: "" when it should run nothing.
        certificate_digest: None when an older release did not keep it: the newest that fits is meant.
    """

    artifact_digest: str
    certificate_digest: str | None = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetRelease:
    """Says what every device runs that no rollout says something else about, latecomers included.

    Attributes:
        artifact_digest: "" when the model was removed from the fleet.
        certificates: one for each edge variant that has one; None when an older release did not keep them.
    """

    artifact_digest: str
    certificates: tuple[str, ...] | None = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Holds what ``apply`` runs, frozen when it was made.

    Attributes:
        promised_harm: the certificate's audit bound; None for an artifact without a certificate.
        artifact_digest: "" for a removal.
        certificate_digest: the certificate to name to people.
        certificates: of all edge variants, for devices that come later; None in a plan of a release without them.
        covers_fleet: made for all devices, so that success also moves the model's default version.
        skipped: ``device: reason`` for devices that were considered and left out.
    """

    rollout_id: str
    model: str
    version: str
    artifact_digest: str
    certificate_digest: str
    devices: tuple[PlannedDevice, ...]
    wave_count: int
    seed: int
    gate: Gate
    promised_harm: float | None
    covers_fleet: bool
    skipped: tuple[str, ...]
    certificates: tuple[str, ...] | None = None

    @property
    def is_removal(self) -> bool:
        """Say whether the plan takes the model off its devices."""
        return not self.artifact_digest
