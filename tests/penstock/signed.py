"""Small artifacts to sign, multi-file ones among them, and trust roots."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from penstock.artifact import golden, manifests
from penstock.artifact.certificates import Certificate
from penstock.artifact.layout import Layout, VariantDraft
from penstock.artifact.manifests import VariantSpec
from penstock.signing.ed25519 import SigningKey
from penstock.signing.trust import TrustRoot
from tests.factories import certificate_for, linear_model, variant_spec

DATA = "model.onnx.data"


def external_model(directory: Path, *, scale: float = 1.0) -> VariantDraft:
    """x [N, 4] -> logits [N, 3] = scale * x[:, :3], with the weights in a file beside the graph; no spec of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    model = linear_model(np.eye(4, 3, dtype=np.float32) * np.float32(scale))
    path = directory / "model.onnx"
    (directory / DATA).unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=True, location=DATA, size_threshold=0)
    x = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    vectors = golden.encode(golden.Golden(inputs={"x": x}, outputs={"logits": x[:, :3] * np.float32(scale)}))
    return VariantDraft(spec=spec("edge"), weights=path, golden=vectors, files={DATA: directory / DATA})


def spec(role: manifests.Role, target: str = "any", **changes: object) -> VariantSpec:
    return variant_spec(role, target=target, preprocessing={"scale": 16}, **changes)


def make_layout(
    directory: Path, *, tag: str = "v1", scale: float = 1.0, roles: tuple[str, ...] = ("edge",), certified: bool = True
) -> Layout:
    """An artifact of multi-file variants: one for each of ``roles``, and a cloud variant; each role certified."""
    layout = Layout.create(directory / f"layout-{tag}")
    drafts = []
    for i, (role, target) in enumerate([*((role, "any") for role in roles), ("cloud", "cpu")]):
        made = external_model(directory / f"{tag}-{role}", scale=scale + i)
        drafts.append(VariantDraft(spec=spec(role, target), weights=made.weights, golden=made.golden, files=made.files))
    layout.pack(drafts, tag=tag)
    for role in roles if certified else ():
        layout.attach_certificate(new_certificate(layout, role=role))
    layout.attach(manifests.LOCK, b'{"schema":1,"seed":0,"steps":[]}', title="lock.json")
    return layout


def new_certificate(layout: Layout, *, role: str = "edge", serial: int = 1, threshold: float = 0.5) -> Certificate:
    return certificate_for(layout, role=role, serial=serial, threshold=threshold)


def trusting(directory: Path, *keys: SigningKey) -> TrustRoot:
    """A trust root with these keys: key0, key1, ..."""
    root = directory / "trust"
    root.mkdir(parents=True, exist_ok=True)
    for i, key in enumerate(keys):
        (root / f"key{i}.pub").write_bytes(key.public.pem)
    return TrustRoot(root)
