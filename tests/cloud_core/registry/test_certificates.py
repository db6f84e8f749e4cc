"""Which certificate the core names for an artifact, and how much harm its fleet may show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloud_core.fleet.fleet_queries import FleetQueries
from cloud_core.registry.registry import Registry
from penstock.artifact import manifests
from penstock.artifact.certificates import Certificate, Level
from penstock.artifact.layout import Layout, VariantDraft
from penstock.artifact.manifests import Artifact


class Shelf:
    """An artifact with edge variants for two targets, and certificates that are pushed one by one."""

    def __init__(self, template: Layout, root: Path, registry: Registry, put: Any) -> None:
        parsed = template.artifact()
        self._template = template.certificates()[-1]
        self._registry, self._put = registry, put
        self.layout = Layout.create(root / "two")
        weights = {v.spec.role: template.blobs.path(v.weights.digest) for v in parsed.variants}
        spec = {v.spec.role: v.spec for v in parsed.variants}
        targets = [("edge", "any"), ("edge", "arm64"), ("cloud", "cpu")]
        self.layout.pack(
            [
                VariantDraft(spec=msgspec.structs.replace(spec[role], target=target), weights=weights[role])
                for role, target in targets
            ],
            tag="v1",
        )
        self.artifact: Artifact = self.layout.artifact()

    def certificate(self, target: str, **changes: Any) -> Certificate:
        assert self._template is not None
        return msgspec.structs.replace(
            self._template[1],
            edge_digest=self.artifact.variant("edge", target=target).digest,
            cloud_digest=self.artifact.variant("cloud").digest,
            **changes,
        )

    async def push(self, certificate: Certificate) -> str:
        digest = self.layout.attach_certificate(certificate).digest
        await self._put(self._registry, self.layout)
        return digest

    def named(self) -> str:
        found = self._registry.certificate_of(self.layout.digest)
        return found[0] if found else ""


@pytest.fixture
def shelf(make_layout: Any, tmp_path: Path, registry: Registry, put: Any) -> Shelf:
    return Shelf(make_layout("v1"), tmp_path, registry, put)


async def test_whatever_is_certified_anew_changes_what_is_named(shelf: Shelf) -> None:
    """So that devices of every variant look again: the named certificate is part of what is desired of them."""
    named = []
    for target, serial in (("any", 1), ("arm64", 1), ("any", 2), ("arm64", 2)):
        pushed = await shelf.push(shelf.certificate(target, serial=serial))
        named.append(shelf.named())
        assert named[-1] == pushed
    assert len(set(named)) == 4


async def test_an_older_certificate_that_comes_later_is_not_named(shelf: Shelf) -> None:
    newest = await shelf.push(shelf.certificate("any", serial=2))
    await shelf.push(shelf.certificate("any", serial=1))
    assert shelf.named() == newest


async def test_the_newest_of_each_variant_is_known(shelf: Shelf, registry: Registry) -> None:
    await shelf.push(shelf.certificate("any", serial=1))
    newest = {await shelf.push(shelf.certificate("any", serial=2)), await shelf.push(shelf.certificate("arm64"))}
    assert {digest for digest, _ in registry.certificates_of(shelf.layout.digest)} == newest


async def test_a_fleet_may_show_as_much_harm_as_its_most_lenient_device(shelf: Shelf, registry: Registry) -> None:
    facts = FleetQueries(None, None, registry, None, max_silence_s=1.0)  # type: ignore[arg-type]  # only the registry is asked
    await shelf.push(shelf.certificate("any", audit_max_harm=0.03))
    assert facts._promised_harm(shelf.layout.digest) == 0.03
    await shelf.push(shelf.certificate("arm64", audit_max_harm=0.04))
    assert facts._promised_harm(shelf.layout.digest) == 0.04
    one = shelf.certificate("any", serial=2)
    values = {name: getattr(one, name) for name in Level.__struct_fields__}
    levels = (Level(**values), Level(**values | {"max_harm": 0.05, "audit_max_harm": 0.07}))
    await shelf.push(msgspec.structs.replace(one, levels=levels))
    assert facts._promised_harm(shelf.layout.digest) == 0.07


async def test_a_fleet_without_a_certificate_promises_nothing(shelf: Shelf, registry: Registry, put: Any) -> None:
    await put(registry, shelf.layout)
    facts = FleetQueries(None, None, registry, None, max_silence_s=1.0)  # type: ignore[arg-type]
    assert facts._promised_harm(shelf.layout.digest) is None
    assert shelf.layout.referrers(manifests.CERTIFICATE) == ()
