"""Follows a rollout to its end: a live table on a terminal, a line for each change elsewhere, and an exit code."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from penstock.cli.output import is_interactive, print_result, progress
from penstock.errors import DeadlineExceeded, InvalidInput, Unavailable

if TYPE_CHECKING:
    from penstock.rpc.fleet import FleetClient
    from penstock.rpc.pb import fleet_pb2

EXIT_AWAY, EXIT_STOPPED, EXIT_PAUSED, EXIT_ENDED, EXIT_OPEN = 1, 5, 6, 7, 8
EXIT_CODES: Mapping[str, int] = {
    "SUCCEEDED": 0,
    "STOPPED_BY_GATE": EXIT_STOPPED,
    "PAUSED": EXIT_PAUSED,
    "ABORTED": EXIT_ENDED,
    "UNDONE": EXIT_ENDED,
}
"""What a rollout's state means to a script; of any other, it is not over."""

EXIT_WORDS = (
    "0 it succeeded, 5 its gate stopped it, 6 it is paused and waits for an operator, 7 an operator aborted or undid it"
)

_POLL_S = 0.5
_UNREACHABLE_S = 60.0
Settled = Callable[["fleet_pb2.Rollout"], bool]


def show(rollout: fleet_pb2.Rollout, output: str) -> None:
    """Print a rollout as ``--output`` asks."""
    from penstock.cli.fleet.view import rollout_text
    from penstock.rpc.fleet import as_data

    print_result(output, as_data(rollout), lambda: click.echo(rollout_text(rollout)))


def exit_code_of(rollout: fleet_pb2.Rollout) -> int:
    """Return the exit code of a rollout's state."""
    from penstock.rpc.fleet import state_name

    return EXIT_CODES.get(state_name(rollout), EXIT_OPEN)


def is_over(rollout: fleet_pb2.Rollout) -> bool:
    """Say whether nothing more happens to a rollout by itself, or by whoever pauses and resumes it."""
    from penstock.rpc.fleet import ACTIVE_STATES, state_name

    return state_name(rollout) not in ACTIVE_STATES


def is_decided(rollout: fleet_pb2.Rollout) -> bool:
    """Say whether a rollout is over, or waits for an operator."""
    from penstock.rpc.fleet import state_name

    return state_name(rollout) != "RUNNING"


def is_back(rollout: fleet_pb2.Rollout) -> bool:
    """Say whether every device runs what it should run now; one that is silent is not waited for."""
    return all(device.is_there or device.is_silent for wave in rollout.waves for device in wave.devices)


def finish(client: FleetClient, rollout: fleet_pb2.Rollout, output: str, *, wait: bool, timeout_s: float) -> None:
    """Print a rollout that was started; with ``wait`` follow it to a decision, which is the exit code."""
    if wait:
        rollout = follow(client, rollout, output, until=is_decided, timeout_s=timeout_s)
    show(rollout, output)
    if wait:
        click.get_current_context().exit(exit_code_of(rollout))


def finish_going_back(
    client: FleetClient, rollout: fleet_pb2.Rollout, output: str, *, wait: bool, timeout_s: float
) -> None:
    """Print a rollout that was ended; with ``wait`` follow it until its devices are where they should be."""
    if wait:
        rollout = follow(client, rollout, output, until=is_back, timeout_s=timeout_s)
    show(rollout, output)
    away = [device.device_id for wave in rollout.waves for device in wave.devices if not device.is_there]
    if wait and away:
        progress(f"\nsilent, and not back yet: {', '.join(away[:10])}{' ...' if len(away) > 10 else ''}; they are told")
        click.get_current_context().exit(EXIT_AWAY)


def follow(
    client: FleetClient, rollout: fleet_pb2.Rollout, output: str, *, until: Settled, timeout_s: float = 0.0
) -> fleet_pb2.Rollout:
    """Show progress on stderr until ``until`` says so; a core that restarts meanwhile is waited for.

    Whoever interrupts it gets the last state on the screen.

    Raises:
        DeadlineExceeded: ``timeout_s`` is over (0: never). Unavailable: the core was out of reach for a minute.
        InvalidInput: it is a plan: nothing runs that could be followed.
    """
    from penstock.rpc.fleet import state_name

    name = rollout.plan.rollout_id
    if state_name(rollout) == "PLANNED":
        raise InvalidInput(f"{name} is a plan that was not applied; run it with 'penstock fleet apply {name} --wait'")
    seen = [rollout]
    try:
        with _Screen() as screen:
            _follow(client, seen, screen, until=until, timeout_s=timeout_s)
    except KeyboardInterrupt:
        show(seen[-1], output)
        progress(f"\nnot watched any more; it goes on: penstock fleet status {name} --watch")
        raise
    return seen[-1]


def _follow(
    client: FleetClient, seen: list[fleet_pb2.Rollout], screen: _Screen, *, until: Settled, timeout_s: float
) -> None:
    name, started = seen[-1].plan.rollout_id, time.monotonic()
    heard = started
    screen.show(seen[-1])
    while not until(seen[-1]):
        if timeout_s and time.monotonic() - started > timeout_s:
            raise DeadlineExceeded(f"rollout {name} is not over after {timeout_s:g} s; it goes on")
        time.sleep(_POLL_S)
        try:
            seen[:] = [client.rollout(name)]
        except (Unavailable, DeadlineExceeded):
            if time.monotonic() - heard > _UNREACHABLE_S:
                raise
            continue
        heard = time.monotonic()
        screen.show(seen[-1])


@dataclass(slots=True)
class _Screen:
    """Live table on a terminal, a line for each change elsewhere."""

    live: Any = None
    last: object = None
    told: float = 0.0  # when the newest event that was printed happened

    def __enter__(self) -> _Screen:
        if is_interactive():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live is not None:
            self.live.__exit__(*error)

    def show(self, rollout: fleet_pb2.Rollout) -> None:
        from penstock.cli.fleet.view import event_line, progress_line, rollout_text, situation

        if self.live is not None:
            from rich.text import Text

            self.live.update(Text(rollout_text(rollout)), refresh=True)
        elif situation(rollout) != self.last:
            for event in rollout.events:
                if event.at > self.told:  # several may come between two looks
                    progress(f"          {event_line(event)}")
            self.told = max((event.at for event in rollout.events), default=self.told)
            self.last = situation(rollout)
            progress(progress_line(rollout))
