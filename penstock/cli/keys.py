"""``penstock keys``: make the keys that sign artifacts, and say which keys are trusted on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from penstock.cli.output import (
    FORMATS,
    output_option,
    print_fields,
    print_json,
    print_result,
    print_table,
    progress,
)
from penstock.errors import Conflict, InvalidInput, NotFound
from penstock.process.directories import expanded

if TYPE_CHECKING:
    from penstock.signing.ed25519 import PublicKey, SigningKey

F = TypeVar("F", bound=Callable[..., Any])
PASSPHRASE = "PENSTOCK_KEY_PASSPHRASE"
_PRIVATE, _PUBLIC = ".key", ".pub"


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  penstock keys generate release
  penstock compile recipe.toml -o build/digits --key release
  penstock keys trust ~/.config/penstock/keys/release.pub
  penstock keys list

Keys are kept in ~/.config/penstock/keys, trusted ones in ~/.config/penstock/trust (PENSTOCK_TRUST_ROOT). As soon as one
key is trusted, agents and cores of this user use nothing that none of the trusted keys has signed.""",
)
def command() -> None:
    """Make the keys that sign artifacts, and say which are trusted."""


@command.command()
@click.argument("name")
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path), help="Where to write it.")
@click.option("--passphrase", is_flag=True, help="Ask for a passphrase and encrypt the private key with it.")
@click.option("-o", "--output", default="table", show_default=True, metavar="[table|json]", help="Output format.")
def generate(name: str, directory: Path | None, passphrase: bool, output: str) -> None:
    """Make an ed25519 key pair: NAME.key (private, readable by you only) and NAME.pub.

    The private key is encrypted where PENSTOCK_KEY_PASSPHRASE is set, or with --passphrase.
    """
    from penstock.artifact.blobs import disk_errors
    from penstock.signing import ed25519

    if output not in FORMATS:  # it was a directory until 0.1.0, and a key in ./json is nobody's wish
        raise click.UsageError(f"-o is the format, table or json; to write the key to {output}: --directory {output}")
    _check_name(name)
    directory = directory or _keys_directory()
    private, public = directory / f"{name}{_PRIVATE}", directory / f"{name}{_PUBLIC}"
    for path in (private, public):
        if path.exists():
            raise Conflict(f"{path} is there already, and a key that is lost cannot be made again; choose another name")
    secret = os.environ.get(PASSPHRASE, "")
    if passphrase and not secret:
        secret = click.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)
    key = ed25519.generate()
    with disk_errors(f"writing {private}"):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        # created for nobody else to read, never widened: not written and narrowed afterwards
        handle = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(key.pem(secret.encode()))
        public.write_bytes(key.public.pem)
    found = {"private": private, "is_encrypted": bool(secret), "public": public, "keyid": key.public.keyid}
    words = "encrypted" if secret else "not encrypted"
    print_result(
        output,
        found,
        lambda: print_fields({"private": f"{private} ({words})", "public": public, "keyid": key.public.keyid}),
    )


@command.command("list")
@output_option
def list_keys(output: str) -> None:
    """List the keys that can sign and the ones that are trusted."""
    from penstock.signing import trust

    own, root = _keys_directory(), trust.configured("", os.environ)
    files = sorted(own.glob(f"*{_PUBLIC}")) if own.is_dir() else []
    rows = [("own", path.stem, _read_public(path).keyid) for path in files]
    rows += [("trusted", one.name, one.key.keyid) for one in (root.keys() if root else ())]
    if output == "json":
        print_json({
            "trust_root": root.directory if root else None,
            "keys": [{"is_trusted": kind == "trusted", "name": name, "keyid": keyid} for kind, name, keyid in rows],
        })  # fmt: skip
        return
    # the beginning names a key as well; JSON has all of it
    print_table(["", "name", "keyid"], [(kind, name, keyid[:16]) for kind, name, keyid in rows])
    click.echo(f"\ntrust root: {root.directory if root else 'none, so nothing need be signed'}")


@command.command()
@click.argument("key", metavar="NAME|FILE")
@output_option
def show(key: str, output: str) -> None:
    """Show a key's id and its public half. A private key's .pub is read where it lies beside it."""
    path, public = _find_public(key)
    if output == "json":
        print_json({"file": path, "keyid": public.keyid, "kind": "ed25519", "public": public.pem.decode()})
        return
    print_fields({"file": path, "kind": "ed25519", "keyid": public.keyid})
    click.echo(public.pem.decode(), nl=False)


