"""What a tenant sees of the registry: names that it may ask for, and of others nothing.

Lists and metadata are made by many rows, over HTTP and gRPC, that know no tenants. So authentication notes who asks
beside the task (``contextvars``), and the registry that the data plane looks into answers accordingly. Where no tenant
is restricted there is none of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar

from cloud_core.policy import admission
from cloud_core.policy.admission import Tenant
from cloud_core.registry.registry import ModelVersion, Registry
from cloud_core.tenants.accounts import not_found
from penstock.errors import NotFound

_asking: ContextVar[Tenant | None] = ContextVar("asking", default=None)


def look_as(tenant: Tenant) -> None:
    """Let what this task looks at from now on be what a tenant may see."""
    _asking.set(tenant)


def may_see(name: str) -> bool:
    """Say whether who asks may know of a model or repository. The core itself, which nobody asked, knows all."""
    tenant = _asking.get()
    return tenant is None or admission.may_ask(tenant, name)


def check_name(name: str) -> None:
    """Check that who asks may know of a model or repository.

    Raises:
        PermissionDenied: it may not.
    """
    tenant = _asking.get()
    if tenant is not None:
        admission.check_model(tenant, name)


class SeenRegistry:
    """A registry as whoever asks sees it."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def models(self) -> list[str]:
        """List the models that may be seen."""
        return [model for model in self._registry.models() if may_see(model)]

    def versions(self, model: str) -> Sequence[ModelVersion]:
        """List the versions of a model; none of one that may not be seen."""
        return self._registry.versions(model) if may_see(model) else ()

    def resolve(self, model: str, version: str = "") -> ModelVersion:
        """Find a version.

        Raises:
            PermissionDenied: of a model that may not be seen. NotFound: there is none; names no others to who may not
                see all.
        """
        check_name(model)
        try:
            return self._registry.resolve(model, version)
        except NotFound:
            tenant = _asking.get()
            if tenant is not None and tenant.models is not None:
                raise not_found(model) from None
            raise
