"""The synchronous client: one object for an agent, a core, or any other Open Inference Protocol server.

Thread-safe. What a target needs is imported when it is opened: grpcio for ``grpc://``, nothing beyond the standard
library for ``http://`` and ``unix://``. Sends each call as its own request; many concurrent rows are ``AsyncClient``'s.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TypeVar, Unpack

from penstock.errors import DeadlineExceeded, InvalidInput, PenstockError, Unavailable
from penstock.sdk import call
from penstock.sdk.call import DEFAULT_TIMEOUT_S, InferResult, Inputs
from penstock.sdk.text_streams import TextStream, text_transport
from penstock.sdk.texts import Message, Prompt, Text, TextCall, TextOptions, TextPart, TextReader, text_call
from penstock.sdk.transports import Transport, open_transport
from penstock.wire.addresses import located, parse_target
from penstock.wire.inference import ModelMetadata, Parameter
from penstock.wire.tensors import Array
from penstock.wire.tls import Tls

_T = TypeVar("_T")


class Client:
    """Calls one server.

    Args:
        target: ``grpc://host:port``, ``http://host:port`` or ``unix:///path/to/socket``; over TLS ``grpcs://host`` or
            ``https://host``. HTTP may have a path, which all of the server's paths then begin with.
        timeout: seconds that a call may take by default, all tries together.
        token: sent as a bearer token.
        tls: which authorities to trust and what to show over TLS; None for what PENSTOCK_CA_FILE,
            PENSTOCK_CLIENT_CERT and PENSTOCK_CLIENT_KEY say, and without those for what this machine trusts.
        retries: further tries of what the server refused with a hint when to come back.

    Raises:
        InvalidInput: the target is none of these. ConfigError: a file of ``tls``.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = DEFAULT_TIMEOUT_S,
        token: str | None = None,
        tls: Tls | None = None,
        retries: int = 2,
    ) -> None:
        self._target = parse_target(target)
        self._timeout_s = call.check_timeout(timeout)
        self._retries = retries
        self._opened: Transport | None = open_transport(self._target, token, tls)
        self._known: dict[tuple[str, str], ModelMetadata] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({str(self._target)!r})"

    def infer(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: str = "",
        outputs: Sequence[str] = (),
        timeout: float | None = None,
        priority: int = 0,
        parameters: Mapping[str, Parameter] | None = None,
        request_id: str = "",
        labels: bool = False,
    ) -> InferResult:
        """Run a model on a batch.

        Args:
            inputs: an array [N, ...] for a model with one input, else a dict by input name. A table with named columns
                (pandas, polars, pyarrow), and a dict of them, is matched with the model's columns by name, in whatever
                order they are. Tables, lists, and arrays of float64, int64, bool or object, which are numpy's own
                choice, get the datatype that the model asks for, where that can hold the values; arrays of other
                dtypes are sent as they are.
            version: a tag, a digest, or "" for the default version.
            outputs: names wanted; all by default.
            timeout: seconds, all tries together; the server is told what remains.
            priority: 0 is the default, 1 the highest.
            parameters: further request parameters (``explain=True`` asks an agent for an account of each row).
            labels: let the result carry the names of the classes, as far as the model's metadata tell them.

        Raises:
            InvalidInput: inputs, names or options are wrong. NotFound: no such model or version.
            Unavailable: nobody answers there, or it is loading or draining. DeadlineExceeded: no answer in time.
            QueueFull, QuotaExceeded, TooLarge, Unauthenticated, PermissionDenied: as their names say.
            Conflict: the client is closed.
        """
        transport = self._transport
        deadline, timeout_s = self._deadline(timeout)
        arrays = self._arrays(model, version, inputs, deadline, timeout_s)
        request = call.make_request(
            model,
            arrays,
            version=version,
            outputs=outputs,
            priority=priority,
            parameters=parameters,
            request_id=request_id,
        )
        try:
            response = self._try(
                lambda left_s: transport.infer(call.with_timeout(request, left_s), left_s), deadline, timeout_s
            )
        except InvalidInput:
            self._known.pop((model, version), None)  # perhaps the model is not what it was
            raise
        result = call.result_of(response)
        return replace(result, labels=self._metadata(model, version, deadline, timeout_s).labels) if labels else result

    def generate(self, model: str, prompt: Prompt, **options: Unpack[TextOptions]) -> Text:
        """Continue a prompt.

        ```python
        text = client.generate("assistant", "The sea is", max_new_tokens=32)
        print(text.text, text.finish_reason, text.served_by)
        ```

        Args:
            prompt: a text, or token ids.
            options: as :class:`penstock.sdk.texts.TextOptions` lists them; what is left out is the model's own way,
                which its certificate is about.

        Raises:
            InvalidInput: the prompt, an option, or a model that does not generate. NotFound: no such model or version.
            Unavailable: nobody answers there, or the answer was given up. DeadlineExceeded: it was not whole in time.
            QuotaExceeded: the tenant's tokens are spent. QueueFull, TooLarge, Unauthenticated, PermissionDenied: as
            their names say. TypeError: no such option.
        """
        return self._text(text_call(model, prompt, options))

    def chat(self, model: str, messages: Sequence[Message], **options: Unpack[TextOptions]) -> Text:
        """Answer a conversation, by the model's own template.

        ```python
        text = client.chat("assistant", [{"role": "user", "content": "How deep is it?"}], temperature=0.7)
        ```

        Args:
            messages: as OpenAI has them, contents as texts.
            options: as for :meth:`generate`.

        Raises:
            InvalidInput: also where the model has no template for conversations. Others: as :meth:`generate`.
        """
        return self._text(text_call(model, messages, options))

    def stream(self, model: str, prompt: Prompt | Sequence[Message], **options: Unpack[TextOptions]) -> TextStream:
        """Continue a prompt, or answer a conversation, in parts.

        ```python
        with client.stream("assistant", "The sea is") as parts:
            for part in parts:
                print(part.text, end="", flush=True)
        print(parts.answer.usage)
        ```

        The request is sent when the first part is asked for; what :meth:`generate` raises, iterating raises. Closing
        the stream before its end stops the server. It uses one of the client's connections until then.

        Args:
            prompt: a text, token ids, or messages.
            options: as for :meth:`generate`.
        """
        asked = text_call(model, prompt, options, stream=True)
        reader = TextReader(asked)
        return TextStream(self._parts(asked, reader), reader)

    def metadata(self, model: str, *, version: str = "", timeout: float | None = None) -> ModelMetadata:
        """Ask for inputs, outputs and versions of a model.

        Raises:
            NotFound: no such model or version. Unavailable, DeadlineExceeded: as for :meth:`infer`.
        """
        deadline, timeout_s = self._deadline(timeout)
        self._known.pop((model, version), None)
        return self._metadata(model, version, deadline, timeout_s)

    def is_live(self, *, timeout: float | None = None) -> bool:
        """Ask whether the server's process is well; False when nobody answers in time."""
        return self._probe(self._transport.is_live, timeout)

    def is_ready(self, *, timeout: float | None = None) -> bool:
        """Ask whether the server admits requests; False when nobody answers in time."""
        return self._probe(self._transport.is_ready, timeout)

    def model_ready(self, model: str, *, version: str = "", timeout: float | None = None) -> bool:
        """Ask whether a model can answer now; False for an unknown one, and when nobody answers in time."""
        transport = self._transport
        return self._probe(lambda left_s: transport.model_ready(model, version, left_s), timeout)

    def close(self) -> None:
        """Close the connections; idempotent. Later calls raise Conflict."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    @property
    def _transport(self) -> Transport:
        if self._opened is None:
            raise call.closed(repr(self))
        return self._opened

    def _text(self, asked: TextCall) -> Text:
        transport = text_transport(self._transport, self._target)
        deadline, timeout_s = self._deadline(asked.timeout_s)
        body = self._try(
            lambda left_s: transport.post(asked.path, asked.body, left_s, asked.request_id), deadline, timeout_s
        )
        return TextReader(asked).whole(body)

    def _parts(self, asked: TextCall, reader: TextReader) -> Generator[TextPart, None, None]:
        transport = text_transport(self._transport, self._target)
        deadline, timeout_s = self._deadline(asked.timeout_s)
        pieces = self._try(
            lambda left_s: transport.stream(asked.path, asked.body, left_s, asked.request_id), deadline, timeout_s
        )
        try:
            with closing(pieces):
                for piece in pieces:
                    yield from reader.feed(piece)
            reader.end()
        except PenstockError as error:
            raise located(error, self._target) from error.__cause__

    def _deadline(self, timeout: float | None) -> tuple[float, float]:
        timeout_s = self._timeout_s if timeout is None else call.check_timeout(timeout)
        return time.monotonic() + timeout_s, timeout_s

    def _arrays(
        self, model: str, version: str, inputs: Inputs, deadline: float, timeout_s: float
    ) -> Mapping[str, Array]:
        if not call.needs_metadata(inputs):
            return call.arrays_of(inputs, ())
        is_fresh = (model, version) not in self._known
        known = self._metadata(model, version, deadline, timeout_s)
        if not is_fresh and call.is_table(inputs, known):
            # a version with another order of columns must not get those of the one before
            del self._known[model, version]
            known = self._metadata(model, version, deadline, timeout_s)
        return call.arrays_of(inputs, known.inputs, known.columns)

    def _metadata(self, model: str, version: str, deadline: float, timeout_s: float) -> ModelMetadata:
        known = self._known.get((model, version))
        if known is None:
            transport = self._transport
            known = self._try(lambda left_s: transport.metadata(model, version, left_s), deadline, timeout_s)
            if len(self._known) >= call.MAX_KNOWN_MODELS:
                self._known.clear()
            self._known[model, version] = known
        return known

    def _probe(self, ask: Callable[[float], bool], timeout: float | None) -> bool:
        _, timeout_s = self._deadline(timeout)
        try:
            return ask(timeout_s)
        except (Unavailable, DeadlineExceeded):
            return False

    def _try(self, send: Callable[[float], _T], deadline: float, timeout_s: float) -> _T:
        attempt = 0
        while True:
            attempt += 1
            try:
                return send(call.seconds_left(deadline, time.monotonic(), timeout_s))
            except PenstockError as error:
                wait_s = call.next_try_after_s(
                    error,
                    attempt=attempt,
                    retries=self._retries,
                    left_s=deadline - time.monotonic(),
                    random=random.random(),
                )
                if wait_s is None:
                    raise located(error, self._target) from error.__cause__
            time.sleep(wait_s)
