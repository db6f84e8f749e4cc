"""What happens to the requests of a model of whose traffic something was said: arms of a split, and shadows.

Owns the counts of each arm and each shadow. A model of which nothing was said has no lane, and its requests pay for
none. Decides nothing: which arm a request gets is ``policy.traffic``'s, what the counts mean ``policy.canary``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cloud_core.policy.traffic import BASE, Shadow, Split, Traffic, parameter_of
from cloud_core.registry.registry import ModelVersion
from cloud_core.serving.counters import RouteMeasures
from cloud_core.serving.shadowing import Shadowing
from penstock.wire.context import RequestContext

if TYPE_CHECKING:
    from cloud_core.serving.router import Route, Served
    from cloud_core.serving.served_text import ServedText
    from cloud_core.serving.settings import TrafficSettings


class ArmMeasures:
    """Counts requests of one arm, and of its version as well.

    Attributes:
        own: those of the arm since its step began.
    """

    __slots__ = ("_version", "own")

    def __init__(self, version: RouteMeasures, own: RouteMeasures) -> None:
        self._version, self.own = version, own

    @property
    def rows(self) -> int:
        return self._version.rows

    @rows.setter
    def rows(self, rows: int) -> None:
        self.own.rows += rows - self._version.rows
        self._version.rows = rows

    def finished(self, code: str, took_s: float) -> None:
        self._version.finished(code, took_s)
        self.own.finished(code, took_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """What else happens to the requests of one arm.

    Attributes:
        arm: its name.
        parameter: the request parameter that says where a request goes, which is not known yet; "" for none.
        shadow: gets copies of what was answered; None for nobody.
    """

    arm: str
    parameter: str = ""
    shadow: Shadowing | None = None


class Lanes:
    """The lanes of all models.

    Attributes:
        splits: by model.
        shadows: by model.
        arms: counts of each arm of each model since its step began.
    """

    def __init__(self, settings: TrafficSettings, served: Mapping[str, Served | ServedText]) -> None:
        """
        Args:
            served: what is in memory, by the variant's digest.
        """
        self.splits: dict[str, Split] = {}
        self.shadows: dict[str, Shadowing] = {}
        self.arms: dict[tuple[str, str], RouteMeasures] = {}
        self._settings, self._served = settings, served

    def steer(self, traffic: Mapping[str, Traffic], variants: Mapping[str, str]) -> None:
        """Take in what operators said. Counts go on where it is the same as before, and begin at nothing elsewhere.

        Args:
            variants: digests of cloud variants by those of artifacts, of all shadows.
        """
        splits = {model: said.split for model, said in traffic.items() if said.split is not None}
        changed = {model for model, split in self.splits.items() if not _is_same(splits.get(model), split)}
        self.arms = {key: counts for key, counts in self.arms.items() if key[0] not in changed}
        self.splits = splits
        before, self.shadows = self.shadows, {}
        for model, said in traffic.items():
            if said.shadow is None or said.shadow.digest not in variants:
                continue
            old = before.get(model)
            if old is not None and old.shadow == said.shadow and model not in changed:
                self.shadows[model] = old
            else:
                self.shadows[model] = self._shadowing(said.shadow, variants[said.shadow.digest])

    def of_arm(self, route: Route, split: Split, name: str) -> Route:
        """Make the route of an arm from that of its version."""
        own = self.arms.setdefault((route.version.model, name), RouteMeasures())
        measures = route.measures
        assert isinstance(measures, RouteMeasures)
        return replace(
            route,
            measures=ArmMeasures(measures, own),
            parameters={**route.parameters, "arm": name},
            lane=Lane(arm=name, shadow=self._shadow_of(route)),
        )

    def undecided(self, route: Route, split: Split) -> Route:
        """Make the route of a request that may move to another arm when its parameters are known."""
        assert route.lane is not None
        return replace(route, lane=replace(route.lane, parameter=parameter_of(split.sticky)))

    def shadowed(self, route: Route) -> Route:
        """Give the route of a default version its lane, where its requests are copied to a shadow."""
        shadow = self._shadow_of(route)
        return route if shadow is None else replace(route, lane=Lane(arm=BASE, shadow=shadow))

    def percent(self, version: ModelVersion) -> float | None:
        """Return a version's part of the requests that name none; None where nobody divides them."""
        split = self.splits.get(version.model)
        if split is None:
            return None
        if version.is_default:
            return 100 - sum(arm.percent for arm in split.arms)
        return sum(arm.percent for arm in split.arms if arm.digest == version.digest)

    def _shadow_of(self, route: Route) -> Shadowing | None:
        """Return the shadow of a route; None where it would be compared with itself."""
        shadow = self.shadows.get(route.version.model)
        return None if shadow is None or shadow.shadow.digest == route.version.digest else shadow

    def _shadowing(self, shadow: Shadow, variant: str) -> Shadowing:
        return Shadowing(shadow, lambda: self._served.get(variant), self._settings)


def _is_same(one: Split | None, other: Split) -> bool:
    return one is not None and one.course == other.course


def sticky_key(sticky: str, context: RequestContext) -> str:
    """Return what keeps a caller with one arm, as far as it is known before the payload; "" where nothing does."""
    match sticky:
        case "tenant":
            return context.tenant
        case "header":
            return context.sticky_key
        case _:
            return ""
