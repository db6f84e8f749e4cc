"""Find the strings that end an answer while its text comes in pieces, and hold back no more than has to be.

Decides what may be shown: everything but the longest end of the text that may still become a stop string. However a
text is cut into pieces, the same is shown and the same stop string ends it: the one that is whole first; of several
that are whole at the same character, the one that begins first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.errors import InvalidInput

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What one more piece of text leads to.

    Attributes:
        text: may be shown now.
        matched: the stop string that ended the answer; it and what follows it are never shown.
    """

    text: str
    matched: str | None = None


def check_stops(stops: Sequence[str]) -> None:
    """Refuse stop strings that are too many, too long or empty.

    Raises:
        InvalidInput: the message has what was sent and what is possible.
    """
    if len(stops) > MAX_STOPS:
        raise InvalidInput(f"{len(stops)} stop strings; at most {MAX_STOPS} are possible", field="stop")
    for stop in stops:
        if not stop:
            raise InvalidInput("a stop string is empty; leave it out, or name what ends the answer", field="stop")
        if len(stop) > MAX_STOP_CHARACTERS:
            raise InvalidInput(
                f"a stop string has {len(stop)} characters; at most {MAX_STOP_CHARACTERS} are possible", field="stop"
            )


class StopStrings:
    """The stop strings of one answer, and the end of its text that is held back.

    Each stop string is followed by the failure function of Knuth, Morris and Pratt (1977): what is known after a
    character is how much of each is at the end of the text, and a character costs the same however long they are.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(dict.fromkeys(stops))
        self._failures = tuple(_failures(stop) for stop in self._stops)
        self._reached = [0] * len(self._stops)
        self._held = ""
        self._ended = False

    def add(self, text: str) -> Shown:
        """Take one more piece of text, and say what may be shown. After a match nothing more is."""
        if self._ended or not text:
            return Shown(text="")
        if not self._stops:
            return Shown(text=text)
        for place, character in enumerate(text, 1):
            if (matched := self._step(character)) is not None:
                self._ended = True
                whole = self._held + text[:place]
                self._held = ""
                return Shown(text=whole[: len(whole) - len(matched)], matched=matched)
        whole = self._held + text
        cut = len(whole) - max(self._reached)
        self._held = whole[cut:]
        return Shown(text=whole[:cut])

    def end(self) -> str:
        """Return what was held back: the text is whole, and no stop string can be any more."""
        rest, self._held = self._held, ""
        return rest

    def _step(self, character: str) -> str | None:
        """Go on by one character; return the longest stop string that is whole with it."""
        matched = None
        for place, (stop, failures) in enumerate(zip(self._stops, self._failures, strict=True)):
            reached = self._reached[place]
            while reached and stop[reached] != character:
                reached = failures[reached - 1]
            if stop[reached] == character:
                reached += 1
            self._reached[place] = reached
            if reached == len(stop) and (matched is None or len(stop) > len(matched)):
                matched = stop
        return matched


def _failures(stop: str) -> list[int]:
    """Return for each beginning of a string the length of its longest own beginning that is also its end."""
    failures = [0] * len(stop)
    reached = 0
    for place in range(1, len(stop)):
        while reached and stop[place] != stop[reached]:
            reached = failures[reached - 1]
        if stop[place] == stop[reached]:
            reached += 1
        failures[place] = reached
    return failures