@command.command()
@click.argument("key", metavar="KEY.pub", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", help="What to call it here.  [default: the file's name]")
@click.option("--trust-root", type=click.Path(file_okay=False, path_type=Path), help="Directory of trusted keys.")
def trust(key: Path, name: str | None, trust_root: Path | None) -> None:
    """Trust what KEY.pub has signed. With the first key, everything else stops being used."""
    from penstock.artifact.blobs import disk_errors, write_atomically

    public = _read_public(key)
    root = trust_root or _trust_directory()
    path = root / f"{_check_name(name or key.stem)}{_PUBLIC}"
    if path.exists() and _read_public(path).keyid != public.keyid:
        raise Conflict(f"{path} is another key; give this one another name with --name, or untrust that one first")
    with disk_errors(f"creating {root}"):
        root.mkdir(parents=True, exist_ok=True)
    write_atomically(path, public.pem)
    with disk_errors(f"making {path} readable"):
        path.chmod(0o644)  # an agent of another user reads it
    progress(f"{path}: trusted ({public.keyid})")


@command.command()
@click.argument("key", metavar="NAME|KEYID")
@click.option("--trust-root", type=click.Path(file_okay=False, path_type=Path), help="Directory of trusted keys.")
def untrust(key: str, trust_root: Path | None) -> None:
    """Trust a key no longer. An agent or core believes it until it loads a model the next time, or is restarted."""
    from penstock.artifact.blobs import disk_errors
    from penstock.signing.trust import TrustRoot

    root = TrustRoot(trust_root or _trust_directory())
    trusted = root.keys()
    found = [one for one in trusted if key == one.name or (len(key) >= 8 and one.key.keyid.startswith(key.lower()))]
    if len(found) != 1:
        names = ", ".join(str(one) for one in trusted) or "none"
        raise NotFound(f"{key!r} names {len(found)} of the keys in {root.directory}; it holds {names}")
    path = root.directory / f"{found[0].name}{_PUBLIC}"
    with disk_errors(f"removing {path}"):
        path.unlink()
    progress(f"{path}: no longer trusted")
    if len(trusted) == 1:
        progress(f"no key is left: nothing at all is used now; remove {root.directory} to do without signatures")


def load_signing_key(key: str) -> SigningKey:
    """Load a private key by name or file; ask for its passphrase on a terminal where the environment has none.

    Raises:
        InvalidInput: no such key, another kind, or a wrong passphrase.
    """
    from penstock.signing import ed25519
    from penstock.signing.trust import read_key_file

    path = _find(key, _PRIVATE)
    pem = read_key_file(path)
    secret = os.environ.get(PASSPHRASE, "")
    if ed25519.is_encrypted(pem) and not secret and sys.stdin.isatty():
        secret = click.prompt(f"Passphrase of {path.name}", hide_input=True, err=True)
    return ed25519.read_private(pem, str(path), passphrase=secret.encode())


def signing(key: str) -> Callable[[Path], None] | None:
    """Return what signs a finished layout with ``--key``, or None where no key is given.

    Raises:
        InvalidInput: no such key, another kind, or a wrong passphrase.
    """
    if not key:
        return None
    from penstock.signing import trust

    private = load_signing_key(key)

    def sign(directory: Path) -> None:
        trust.sign(directory, private)

    return sign


def is_signed(directory: Path) -> bool:
    """Say whether the artifact in a layout has a signature."""
    from penstock.artifact.layout import Layout
    from penstock.signing import trust

    return bool(trust.signatures_of(Layout(directory)))


def key_option(function: F) -> F:
    """Add ``--key``, passed on as ``key``: "" for none."""
    return click.option(
        "--key",
        envvar="PENSTOCK_SIGNING_KEY",
        default="",
        show_envvar=True,
        metavar="NAME|FILE",
        help="Private key to sign with: a name that 'penstock keys generate' was given, or a file.",
    )(function)


def _find_public(key: str) -> tuple[Path, PublicKey]:
    path = _find(key, _PUBLIC)
    beside = path.with_suffix(_PUBLIC)
    if path.suffix == _PRIVATE and beside.is_file():
        path = beside
    if path.suffix == _PRIVATE:
        return path, load_signing_key(str(path)).public
    return path, _read_public(path)


def _read_public(path: Path) -> PublicKey:
    from penstock.signing import ed25519
    from penstock.signing.trust import read_key_file

    return ed25519.read_public(read_key_file(path), str(path))


def _find(key: str, suffix: str) -> Path:
    """Find a key by file or name.

    Raises:
        InvalidInput: neither a file nor a known name.
    """
    path = expanded(key)
    if path.is_file():
        return path
    named = _keys_directory() / f"{key}{suffix}"
    if Path(key).name == key and named.is_file():
        return named
    names = ", ".join(sorted(path.stem for path in _keys_directory().glob(f"*{suffix}"))) or "none"
    raise InvalidInput(
        f"--key: {key!r} is neither a file nor one of the keys in {_keys_directory()} ({names})", field="key"
    )


def _keys_directory() -> Path:
    from penstock.process.directories import config_directory

    return config_directory(os.environ) / "keys"


def _trust_directory() -> Path:
    from penstock.signing import trust

    named = os.environ.get(trust.ENVIRONMENT, "")
    return expanded(named) if named else trust.default_directory(os.environ)


def _check_name(name: str) -> str:
    from penstock.artifact.manifests import check_file_name
    from penstock.errors import ArtifactError

    try:
        return check_file_name(name)
    except ArtifactError:
        raise InvalidInput(f"NAME: {name[:100]!r}; use letters, digits and . _ - +", field="name") from None
