"""``penstock keys`` and what ``penstock artifact`` does with them, as a user types it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from penstock.cli.main import command
from penstock.errors import Conflict, InvalidInput, NotFound, PenstockError, SignatureError
from tests.penstock.signed import make_layout, new_certificate


@pytest.fixture(autouse=True)
def _a_user_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("PENSTOCK_TRUST_ROOT", "PENSTOCK_KEY_PASSPHRASE", "PENSTOCK_SIGNING_KEY"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: object, code: int = 0, **options: str) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], **options)  # type: ignore[arg-type]
    assert result.exit_code == code, (result.output, result.exception)
    return result


def refused(kind: type[PenstockError], *arguments: object) -> str:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert isinstance(result.exception, kind), result.exception
    return result.exception.message


def keys_directory(tmp_path: Path) -> Path:
    return tmp_path / "config" / "penstock" / "keys"


def test_o_is_a_format_and_never_a_place_for_a_private_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = json.loads(run("keys", "generate", "ci", "-o", "json").output)
    assert (made["private"], made["is_encrypted"]) == (str(keys_directory(tmp_path) / "ci.key"), False)
    assert not (tmp_path / "json").exists()
    result = run("keys", "generate", "old", "-o", "secrets", code=2)
    assert "-o is the format, table or json; to write the key to secrets: --directory secrets" in result.output
    assert not (tmp_path / "secrets").exists()
    run("keys", "generate", "mine", "--directory", "secrets")
    assert (tmp_path / "secrets" / "mine.key").exists()


def test_a_key_pair_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    run("keys", "generate", "release")
    private = keys_directory(tmp_path) / "release.key"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(private.parent.stat().st_mode) == 0o700
    assert "is there already" in refused(Conflict, "keys", "generate", "release")
    assert "letters, digits" in refused(InvalidInput, "keys", "generate", "../evil")
    shown = json.loads(run("keys", "show", "release", "-o", "json").output)
    assert shown["public"] == private.with_suffix(".pub").read_text()
    listed = json.loads(run("keys", "list", "-o", "json").output)
    assert listed == {"trust_root": None, "keys": [{"is_trusted": False, "name": "release", "keyid": shown["keyid"]}]}


def test_an_encrypted_key_signs_with_its_passphrase_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = make_layout(tmp_path)
    run("keys", "generate", "release", "--passphrase", input="secret\nsecret\n")
    assert b"ENCRYPTED" in (keys_directory(tmp_path) / "release.key").read_bytes()
    assert "PENSTOCK_KEY_PASSPHRASE" in refused(InvalidInput, "artifact", "sign", layout.root, "--key", "release")
    monkeypatch.setenv("PENSTOCK_KEY_PASSPHRASE", "secret")
    run("artifact", "sign", layout.root, "--key", "release")
    monkeypatch.delenv("PENSTOCK_KEY_PASSPHRASE")
    run("keys", "show", "release")  # the public half lies beside it


def test_verify_says_who_signed_and_what_is_not_covered(tmp_path: Path) -> None:
    layout = make_layout(tmp_path)
    run("keys", "generate", "release")
    assert "there is no trust root" in run("artifact", "verify", layout.root).output
    run("keys", "trust", keys_directory(tmp_path) / "release.pub")
    assert "is not signed" in run("artifact", "verify", layout.root, code=1).output
    run("artifact", "sign", layout.root, "--key", "release")
    assert "signed by release" in run("artifact", "verify", layout.root).output
    added = layout.attach_certificate(new_certificate(layout, serial=2))
    report = json.loads(run("artifact", "verify", layout.root, "-o", "json", code=1).output)
    assert report["not_covered"] == [added.digest]
    assert report["problems"] == [f"certificate {added.digest} is covered by no signature"]
    run("artifact", "sign", layout.root, "--key", "release")
    assert json.loads(run("artifact", "verify", layout.root, "-o", "json").output)["is_good"]
    assert "release" in run("artifact", "inspect", layout.root).output


def test_who_is_trusted_no_longer_has_signed_nothing(tmp_path: Path) -> None:
    layout = make_layout(tmp_path)
    run("keys", "generate", "release")
    public = keys_directory(tmp_path) / "release.pub"
    run("keys", "trust", public, "--name", "team")
    run("artifact", "sign", layout.root, "--key", "release")
    run("artifact", "verify", layout.root)
    assert "it holds team" in refused(NotFound, "keys", "untrust", "release")
    said = run("keys", "untrust", "team")
    assert "no key is left" in said.output
    assert "not trusted here" in run("artifact", "verify", layout.root, code=1).output


def test_a_private_key_is_not_a_key_to_trust(tmp_path: Path) -> None:
    run("keys", "generate", "release")
    assert "is a private key" in refused(InvalidInput, "keys", "trust", keys_directory(tmp_path) / "release.key")
    run("keys", "generate", "other")
    run("keys", "trust", keys_directory(tmp_path) / "release.pub", "--name", "team")
    message = refused(Conflict, "keys", "trust", keys_directory(tmp_path) / "other.pub", "--name", "team")
    assert "is another key" in message


def test_signing_needs_a_key_that_exists(tmp_path: Path) -> None:
    layout = make_layout(tmp_path)
    run("artifact", "sign", layout.root, code=2)
    assert "neither a file nor one of the keys" in refused(InvalidInput, "artifact", "sign", layout.root, "--key", "x")


def test_a_damaged_artifact_is_not_signed(tmp_path: Path) -> None:
    layout = make_layout(tmp_path)
    run("keys", "generate", "release")
    layout.blobs.path(layout.artifact().variants[0].weights.digest).write_bytes(b"!")
    assert "was not signed" in refused(SignatureError, "artifact", "sign", layout.root, "--key", "release")
