"""All models of this device: which there are, one task for each, and collecting garbage across them.

What happens to one model is ``edge_agent.updates.model_updater``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from edge_agent.policy import blame
from edge_agent.policy.model_state import ModelState, Release
from edge_agent.updates.model_updater import ModelUpdater
from edge_agent.updates.reported import ReportedModel
from edge_agent.updates.tools import Tools
from edge_agent.updates.turns import Turns
from penstock.errors import ArtifactError, NotFound
from penstock.process.telemetry import log

_log = logging.getLogger(__name__)


class Updater:
    """Owns which models there are, runs a task for each, and collects garbage across them."""

    def __init__(self, tools: Tools, *, subscriptions: Iterable[str], max_models: int) -> None:
        self._tools, self._max_models = tools, max_models
        self._subscriptions = frozenset(subscriptions)
        self._models: dict[str, ModelUpdater] = {}
        self._tasks: asyncio.TaskGroup | None = None
        judged = blame.judge(tools.store.states().values(), tools.boot_id)
        self._turns = Turns(judged.order)
        for state in judged.states:
            self._models[state.model] = self._updater(state)
        if judged.order:
            log(_log, logging.WARNING, "the process before died: models are on trial one at a time",
                order=" ".join(judged.order))  # fmt: skip

    async def run(self) -> None:
        """Run every model's task until cancelled. The models of the last time come up first, without the cloud."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                for model in self._models.values():
                    tasks.create_task(model.run(), name=f"update {model.state.model}")
                tasks.create_task(asyncio.Event().wait(), name="forever")
        finally:
            self._tasks = None

    def stop(self) -> None:
        """Save that the process ends in an orderly way. Call it after ``run`` was cancelled."""
        for model in self._models.values():
            model.stop()

    def desire(self, model: str, release: Release) -> None:
        """Take the desired release of a model in; a model that was not here before gets a task."""
        if not self._subscriptions & {"*", model}:
            log(_log, logging.DEBUG, "not subscribed", model=model)
            return
        if model not in self._models:
            if len(self._models) >= self._max_models:
                log(_log, logging.WARNING, "too many models", model=model, max_models=self._max_models)
                return
            self._models[model] = self._updater(ModelState(model=model))
            if self._tasks is not None:
                self._tasks.create_task(self._models[model].run(), name=f"update {model}")
        self._models[model].desire(release)

    def judge(self, model: str, release: Release, is_distrusted: bool, trusted_at: float) -> None:
        """Take in what the fleet service and its operators say about a release: it matters if that is what runs."""
        found = self._models.get(model)
        hosted = found.reported().hosted if found is not None else None
        if found is not None and hosted is not None and found.state.active and found.state.active.key == release.key:
            hosted.note_judgement(is_distrusted=is_distrusted, trusted_at=trusted_at)

    def remove(self, model: str) -> None:
        """Drop a model with everything that is kept of it; what is not here, or not subscribed to, stays as it is."""
        if model in self._models and self._subscriptions & {"*", model}:
            self._models[model].remove()

    def _updater(self, state: ModelState) -> ModelUpdater:
        return ModelUpdater(state, self._tools, self._turns, self._collect, self._forget)

    def _forget(self, model: str) -> None:
        """Take a model that is off the disk from the list, and delete what only it needed."""
        del self._models[model]
        self._collect()
        self._tools.changed()

    def unblock(self, model: str) -> None:
        """Let a model try again what failed here.

        Raises:
            NotFound: this device has no such model.
        """
        if model not in self._models:
            have = ", ".join(sorted(self._models)) or "no model"
            raise NotFound(f"no model named {model!r}; this device has {have}")
        self._models[model].unblock()

    def reported(self) -> tuple[ReportedModel, ...]:
        """Return what is true of every model, by name."""
        return tuple(self._models[model].reported() for model in sorted(self._models))

    def _collect(self) -> None:
        """Delete what no model needs; later, if something is being fetched (its layers are not yet protected)."""
        if any(model.is_fetching for model in self._models.values()):
            return
        try:
            fetched = [model.progress.fetched for model in self._models.values() if model.progress.fetched]
            freed = self._tools.store.collect([model.state for model in self._models.values()], fetched)
        except (OSError, ArtifactError) as error:
            log(_log, logging.WARNING, "collecting failed", error=error)
            return
        if freed:
            log(_log, logging.INFO, "collected", freed_bytes=freed)
