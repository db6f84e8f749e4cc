"""Keys, envelopes and the trust root: what is believed, and every way in which it is not."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from penstock.artifact import manifests
from penstock.artifact.layout import Layout
from penstock.errors import ConfigError, InvalidInput, SignatureError
from penstock.signing import ed25519, statements, trust
from penstock.signing.ed25519 import SigningKey
from penstock.signing.trust import TrustRoot
from tests.penstock.signed import make_layout, new_certificate, trusting

PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_layout(tmp_path)


@pytest.fixture
def key() -> SigningKey:
    return ed25519.generate()


def only_document(layout: Layout) -> bytes:
    (document,) = trust.signatures_of(layout)
    return document


def test_signing_twice_gives_the_same_bytes_and_one_referrer(layout: Layout, key: SigningKey) -> None:
    first = trust.sign(layout.root, key)
    assert trust.sign(layout.root, key) == first
    assert len(layout.referrers(manifests.SIGNATURE)) == 1
    assert layout.verify() == []


def test_everything_that_is_there_is_listed(layout: Layout, key: SigningKey) -> None:
    trust.sign(layout.root, key)
    payload, ((keyid, _),) = statements.decode(only_document(layout))
    said = json.loads(payload)
    artifact = layout.artifact()
    assert keyid == key.public.keyid
    assert said["model"] == "digits"
    assert said["artifact"] == artifact.digest
    assert said["variants"] == [variant.digest for variant in artifact.variants]
    assert {(one["kind"], one["digest"]) for one in said["referrers"]} == {
        (one.kind, one.digest) for one in layout.referrers() if one.kind != manifests.SIGNATURE
    }


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_verifies_what_was_signed(layout: Layout, key: SigningKey, tmp_path: Path) -> None:
    trust.sign(layout.root, key)
    envelope = json.loads(only_document(layout))
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
    # the DSSE specification's PAE, written down a second time
    (tmp_path / "pae").write_bytes(b" ".join([b"DSSEv1", b"%d" % len(kind), kind, b"%d" % len(payload), payload]))
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    (tmp_path / "pub").write_bytes(key.public.pem)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "pub", "-rawin", "-in", "pae", "-sigfile", "sig"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=30)
    der = ["openssl", "pkey", "-pubin", "-in", "pub", "-outform", "DER", "-out", "der"]
    subprocess.run(der, cwd=tmp_path, check=True, capture_output=True, timeout=30)
    assert manifests.digest_of((tmp_path / "der").read_bytes()) == f"sha256:{key.public.keyid}"


def test_what_a_trusted_key_signed_is_covered(layout: Layout, key: SigningKey, tmp_path: Path) -> None:
    trust.sign(layout.root, key)
    covered = trusting(tmp_path, key).check(layout.artifact(), trust.signatures_of(layout))
    assert covered == {one.digest for one in layout.referrers() if one.kind != manifests.SIGNATURE}


def test_a_certificate_added_later_is_not_covered_until_it_is_signed_again(
    layout: Layout, key: SigningKey, tmp_path: Path
) -> None:
    root = trusting(tmp_path, key)
    trust.sign(layout.root, key)
    added = layout.attach_certificate(new_certificate(layout, serial=2))
    assert added.digest not in root.check(layout.artifact(), trust.signatures_of(layout))
    trust.sign(layout.root, key)
    assert len(layout.referrers(manifests.SIGNATURE)) == 2
    assert added.digest in root.check(layout.artifact(), trust.signatures_of(layout))


def test_an_unsigned_artifact_is_refused(layout: Layout, key: SigningKey, tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="is not signed.*penstock artifact sign"):
        trusting(tmp_path, key).check(layout.artifact(), [])


def test_a_signature_by_a_key_that_is_not_trusted_is_refused(layout: Layout, key: SigningKey, tmp_path: Path) -> None:
    other = ed25519.generate()
    trust.sign(layout.root, other)
    with pytest.raises(SignatureError, match=f"signed by {other.public.keyid[:16]}.*keys trust"):
        trusting(tmp_path, key).check(layout.artifact(), trust.signatures_of(layout))


def test_several_signatures_coexist_and_one_trusted_one_is_enough(
    layout: Layout, key: SigningKey, tmp_path: Path
) -> None:
    trust.sign(layout.root, ed25519.generate())
    trust.sign(layout.root, key)
    verdict = trusting(tmp_path, key).examine(layout.artifact(), trust.signatures_of(layout))
    assert [one.keyid for one in verdict.vouched] == [key.public.keyid]
    assert len(verdict.unknown) == 1


def tampered(document: bytes, **changes: object) -> bytes:
    envelope = json.loads(document)
    said = json.loads(base64.b64decode(envelope["payload"]))
    envelope["payload"] = base64.b64encode(json.dumps(said | changes).encode()).decode()
    return json.dumps(envelope).encode()


def test_a_tampered_payload_is_refused(layout: Layout, key: SigningKey, tmp_path: Path) -> None:
    trust.sign(layout.root, key)
    stretched = tampered(
        only_document(layout), referrers=[{"kind": manifests.CERTIFICATE, "digest": "sha256:" + "1" * 64}]
    )
    with pytest.raises(SignatureError, match="tampered"):
        trusting(tmp_path, key).check(layout.artifact(), [stretched])


def test_a_payload_of_another_type_is_refused(layout: Layout, key: SigningKey, tmp_path: Path) -> None:
    trust.sign(layout.root, key)
    envelope = json.loads(only_document(layout)) | {"payloadType": "application/vnd.in-toto+json"}
    with pytest.raises(SignatureError, match="expected application/vnd.penstock"):
        trusting(tmp_path, key).check(layout.artifact(), [json.dumps(envelope).encode()])


def test_a_signature_of_another_artifact_says_nothing_about_this_one(key: SigningKey, tmp_path: Path) -> None:
    one, other = make_layout(tmp_path / "one", scale=1), make_layout(tmp_path / "other", scale=2)
    trust.sign(one.root, key)
    with pytest.raises(SignatureError, match="not this artifact"):
        trusting(tmp_path, key).check(other.artifact(), trust.signatures_of(one))


def test_a_keyid_is_only_a_hint(layout: Layout, key: SigningKey, tmp_path: Path) -> None:
    """Without one every trusted key is tried; another's name on a signature does not make it theirs."""
    trust.sign(layout.root, key)
    envelope = json.loads(only_document(layout))
    root = trusting(tmp_path, key)
    del envelope["signatures"][0]["keyid"]
    assert root.check(layout.artifact(), [json.dumps(envelope).encode()])
    forged = json.loads(ed25519.generate().sign(statements.about(layout.artifact(), [])))
    forged["signatures"][0]["keyid"] = key.public.keyid
    with pytest.raises(SignatureError, match="did not sign this"):
        root.check(layout.artifact(), [json.dumps(forged).encode()])


