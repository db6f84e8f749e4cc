"""Which versions should be in memory, as far as anybody said or asked, and what is told of those that are not.

Observes the registry, what operators said (``policy.traffic``), requests for versions that are not loaded, and
failures; makes the candidates of ``policy.placement`` from them. Loads nothing: that is the controller's.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from cloud_core.policy.placement import Candidate
from cloud_core.policy.traffic import NOTHING_SAID, Traffic, VersionPolicy
from cloud_core.registry.registry import ModelVersion, Registry
from cloud_core.serving.router import Served
from cloud_core.serving.served_text import ServedText
from cloud_core.settings import ServingSettings
from penstock.artifact.manifests import Variant
from penstock.errors import ArtifactError, Conflict, Internal, NotFound, PenstockError, Unavailable
from penstock.policy.retry import Backoff
from penstock.process.telemetry import log
from penstock.wire.inference import Readiness

_log = logging.getLogger(__name__)
_BACKOFF = Backoff(base_s=2.0, factor=4.0, max_s=300.0)
_MAX_ASKED = 1024
_MOST_TIMES, _MOST_BYTES = 8, 64 * 1024 * 1024
"""What a variant is taken to need at most, by the size of its files: what else took memory meanwhile was not it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    reason: str
    attempts: int
    retry_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    version: ModelVersion
    at: float | None  # None once it was answered: the version stays known though no tag may name it


