"""Brings one model from what runs to what is desired: observe, plan, one action, report.

The task of ``run`` owns the model's state; nothing else writes it. What the next action is, is decided by
``edge_agent.policy.update``; this module does it, makes the new state durable before it counts, and says what came of
it. Killed at any point, it continues from the state on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

from edge_agent.policy import model_state, update
from edge_agent.policy.model_state import ModelState, Release, Slot
from edge_agent.policy.update import LoadFailure, Progress, UpdateLimits
from edge_agent.serving.hosting import Hosted
from edge_agent.updates import slot_loading
from edge_agent.updates.fetch import FixedByDigest, Transferred
from edge_agent.updates.reported import ReportedModel
from edge_agent.updates.slot_loading import SlotLoader
from edge_agent.updates.store import in_thread
from edge_agent.updates.tools import Tools, as_internal
from edge_agent.updates.turns import Turns
from penstock.errors import DigestMismatch, NotFound, PenstockError, StorageError
from penstock.policy.retry import Backoff
from penstock.process.telemetry import log

_log = logging.getLogger(__name__)
_POLL_S = 0.5  # how often failures and rows are looked at during a probation
_MAX_ERROR_CHARS = 1000


class ModelUpdater:
    """Owns the state of one model, and the task that moves it."""

    def __init__(
        self, state: ModelState, tools: Tools, turns: Turns, collect: Callable[[], None], forget: Callable[[str], None]
    ) -> None:
        """Take the ``state`` to begin with, in which the deaths of earlier processes are judged."""
        self.state = state
        self.progress = Progress(started_at=tools.now())
        self._aged_at = tools.now()
        self._tools, self._turns, self._collect, self._forget = tools, turns, collect, forget
        self._loader = SlotLoader(state.model, tools)
        self._is_unwanted = False
        self._limits = UpdateLimits(
            probation_s=tools.settings.probation_s,
            probation_requests=tools.settings.probation_requests,
            max_crashes=tools.settings.max_crashes,
            patience=tools.settings.patience,
            block_s=tools.settings.block_s,
            retry_max_s=tools.settings.retry_max_s,
        )
        self._backoff = Backoff(base_s=tools.settings.retry_base_s, max_s=tools.settings.retry_max_s)
        self._wake = asyncio.Event()
        self._pull: asyncio.Task[Slot] | None = None
        self._newly_desired: Release | None = None
        self._should_unblock = False
        self._prepared: Hosted | None = None
        self._hosted: Hosted | None = None
        self._rows_at_clean = 0
        self._transferred = Transferred()
        self._saved_audits, self._save_audits_at = state.audits, 0.0
        self._save_at = tools.now() + tools.settings.audit_save_s

    def __repr__(self) -> str:
        return f"ModelUpdater({self.state.model}, {self.reported().phase}, {self.state})"

    def desire(self, release: Release) -> None:
        """Take a desired release in; the newest one wins, also over one that is half done."""
        # compared with the newest of all: v2 taken back before the task saw it (v1, v2, v1) must end at v1
        if self._is_unwanted or release != (self._newly_desired or self.state.desired):
            self._is_unwanted = False
            self._newly_desired = release
            self._wake.set()

    def remove(self) -> None:
        """Take in that the model is to be dropped, unless it is desired again before that is done."""
        self._is_unwanted, self._newly_desired = True, None
        self._wake.set()

    def unblock(self) -> None:
        """Take in that an operator wants what failed here tried again, and not later but now."""
        self._should_unblock = True
        self._wake.set()

    def reported(self) -> ReportedModel:
        """Return what is true now."""
        phase, error = update.phase(self.state, self.progress, self._limits)
        desired = self.state.desired
        failure = self.state.failure_of(desired) if desired else None
        return ReportedModel(
            model=self.state.model,
            active=self.state.active,
            previous=self.state.previous,
            desired=desired,
            phase=phase,
            error=error[:_MAX_ERROR_CHARS],
            failed_digest=failure.release.artifact_digest if failure and failure.is_blocked else "",
            transferred=self._transferred,
            hosted=self._hosted,
            retry_in_s=self._retry_in_s(failure),
        )

    def _retry_in_s(self, failure: model_state.Failure | None) -> float | None:
        now = self._tools.now()
        if failure is not None and failure.is_blocked:
            return max(0.0, model_state.block_left_s(failure, self._limits.block_s) - (now - self._aged_at))
        times = (self.progress.retry_at, self.progress.load_retry_at if self.progress.load_failure else 0.0)
        return min((at - now for at in times if at > now), default=None)

    @property
    def is_fetching(self) -> bool:
        return self._pull is not None

    async def run(self) -> None:
        """Plan and act until cancelled."""
        try:
            while True:
                self._wake.clear()
                if await self._is_removed():
                    return
                await self._take_desired()
                await self._observe()
                await self._age_blocks()
                action = update.plan(self.state, self.progress, self._limits, self._tools.now())
                if not isinstance(action, update.Load) and not any(trial.is_open for trial in self.state.trials):
                    await self._turns.pass_on(self.state.model)
                if isinstance(action, update.Nothing):
                    await self._rest(action.wake_at)
                    continue
                log(_log, logging.INFO, "update step", model=self.state.model, action=type(action).__name__.lower())
                await self._act(action)
                self._tools.changed()
        finally:
            await self._cancel_pull()
            await self._discard_prepared()  # it has a process of its own where it generates
            await self._turns.pass_on(self.state.model)

    def stop(self) -> None:
        """Save that the process stops in an orderly way: what is on trial did not crash."""
        self._take_audit()
        self._pass_time()
        for trial in self.state.trials:
            self.state = model_state.end_trial(self.state, trial.key)
        try:
            self._tools.store.save(self.state)
        except StorageError as error:
            self._warn_unsaved(error)

    async def _is_removed(self) -> bool:
        """Drop the model where that is wanted: its state on disk first, so that no start brings it up again."""
        if not self._is_unwanted:
            return False
        await self._forget_candidate()
        try:
            await in_thread(self._tools.store.forget, self.state.model)
        except StorageError as error:
            self._warn_unsaved(error)
            return False  # the next heartbeat asks again
        hosted, self._hosted = self._tools.hosting.withdraw(self.state.model), None
        if self._is_unwanted:
            log(_log, logging.INFO, "model removed", model=self.state.model)
            self._forget(self.state.model)  # before the wait below: what is desired meanwhile gets a task of its own
        else:  # desired again while the file went
            self.state, self.progress = ModelState(model=self.state.model), Progress()
        if hosted is not None:
            await self._tools.hosting.retire(hosted)
        return self._is_unwanted

    async def _act(self, action: update.Action) -> None:
        match action:
            case update.Load(slot=slot):
                await self._load(slot)
            case update.Fetch(release=release):
                await self._fetch(release)
            case update.Prove(slot=slot):
                await self._prove(slot)
            case update.Activate(slot=slot):
                await self._activate(slot)
            case update.Commit(reason=reason):
                committed = model_state.commit(self.state)
                if not await self._try_save(committed, "committed", reason):
                    self.state = committed  # where nothing can be written, too: it has shown that it is healthy
            case update.Revert(reason=reason, should_block=should_block):
                await self._revert(reason, should_block)
            case update.Refuse(release=release, reason=reason):
                await self._refuse(release, "reverted", reason)
            case update.Collect():
                self._set(should_collect=False)
                self._collect()
            case update.Nothing():
                raise AssertionError("there is nothing to do")
            case _:
                assert_never(action)

    async def _take_desired(self) -> None:
        release, self._newly_desired = self._newly_desired, None
        if release is None:
            return
        is_new = self.state.desired is None or self.state.desired.key != release.key
        self.state = model_state.desire(self.state, release)
        await self._save_or_warn()
        log(_log, logging.INFO, "desired changed", model=self.state.model, version=release.version,
            artifact=release.artifact_digest, certificate=release.certificate_digest)  # fmt: skip
        if is_new:
            await self._forget_candidate()
            known = self.state.failure_of(release)
            attempts = known.count - 1 if known else 0  # flapping between releases must not wear out the flash
            self._set(failed_attempts=0, error="", is_hard=False, retry_at=self._retry_at(attempts, None))
        self._tools.changed()

    async def _observe(self) -> None:
        """Take in what happened elsewhere: a pull that ended, rows and failures of the active slot."""
        if self._pull is not None and self._pull.done():
            pull, self._pull = self._pull, None
            self._set(fetching=None)
            await self._end_fetch(pull)
        hosted = self._hosted
        if hosted is None:
            return
        rows = hosted.counts.requests
        if hosted.failures > self.progress.failures:
            self._rows_at_clean = rows
            self._set(failures=hosted.failures, clean_since=self._tools.now())
        self._set(clean_requests=rows - self._rows_at_clean)
        await self._keep_audit()

    async def _age_blocks(self) -> None:
        """Let blocks grow old by the time that passes here; a wrong date must neither end nor prolong one."""
        before = self.state
        self._pass_time()
        if self._should_unblock:
            self._should_unblock = False
            self.state = model_state.unblock(self.state)
            self._set(failed_attempts=0, error="", is_hard=False, retry_at=0.0, load_retry_at=0.0)
            log(_log, logging.INFO, "unblocked by an operator", model=self.state.model)
            self._tools.changed()
        is_blocked = [failure.is_blocked for failure in self.state.failures]
        if is_blocked != [failure.is_blocked for failure in before.failures] or self._tools.now() >= self._save_at:
            self._save_at = self._tools.now() + self._tools.settings.audit_save_s
            if self.state != before:
                await self._save_or_warn()

    def _pass_time(self) -> None:
        passed_s, self._aged_at = self._tools.now() - self._aged_at, self._tools.now()
        self.state = model_state.age_blocks(self.state, passed_s, self._limits.block_s)

    def _take_audit(self) -> None:
        """Take what the audit of the running slot has found into the state, which is written later."""
        if self._hosted is not None and self._hosted.audit is not None:
            self.state = model_state.note_audit(self.state, self._hosted.audit)

    def _alarmed(self) -> None:
        self._save_audits_at = 0.0
        self._wake.set()
        self._tools.changed()

    async def _keep_audit(self) -> None:
        """Write what the audit has found from time to time only: flash memory wears out."""
        self._take_audit()
        if self._tools.now() < self._save_audits_at:
            return
        self._save_audits_at = self._tools.now() + self._tools.settings.audit_save_s
        if self.state.audits != self._saved_audits and await self._save_or_warn():
            self._saved_audits = self.state.audits
            self._save_at = self._save_audits_at  # how old blocks are was written with it

    async def _rest(self, wake_at: float | None) -> None:
        limits = [wake_at - self._tools.now()] if wake_at is not None else []
        if update.is_watched(self.state, self.progress):
            limits.append(_POLL_S)
        if self._hosted is not None and self._hosted.audit is not None:
            limits.append(self._save_audits_at - self._tools.now())
        if any(failure.is_blocked for failure in self.state.failures):
            limits.append(self._save_at - self._tools.now())
        with contextlib.suppress(TimeoutError):
            # not wait_for: that of Python 3.11 forgets a stop that comes while it wakes
            async with asyncio.timeout(max(0.0, min(limits)) if limits else None):
                await self._wake.wait()

    async def _load(self, slot: Slot) -> None:
        async def begin() -> bool:
            self.state = model_state.begin_trial(self.state, slot.key, self._tools.boot_id)
            await self._save_or_warn()
            return True

        active = self.state.active
        has_run = self.state.is_committed and active is not None and active.key == slot.key
        await self._turns.take(self.state.model)
        try:
            hosted = await self._loader.load(slot, begin, audits=self.state.audits, has_run=has_run)
            assert hosted is not None  # a full disk keeps no proven model from answering
        except PenstockError as error:
            is_damaged = slot_loading.is_damaged(error)
            if is_damaged:
                await self._loader.discard_damaged(slot)
            log(_log, logging.ERROR, "cannot load", model=self.state.model, version=slot.release.version,
                error=error.message)  # fmt: skip
            attempts = self.progress.load_attempts + 1
            self.state = model_state.end_trial(self.state, slot.key)  # it failed with an error, not with a crash
            self._tools.hosting.cannot_load(self.state.model, f"{'damaged: ' if is_damaged else ''}{error.message}")
            await self._save_or_warn()
            self._set(
                load_failure=LoadFailure(reason=error.message[:_MAX_ERROR_CHARS], is_damaged=is_damaged),
                load_attempts=attempts,
                load_retry_at=self._retry_at(attempts, error.retry_after_s),
            )
            return
        await self._answer_with(hosted, slot)

    async def _fetch(self, release: Release) -> None:
        await self._forget_candidate()
        self._collect()  # what an earlier desired release left behind may be the space that this one needs
        self._transferred = Transferred()
        pull = self._tools.fetcher.pull(self.state.model, release, self._on_transferred)
        self._pull = asyncio.create_task(pull, name=f"pull {self.state.model}")
        self._pull.add_done_callback(lambda _: self._wake.set())
        self._set(fetching=release.key)

    async def _end_fetch(self, pull: asyncio.Task[Slot]) -> None:
        error = pull.exception()
        if error is None:
            self._set(fetched=pull.result(), failed_attempts=0, error="", is_hard=False)
        elif isinstance(error, PenstockError):
            await self._not_fetched(error)
        else:  # a defect of ours in reading foreign bytes must not stop what runs
            log(_log, logging.ERROR, "fetch died", model=self.state.model, exc_info=error)
            await self._not_fetched(as_internal(error))

    async def _not_fetched(self, error: PenstockError) -> None:
        desired = self.state.desired
        is_repair = update.wanted(self.state, self.progress) != desired
        is_fixed = isinstance(error, FixedByDigest) and not is_repair
        weight = update.severity(error.code, is_fixed=is_fixed)
        log(_log, logging.WARNING, "fetch failed", model=self.state.model, code=error.code, error=error.message)
        if weight == "final" and desired is not None:
            await self._refuse(desired, "failed", error.message)
        else:
            self._back_off(error, is_hard=weight == "failed")
        self._tools.changed()

    async def _prove(self, slot: Slot) -> None:
        """Load a slot beside the running one. If that kills the process, the trial on disk counts it."""

        async def begin() -> bool:
            trial = model_state.begin_trial(self.state, slot.key, self._tools.boot_id)
            return await self._try_save(trial, "proving", slot.release.version)

        await self._turns.take(self.state.model)
        try:
            self._prepared = await self._loader.load(slot, begin, audits=self.state.audits)
        except PenstockError as error:
            self.state = model_state.end_trial(self.state, slot.key)  # it failed with an error, not with a crash
            await self._save_or_warn()
            await self._not_proven(slot, error)
        else:
            self._set(prepared=slot.key if self._prepared else None)

    async def _not_proven(self, slot: Slot, error: PenstockError) -> None:
        match error:
            case StorageError():
                self._back_off(error, is_hard=True)
            case DigestMismatch() | NotFound():  # the disk lost it since it was fetched
                await self._loader.discard_damaged(slot)
                self._set(fetched=None)
                self._back_off(error, is_hard=True)
            case _:
                await self._refuse(slot.release, "reverted", error.message)

    async def _activate(self, slot: Slot) -> None:
        """Switch to a proven slot, on disk first: killed in between, the next start serves it, still on its trial."""
        prepared, activated = self._prepared, model_state.activate(self.state, slot)
        if prepared is None or not await self._try_save(activated, "activated", slot.release.version):
            await self._discard_prepared()
            return
        self._prepared = None
        self._set(prepared=None, fetched=None)
        await self._answer_with(prepared, slot)

    async def _answer_with(self, hosted: Hosted, slot: Slot) -> None:
        self._take_audit()
        before = self._tools.hosting.activate(hosted)
        self._hosted = hosted
        survived = model_state.survive(self.state, slot.key)
        if survived != self.state:
            self.state = survived
            await self._save_or_warn()
        hosted.on_alarm = self._alarmed
        self._rows_at_clean = hosted.counts.requests
        self._set(
            loaded=slot.key,
            damaged=hosted.plan.damaged,
            load_failure=None,
            load_attempts=0,
            failures=hosted.failures,
            clean_since=self._tools.now(),
            clean_requests=0,
            should_collect=True,
        )
        if before is not None:
            await self._tools.hosting.retire(before)

    async def _revert(self, reason: str, should_block: bool) -> None:
        limit = self._tools.settings.max_failures
        back = model_state.revert(self.state, reason, limit=limit, should_block=should_block)
        await self._forget_candidate()
        self.state = back  # also when the disk is full: what is broken must not go on answering
        await self._save_or_warn()
        log(_log, logging.WARNING, "reverted", model=self.state.model, reason=reason,
            to=back.active.release.version if back.active else "nothing")  # fmt: skip
        self._set(load_failure=None, load_attempts=0, should_collect=True)

    async def _refuse(self, release: Release, kind: model_state.FailureKind, reason: str) -> None:
        log(_log, logging.WARNING, "refused", model=self.state.model, version=release.version, reason=reason)
        reason = reason[:_MAX_ERROR_CHARS]
        self.state = model_state.fail(self.state, release, kind, reason, limit=self._tools.settings.max_failures)
        await self._save_or_warn()
        await self._forget_candidate()
        self._set(should_collect=True)

    def _back_off(self, error: PenstockError, *, is_hard: bool) -> None:
        attempts = self.progress.failed_attempts + 1
        self._set(
            failed_attempts=attempts,
            retry_at=self._retry_at(attempts, error.retry_after_s),
            error=error.message[:_MAX_ERROR_CHARS],
            is_hard=is_hard,
        )

    def _retry_at(self, attempts: int, retry_after_s: float | None) -> float:
        """Return when to try again after ``attempts`` failures in a row; 0 is at once."""
        if attempts <= 0:
            return 0.0
        delay_s = self._backoff.delay_s(attempts - 1, self._tools.random(), retry_after_s=retry_after_s)
        return self._tools.now() + delay_s

    async def _forget_candidate(self) -> None:
        """Drop a pull that is under way, and a model that was proven and not switched to."""
        await self._cancel_pull()
        await self._discard_prepared()
        self._set(fetched=None)

    async def _cancel_pull(self) -> None:
        """Cancel a pull and wait for its end: two pulls must never write one partial file."""
        pull, self._pull = self._pull, None
        if pull is not None:
            pull.cancel()
            await asyncio.wait([pull])
            if not pull.cancelled():
                pull.exception()  # seen; what it brought is not needed any more
        self._set(fetching=None)

    async def _discard_prepared(self) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            await self._tools.hosting.retire(prepared)
        self._set(prepared=None)

    def _on_transferred(self, transferred: Transferred) -> None:
        self._transferred = transferred  # in the thread of the pull, which is over before the next one begins

    async def _try_save(self, state: ModelState, step: str, reason: str) -> bool:
        """Take on a state if it can be made durable; else back off and stay where we are."""
        try:
            await in_thread(self._tools.store.save, state)
        except StorageError as error:
            self._warn_unsaved(error)
            self._back_off(error, is_hard=True)
            return False
        log(_log, logging.INFO, "state saved", model=state.model, step=step, reason=reason)
        self.state = state
        return True

    async def _save_or_warn(self) -> bool:
        try:
            await in_thread(self._tools.store.save, self.state)
        except StorageError as error:
            self._warn_unsaved(error)
            return False
        return True

    def _warn_unsaved(self, error: StorageError) -> None:
        log(_log, logging.WARNING, "state not saved", model=self.state.model, error=error.message)

    def _set(self, **changes: object) -> None:
        self.progress = replace(self.progress, **changes)  # type: ignore[arg-type]  # names checked by replace
