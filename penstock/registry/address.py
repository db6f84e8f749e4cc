"""Where a registry is, and below which namespace of it models are: the URL that commands and agents are given.

``https://ghcr.io/acme`` is the namespace ``acme`` of ``ghcr.io``, as in every reference of an image: the model
``digits`` is its repository ``acme/digits``. A core behind a proxy may be below a path, though: where the host itself
is no registry, the path says where one is. ``/v2`` in the path leaves nothing to find out: before it is where the API
is, behind it the namespace (``https://host/penstock/v2``, ``https://ghcr.io/v2/acme``).
"""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass

from penstock.artifact.references import is_namespace
from penstock.errors import InvalidInput

_API = "v2"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryAddress:
    """A registry, and a namespace in it.

    Attributes:
        site: scheme, host, port and the path before ``/v2``.
        namespace: goes before the name of every repository; "" for none.
        below: what the address is instead if the host itself is no registry; None where the URL leaves no doubt.
    """

    site: str
    namespace: str = ""
    below: RegistryAddress | None = None

    @property
    def api(self) -> str:
        """Return the path under which the registry's API is."""
        return f"{urllib.parse.urlsplit(self.site).path}/{_API}"

    @property
    def server(self) -> str:
        """Return where the other APIs of a core are whose registry this is."""
        return (self.below or self).site

    def repository(self, name: str) -> str:
        """Return the name by which the registry knows a repository."""
        return f"{self.namespace}/{name}" if self.namespace else name

    def local(self, repository: str) -> str:
        """Return a repository's name below the namespace; "" where it is not in it."""
        if not self.namespace:
            return repository
        return repository[len(self.namespace) + 1 :] if repository.startswith(f"{self.namespace}/") else ""


def parse_registry(url: str) -> RegistryAddress:
    """Parse a registry's URL.

    Raises:
        InvalidInput: not an ``http://`` or ``https://`` URL, or one with more than a host and a path.
    """
    parts = http_parts(url)
    if parts is None:
        raise InvalidInput(f"registry: {url!r} is not a URL such as http://core:8000", field="registry")
    if parts.username is not None or parts.query or parts.fragment:
        raise InvalidInput(
            "registry: a URL holds a host and a path; give user and password by --user and --token "
            "(an agent: registry_user and registry_token)",
            field="registry",
        )
    host, segments = f"{parts.scheme}://{parts.netloc}", [segment for segment in parts.path.split("/") if segment]
    if _API not in segments:
        if not segments:
            return RegistryAddress(site=host)
        below = RegistryAddress(site="/".join((host, *segments)))
        namespace = "/".join(segments)
        return RegistryAddress(site=host, namespace=namespace, below=below) if is_namespace(namespace) else below
    at = segments.index(_API)
    namespace = "/".join(segments[at + 1 :])
    if namespace and not is_namespace(namespace):
        raise InvalidInput(
            f"registry: {namespace[:140]!r} is not a namespace; use lower-case letters, digits and . _ - between them",
            field="registry",
        )
    return RegistryAddress(site="/".join((host, *segments[:at])), namespace=namespace)


def is_registry(status: int, media_type: str) -> bool:
    """Say whether an answer to ``GET .../v2/`` is one of a registry: yes, or not without a credential."""
    return status == 401 or (status == 200 and media_type != "text/html")  # some show their pages under every path


def http_parts(url: str) -> urllib.parse.SplitResult | None:
    """Return the parts of an HTTP URL; None where it is none (its port, too, is only checked by being read)."""
    try:
        parsed = urllib.parse.urlsplit(url)
        is_http = parsed.scheme in ("http", "https") and bool(parsed.hostname) and parsed.port != 0 and url.isascii()
    except ValueError:
        return None
    return parsed if is_http else None


def absolute(base: str, reference: str) -> str:
    """Resolve what a registry sent as an address; what is none stays as it is, and is refused where it is asked."""
    try:
        return urllib.parse.urljoin(base, reference)
    except ValueError:
        return reference


def origin(parts: urllib.parse.SplitResult) -> tuple[str, str, int]:
    """Return what tells one server from another: scheme, host and port."""
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)