@pytest.mark.parametrize("document", [b"", b"{}", b"[]", b'{"payload":"?","payloadType":"x","signatures":[]}', b"\xff"])
def test_rubbish_is_no_signature_and_keeps_no_good_one_from_counting(
    layout: Layout, key: SigningKey, tmp_path: Path, document: bytes
) -> None:
    root = trusting(tmp_path, key)
    with pytest.raises(SignatureError):
        root.check(layout.artifact(), [document])
    trust.sign(layout.root, key)
    assert root.check(layout.artifact(), [document, only_document(layout)])


def test_a_damaged_layout_is_not_signed(layout: Layout, key: SigningKey) -> None:
    path = layout.blobs.path(layout.artifact().variants[0].weights.digest)
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(SignatureError, match="does not verify, so it was not signed"):
        trust.sign(layout.root, key)


def test_a_key_that_is_removed_is_believed_no_longer(layout: Layout, key: SigningKey, tmp_path: Path) -> None:
    trust.sign(layout.root, key)
    root = trusting(tmp_path, key)
    root.check(layout.artifact(), trust.signatures_of(layout))
    (root.directory / "key0.pub").unlink()
    with pytest.raises(SignatureError, match="trusts none"):
        root.check(layout.artifact(), trust.signatures_of(layout))