class Demand:
    """What should be in memory.

    Attributes:
        loading: digest of the variant that is being loaded; "" for none.
        no_slot: digests of variants for which there is no room.
    """

    def __init__(
        self,
        registry: Registry,
        settings: ServingSettings,
        served: Mapping[str, Served | ServedText],
        now: Callable[[], float],
        *,
        wake: Callable[[], None],
        is_settled: Callable[[], bool],
    ) -> None:
        """
        Args:
            served: what is in memory, by the variant's digest.
            wake: is called when a version is asked for that is not loaded.
            is_settled: whether everything that should be loaded has been looked at once.
        """
        self.loading = ""
        self.no_slot: frozenset[str] = frozenset()
        self._registry, self._settings, self._served, self._now = registry, settings, served, now
        self._wake, self._is_settled = wake, is_settled
        self._traffic: Mapping[str, Traffic] = {}
        self._otherwise = NOTHING_SAID
        self._variants: dict[str, Variant] = {}
        self._asked: dict[str, _Asked] = {}
        self._failures: dict[str, _Failure] = {}
        self._measured: dict[str, int] = {}
        self._standing: dict[str, ModelVersion] = {}
        self._before: dict[str, ModelVersion] = {}  # the default versions that stood before those that stand now

    def __repr__(self) -> str:
        return f"Demand({len(self._asked)} asked for, {len(self._failures)} failed)"

    def steer(self, traffic: Mapping[str, Traffic], otherwise: Traffic) -> None:
        """Take in what operators said, by model; ``otherwise`` is for models of which nothing was said."""
        self._traffic, self._otherwise = traffic, otherwise

    def variant_of(self, digest: str) -> Variant:
        """Return the cloud variant of an artifact; cached, since a digest never means anything else.

        Raises:
            NotFound: it has none. Internal: its files were damaged since they were pushed.
            SignatureError: nobody that this core trusts signed it.
        """
        variant = self._variants.get(digest)
        if variant is None:
            variant = self._variants[digest] = self._read_variant(digest)
        return variant

    def state(self, version: ModelVersion) -> tuple[Readiness, str]:
        """Say whether a version is served, and why not."""
        try:
            digest = self.variant_of(version.digest).digest
        except PenstockError as error:
            return "UNAVAILABLE", error.message
        if reason := self._kept_out(version):
            return "UNAVAILABLE", reason
        if digest in self._served:
            problem = self._served[digest].problem
            return ("UNAVAILABLE", problem) if problem else ("READY", "")
        if digest in self._failures:
            return "UNAVAILABLE", self._failures[digest].reason
        if digest in self.no_slot:
            return "UNAVAILABLE", self._no_slot_reason()
        asked = self._asked.get(digest)
        if digest == self.loading or not self._is_settled() or (asked is not None and asked.at is not None):
            return "LOADING", "being loaded"
        return "UNAVAILABLE", "not loaded; a request for it loads it"

    def ask(self, version: ModelVersion, variant: Variant) -> PenstockError:
        """Take in that a request came for a version that is not loaded; return what to answer."""
        what = f"model {version.model!r} version {version.tag or version.digest!r}"
        if reason := self._kept_out(version):
            return Unavailable(f"{what} is not served: {reason}", retry_after_s=self._settings.retry_after_s)
        failure = self._failures.get(variant.digest)
        if failure is not None:
            retry_after_s = max(1.0, failure.retry_at - self._now())
            return Unavailable(f"{what} could not be loaded: {failure.reason}", retry_after_s=retry_after_s)
        if variant.digest in self.no_slot:
            # asked again below: a slot may have come free since
            message = f"{what} is not loaded: {self._no_slot_reason()}"
        else:
            message = f"{what} is being loaded; try again"
        asked = self._asked.get(variant.digest)
        if asked is None or asked.at is None:
            if len(self._asked) >= _MAX_ASKED:
                self._asked.pop(next(iter(self._asked)))
            self._asked[variant.digest] = _Asked(version=version, at=self._now())
            self._wake()
        return Unavailable(message, retry_after_s=self._settings.retry_after_s)

    def instead(self, default: ModelVersion) -> ModelVersion | None:
        """Return what answers for a default version that is not loaded yet, or whose processes died too often.

        That is the default before it; None where nothing can. A default that moved is loaded before the old one goes,
        and no request sees it.
        """
        served = self._served.get(self.variant_of(default.digest).digest)
        standing = (self._standing if served is None else self._before).get(default.model)
        if standing is None or self._is_unloaded(default) or self._is_unloaded(standing):
            return None
        if served is not None and not self._can_answer(standing):
            return None
        return standing

    def _can_answer(self, version: ModelVersion) -> bool:
        """Say whether a version answers now; have it loaded where it may be."""
        try:
            variant = self.variant_of(self._registry.resolve(version.model, version.digest).digest)
        except PenstockError:  # deleted from the registry since, or damaged
            return False
        served = self._served.get(variant.digest)
        if served is None:
            self.ask(version, variant)
        return served is not None and not served.problem

    def answered(self, digest: str) -> None:
        """Note that a variant which was asked for is loaded, or cannot be: it is not waited for any more."""
        asked = self._asked.get(digest)
        if asked is not None:
            self._asked[digest] = replace(asked, at=None)

    def loaded(self, digest: str, size_bytes: int) -> None:
        """Note that a variant was loaded, and how much memory it took."""
        self._failures.pop(digest, None)
        self._measured[digest] = size_bytes

    def failed(self, digest: str, error: Exception) -> None:
        """Note that a variant could not be loaded; it is tried again later."""
        attempts = self._failures[digest].attempts + 1 if digest in self._failures else 0
        reason = error.message if isinstance(error, PenstockError) else f"{type(error).__name__}: {error}"
        retry_at = self._now() + _BACKOFF.delay_s(attempts, random.random(), retry_after_s=1.0)
        self._failures[digest] = _Failure(reason=reason, attempts=attempts, retry_at=retry_at)
        log(_log, logging.ERROR, "cannot load", variant=digest, reason=reason, attempts=attempts + 1)

    def retry(self, digest: str) -> None:
        """Forget that a variant could not be loaded: somebody says that it can be now."""
        self._failures.pop(digest, None)

    def size_bytes(self, variant: Variant) -> int:
        """Return the memory that a variant takes: measured where it was loaded, else that of its files."""
        if variant.spec.model in self._settings.generation.remote.urls:
            return 0  # it runs elsewhere
        of_files = variant.weights.size + sum(file.size for file in variant.files)
        return max(of_files, min(self._measured.get(variant.digest, 0), _MOST_TIMES * of_files + _MOST_BYTES))

    def check_room(self, version: ModelVersion) -> None:
        """
        Raises:
            Conflict: a version does not fit beside the default versions and what else is held in memory.
        """
        settings, variant = self._settings, self.variant_of(version.digest)
        held = {one.digest: one.size_bytes for one in self.candidates().values() if one.is_held}
        held[variant.digest] = self.size_bytes(variant)
        if len(held) > settings.max_loaded_models:
            limit = f"serving.max_loaded_models is {settings.max_loaded_models}"
        elif settings.max_loaded_bytes and sum(held.values()) > settings.max_loaded_bytes:
            limit = f"serving.max_loaded_bytes is {settings.max_loaded_bytes}"
        else:
            return
        raise Conflict(
            f"there is no room to hold {version.model} {version.tag or version.digest} in memory: {len(held)} variants "
            f"of {sum(held.values())} bytes would be held, and {limit}; unpin another one, or raise the limit"
        )

    def variant_named(self, digest: str) -> Variant:
        """Return a variant that was a candidate, by its own digest."""
        return next(one for one in self._variants.values() if one.digest == digest)

    def candidates(self) -> dict[str, Candidate]:
        """Look at everything that may be loaded, by the variant's digest."""
        self._settle_defaults()
        found: dict[str, Candidate] = {}
        known: dict[str, Variant] = {}
        for version, fills in self._known_versions():
            try:
                variant = known[version.digest] = self.variant_of(version.digest)
            except PenstockError as error:
                # a version for devices only is nothing to warn of; a damaged one is
                level = logging.DEBUG if isinstance(error, NotFound) else logging.WARNING
                what = f"{version.model}:{version.tag or version.digest}"
                log(_log, level, "cannot be served", version=what, reason=error.message)
                continue
            if self._kept_out(version):
                continue
            found[variant.digest] = _joined(found.get(variant.digest), self._candidate(version, variant, fills))
        self._variants = known
        self._failures = {digest: failure for digest, failure in self._failures.items() if digest in found}
        self._measured = {digest: size for digest, size in self._measured.items() if digest in found}
        return found

    # -- inside ------------------------------------------------------------------------------------------------------

    def _read_variant(self, digest: str) -> Variant:
        try:
            artifact = self._registry.artifact(digest)
        except ArtifactError as error:
            raise Internal(f"the artifact is damaged here: {error.message}") from error
        self._registry.check_signed(artifact)
        try:
            return artifact.variant("cloud")
        except ArtifactError as error:
            raise NotFound(f"this version runs on devices only: {error.message}") from error

    def versions_of(self, model: str) -> str:
        """Say which versions of a model are served, in the words of its version policy."""
        return str(self._said(model).versions or VersionPolicy())

    def _said(self, model: str) -> Traffic:
        return self._traffic.get(model, self._otherwise)

    def _is_unloaded(self, version: ModelVersion) -> bool:
        return version.digest in self._said(version.model).unloaded

    def _kept_out(self, version: ModelVersion) -> str:
        """Say why a version may not be in memory though it could be; "" where it may."""
        said = self._said(version.model)
        if version.digest in said.unloaded:
            return f"it was unloaded; 'penstock core load {version.model} {version.tag or version.digest}' loads it"
        if said.versions is None or said.versions.kind == "all" or version.is_default:
            return ""
        if version.digest in said.needed or self._stands_in(version):
            return ""
        versions = self._registry.versions(version.model)
        tags = said.versions.allowed([one.tag for one in versions])
        if any(one.tag in tags and one.digest == version.digest for one in versions):
            return ""
        return f"the version policy of {version.model} is {said.versions} ('penstock core versions {version.model}')"

    def _no_slot_reason(self) -> str:
        settings = self._settings
        limit = f"all {settings.max_loaded_models} slots (serving.max_loaded_models) are taken by default versions"
        if settings.max_loaded_bytes:
            return (
                f"{limit} and pinned ones, or it does not fit in {settings.max_loaded_bytes} bytes beside them "
                "(serving.max_loaded_bytes)"
            )
        return limit

    def _settle_defaults(self) -> None:
        """Note which default versions answer; where one does not yet, the one before it stands in."""
        standing: dict[str, ModelVersion] = {}
        for model in self._registry.models():
            default = self._registry.resolve(model)
            if self._is_in_memory(default):
                standing[model] = default
                if (stood := self._standing.get(model, default)).digest != default.digest:
                    self._before[model] = stood
            elif (before := self._standing.get(model)) is not None and self._is_in_memory(before):
                standing[model] = before
        self._standing = standing

    def _is_in_memory(self, version: ModelVersion) -> bool:
        try:
            self._registry.resolve(version.model, version.digest)
            return self.variant_of(version.digest).digest in self._served
        except PenstockError:
            return False

    def _known_versions(self) -> Iterator[tuple[ModelVersion, bool]]:
        """Yield every version that may be in memory, and whether it may fill what is free by itself."""
        registry = self._registry
        for model in registry.models():
            yield registry.resolve(model), True
            for version in registry.versions(model):
                yield version, True
            for digest in self._said(model).needed:
                try:
                    yield registry.resolve(model, digest), False
                except NotFound:
                    continue  # deleted from the registry since
        for digest, asked in tuple(self._asked.items()):
            try:
                yield registry.resolve(asked.version.model, asked.version.digest), True
            except NotFound:
                del self._asked[digest]

    def _candidate(self, version: ModelVersion, variant: Variant, fills: bool) -> Candidate:
        served = self._served.get(variant.digest)
        asked = self._asked.get(variant.digest)
        failure = self._failures.get(variant.digest)
        standing = self._standing.get(version.model)
        return Candidate(
            digest=variant.digest,
            is_default=version.is_default,
            is_pinned=self._stands_in(version) or version.digest in self._said(version.model).needed,
            fills=fills,
            pushed_at=version.pushed_at.timestamp(),
            is_loaded=served is not None,
            is_busy=served is not None and served.inflight > 0,
            last_used_at=served.last_used_at if served else 0.0,
            asked_at=asked.at if asked else None,
            retry_at=failure.retry_at if failure else None,
            size_bytes=self.size_bytes(variant),
            replaces=self._replaced(version, standing),
        )

    def _stands_in(self, version: ModelVersion) -> bool:
        """Say whether a version answers for a default version that is not loaded yet."""
        standing = self._standing.get(version.model)
        return standing is not None and standing.digest == version.digest and not version.is_default

    def _replaced(self, version: ModelVersion, standing: ModelVersion | None) -> frozenset[str]:
        if not version.is_default or standing is None or standing.digest == version.digest:
            return frozenset()
        return frozenset({self.variant_of(standing.digest).digest})


def _joined(one: Candidate | None, other: Candidate) -> Candidate:
    """Versions that share a variant: it is as pinned and as new as any of them."""
    if one is None:
        return other
    return replace(
        other,
        is_default=one.is_default or other.is_default,
        is_pinned=one.is_pinned or other.is_pinned,
        fills=one.fills or other.fills,
        pushed_at=max(one.pushed_at, other.pushed_at),
        replaces=one.replaces | other.replaces,
    )
