"""Certificates of a server: what is wrong with files is said, and files that change count for the next handshake."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

import msgspec
import pytest

from penstock.errors import ConfigError
from penstock.wire.credentials import PeerCertificate, credential_of
from penstock.wire.server_tls import ServerCertificates, ServerTls, peer_certificate
from tests.tls import Authority, make_authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def settings(authority: Authority, tmp_path: Path) -> ServerTls:
    """Copies, so that a test may replace them."""
    for name, source in (("server.pem", authority.server.cert), ("server.key", authority.server.key)):
        shutil.copy(source, tmp_path / name)
    return ServerTls(certificate=str(tmp_path / "server.pem"), key=str(tmp_path / "server.key"))


def shown(certificates: ServerCertificates, client: ssl.SSLContext) -> bytes:
    """What a client is shown, in a handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        certificates.context.wrap_bio(to_server, to_client, server_side=True),
    ]
    open_ends = list(ends)
    while open_ends:
        for end in list(open_ends):
            try:
                end.do_handshake()
                open_ends.remove(end)
            except ssl.SSLWantReadError:
                pass
    found = ends[0].getpeercert(binary_form=True)
    assert found is not None
    return found


def replace(settings: ServerTls, authority: Authority, tmp_path: Path) -> None:
    made = authority.sign(tmp_path, "renewed")
    made.cert.replace(settings.certificate)
    made.key.replace(settings.key)


def test_a_renewed_certificate_is_shown_after_a_reload_and_not_before(
    settings: ServerTls, authority: Authority, tmp_path: Path
) -> None:
    certificates = ServerCertificates(settings)
    client = ssl.create_default_context(cafile=str(authority.ca))
    first = shown(certificates, client)
    assert not certificates.reload()
    replace(settings, authority, tmp_path)
    assert shown(certificates, client) == first
    assert certificates.reload()
    assert shown(certificates, client) != first
    assert certificates.generation == 1


def test_half_a_renewal_changes_nothing_and_is_told(settings: ServerTls, authority: Authority, tmp_path: Path) -> None:
    certificates = ServerCertificates(settings)
    client = ssl.create_default_context(cafile=str(authority.ca))
    first = shown(certificates, client)
    authority.sign(tmp_path, "renewed").cert.replace(settings.certificate)  # without its key
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"tls\.certificate: .*server\.pem"):
            certificates.reload()
    Path(settings.certificate).unlink()
    with pytest.raises(ConfigError, match="No such file"):
        certificates.reload()
    assert shown(certificates, client) == first


def test_clients_of_an_authority_that_is_not_trusted_any_more_are_refused_after_a_reload(
    settings: ServerTls, authority: Authority, tmp_path: Path
) -> None:
    shutil.copy(authority.ca, tmp_path / "clients.pem")
    certificates = ServerCertificates(msgspec.structs.replace(settings, client_ca=str(tmp_path / "clients.pem")))
    client = ssl.create_default_context(cafile=str(authority.ca))
    client.load_cert_chain(authority.client.cert, authority.client.key)
    shown(certificates, client)
    shutil.copy(make_authority(tmp_path / "other").ca, tmp_path / "clients.pem")
    assert certificates.reload()
    with pytest.raises(ssl.SSLError):
        shown(certificates, client)


def test_versions_before_1_2_are_refused(settings: ServerTls, authority: Authority) -> None:
    client = ssl.create_default_context(cafile=str(authority.ca))
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        client.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        client.maximum_version = ssl.TLSVersion.TLSv1_1
    client.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        shown(ServerCertificates(settings), client)


def test_files_that_are_none_are_refused_in_words(settings: ServerTls, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no certificate")
    for change, said in (
        ({"certificate": str(tmp_path / "text")}, "tls.certificate"),
        ({"key": str(tmp_path / "gone")}, "tls.key"),
        ({"client_ca": str(tmp_path / "text")}, "tls.client_ca"),
    ):
        with pytest.raises(ConfigError, match=said):
            ServerCertificates(msgspec.structs.replace(settings, **change))
    with pytest.raises(ValueError, match="give certificate"):
        ServerTls(client_ca="ca.pem")


def test_the_names_of_a_certificate_keep_their_kind() -> None:
    found = peer_certificate(
        {
            "subject": ((("organizationName", "Shop"),), (("commonName", "DNS:admin"),)),
            "subjectAltName": (("DNS", "kiosk-7.example"), ("URI", "spiffe://shop/k7"), ("IP Address", "10.0.0.1"),
                               ("email", "k7@shop.example")),
        }
    )  # fmt: skip
    assert found is not None
    assert found.names == ("DNS:kiosk-7.example", "URI:spiffe://shop/k7", "EMAIL:k7@shop.example", "CN:DNS:admin")
    assert peer_certificate(None) is peer_certificate({}) is None


def test_what_a_client_writes_is_never_a_certificate() -> None:
    peer = PeerCertificate.of(["DNS:kiosk-7"])
    assert not isinstance(credential_of(str(peer), peer), PeerCertificate)
    assert credential_of("", peer) is peer
    assert credential_of("", None) == ""