# -- keys ------------------------------------------------------------------------------------------------------------


def test_a_private_key_is_read_back_with_its_passphrase_only(key: SigningKey) -> None:
    assert ed25519.read_private(key.pem(), "k").public.keyid == key.public.keyid
    assert ed25519.read_private(key.pem(), "k", passphrase=b"needless").public.keyid == key.public.keyid
    locked = key.pem(b"secret")
    assert ed25519.is_encrypted(locked)
    assert not ed25519.is_encrypted(key.pem())
    assert ed25519.read_private(locked, "k", passphrase=b"secret").public.keyid == key.public.keyid
    with pytest.raises(InvalidInput, match="passphrase is wrong"):
        ed25519.read_private(locked, "k", passphrase=b"guess")
    with pytest.raises(InvalidInput, match="needs a passphrase"):
        ed25519.read_private(locked, "k")


def test_keys_of_another_kind_are_named_and_refused(key: SigningKey) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(InvalidInput, match="another kind .*ed25519"):
        ed25519.read_public(other.public_key().public_bytes(PEM, SPKI), "k.pub")
    with pytest.raises(InvalidInput, match="another kind .*ed25519"):
        ed25519.read_private(other.private_bytes(PEM, PKCS8, serialization.NoEncryption()), "k.key")
    with pytest.raises(InvalidInput, match="is a private key"):
        ed25519.read_public(key.pem(), "k.key")
    with pytest.raises(InvalidInput, match="no private key"):
        ed25519.read_private(key.public.pem, "k.pub")
    with pytest.raises(InvalidInput, match="no public key"):
        ed25519.read_public(b"hello", "k.pub")


# -- the trust root --------------------------------------------------------------------------------------------------


def test_a_trust_root_is_in_force_once_it_is_named_or_there(tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert trust.configured("", environment) is None
    default = tmp_path / "penstock" / "trust"
    default.mkdir(parents=True)
    found = trust.configured("", environment)
    assert found is not None
    assert found.directory == default
    named = tmp_path / "named"
    named.mkdir()
    found = trust.configured("", environment | {"PENSTOCK_TRUST_ROOT": str(named)})
    assert found is not None
    assert found.directory == named
    with pytest.raises(ConfigError, match="not a directory"):
        trust.configured(str(tmp_path / "absent"), environment)


def test_an_empty_trust_root_trusts_nobody(layout: Layout, key: SigningKey, tmp_path: Path) -> None:
    trust.sign(layout.root, key)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SignatureError, match="trusts none"):
        TrustRoot(empty).check(layout.artifact(), trust.signatures_of(layout))


@pytest.mark.parametrize("data", [b"hello", b"-----BEGIN PRIVATE KEY-----", b"x" * 20_000])
def test_a_file_that_is_no_key_makes_a_trust_root_unusable(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "odd.pub").write_bytes(data)
    with pytest.raises(ConfigError, match="odd.pub.*remove the file"):
        TrustRoot(tmp_path).keys()


def test_a_trust_root_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: SigningKey) -> None:
    monkeypatch.setattr(trust, "MAX_KEYS", 1)
    root = trusting(tmp_path, key, ed25519.generate())
    with pytest.raises(ConfigError, match="more than the 1 allowed"):
        root.keys()


def test_a_statement_with_unknown_fields_is_not_believed(layout: Layout) -> None:
    said = msgspec.to_builtins(statements.about(layout.artifact(), [])) | {"except": "on mondays"}
    with pytest.raises(SignatureError, match="cannot be read"):
        statements.read(json.dumps(said).encode())
