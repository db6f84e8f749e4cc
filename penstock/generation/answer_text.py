"""Make the events of one answer out of the tokens that an engine samples: their text, where it ends, and what it took.

Owns what is held back of one answer: half a character, and the beginning of what may become a stop string. Runs no
engine: where a stop string ends an answer, the caller has to cancel the request in its engine.
"""

from __future__ import annotations

from penstock.generation.detokenizer import Detokenizer
from penstock.generation.stop_strings import StopStrings
from penstock.generation.token_pieces import Pieces
from penstock.generation.values import FinishReason, GenerationRequest, SampledToken, TokenEvent, Usage


class AnswerText:
    """One answer in the making.

    The text goes on where the prompt ends, so that prompt and answer joined are one text: a SentencePiece model's
    first word has its space, and half a character at the end of the prompt is completed.

    Attributes:
        ended: the last event was made; no token adds anything any more.
    """

    def __init__(self, request: GenerationRequest, pieces: Pieces) -> None:
        self._request = request
        self._stream = Detokenizer(pieces, after=request.prompt_ids)
        self._stops = StopStrings(request.stop)
        self._tokens = 0
        self.ended = False

    def add(self, sampled: SampledToken) -> TokenEvent | None:
        """Return the event of one more token; None after the last event, for what an engine made before it heard.

        An event with a ``finish`` is the last one. Where ``sampled`` had none, a stop string ended the answer and the
        engine goes on until it is told.
        """
        if self.ended:
            return None
        self._tokens += 1
        finish, matched = sampled.finish, None
        if finish == "stop":
            text = ""  # a token that ends an answer is no text, whatever it stands for elsewhere
            matched = sampled.token if sampled.token in self._request.stop_ids else None
        else:
            text = self._stream.add(sampled.token)
        if finish is not None:
            text += self._stream.end()
        shown = self._stops.add(text)
        if shown.matched is not None:
            return self._event(sampled, shown.text, "stop", shown.matched)
        rest = self._stops.end() if finish is not None else ""
        return self._event(sampled, shown.text + rest, finish, matched)

    def _event(
        self, sampled: SampledToken, text: str, finish: FinishReason | None, matched: str | int | None
    ) -> TokenEvent:
        self.ended = finish is not None
        return TokenEvent(
            token=sampled.token,
            text=text,
            logprob=sampled.logprob,
            top=sampled.top,
            finish=finish,
            usage=self._usage(sampled.cached_tokens) if self.ended else None,
            matched_stop=matched,
            options=sampled.options,
        )

    def _usage(self, cached_tokens: int) -> Usage:
        prompt = len(self._request.prompt_ids)
        return Usage(
            prompt_tokens=prompt, completion_tokens=self._tokens, cached_tokens=max(0, min(cached_tokens, prompt))
        )
