"""Limits of generation: of the line before an engine, of the process it runs in, and of who reads its answers.

Sections of the agent's and of the core's settings; every limit has a default that works on a small device.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from penstock.hosting.workers.settings import LifeSettings, Positive, Seconds
from penstock.policy.retry import CircuitBreaker
from penstock.policy.slots import SlotLimits
from penstock.policy.token_budget import TokenLimits
from penstock.runtime.generation import EngineFacts, GenerationOptions

Count = Annotated[int, Meta(ge=1, le=2**31)]
_MIB, _TIB = 1024**2, 1024**4


class LineSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who gets a slot of an engine, and how many may wait for one.

    Attributes:
        max_kv_bytes: of keys and values of generations that run; 0 for as many as the engine's slots may take when
            each is as long as the context.
        max_waiting: generations that wait for a slot; beyond it they are refused.
        max_waiting_kv_bytes: of keys and values that those will take; 0 for sixteen times ``max_kv_bytes``.
        long_prompt_tokens: prompts of more tokens leave one slot to shorter ones while they are computed.
        ageing_s: seconds of waiting that are worth one level of priority.
        overtaken_s: how long smaller generations may pass one that needs more memory than is free.
        retry_after_s: what those are told who find no room.
    """

    max_kv_bytes: Annotated[int, Meta(ge=0, le=_TIB)] = 0
    max_waiting: Annotated[int, Meta(ge=0, le=1_000_000)] = 64
    max_waiting_kv_bytes: Annotated[int, Meta(ge=0, le=_TIB)] = 0
    long_prompt_tokens: Count = 512
    ageing_s: Seconds = 1.0
    overtaken_s: Seconds = 2.0
    retry_after_s: Positive = 1.0

    def of(self, facts: EngineFacts) -> SlotLimits:
        """Fill in what follows from the engine."""
        max_kv_bytes = self.max_kv_bytes or facts.slots * facts.context_tokens * facts.kv_bytes_per_token
        return SlotLimits(
            slots=facts.slots,
            max_kv_bytes=max_kv_bytes,
            max_waiting=self.max_waiting,
            max_waiting_kv_bytes=self.max_waiting_kv_bytes or 16 * max_kv_bytes,
            long_prompt_tokens=self.long_prompt_tokens,
            ageing_s=self.ageing_s,
            overtaken_s=self.overtaken_s,
            retry_after_s=self.retry_after_s,
        )


class WorkerSettings(LifeSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The process in which an engine runs, and the way to it.

    Attributes:
        hang_s: a worker that has work and makes no step for so long is killed and started again. Longer than the
            slowest step, which is a part of a prompt on the slowest device.
        threads: of the engine; 0 for as many as the model's own options say.
        max_unread_events: events of one generation that nobody has read yet; beyond it the generation is cancelled.
        max_pipe_bytes: that wait in one direction; beyond it new generations are refused, and the engine rests.
        max_frame_bytes: of one message; a longer one is refused here, and ends the connection when it comes from there.
    """

    hang_s: Positive = 60.0
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    max_unread_events: Count = 2048
    max_pipe_bytes: Annotated[int, Meta(ge=64 * 1024, le=1024 * _MIB)] = 4 * _MIB
    max_frame_bytes: Annotated[int, Meta(ge=64 * 1024, le=256 * _MIB)] = 8 * _MIB


class RemoteSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Servers of others that generate for us, behind URLs.

    Attributes:
        urls: by model, servers of OpenAI's API that run it in place of a process here, as ``http://host:8000/v1``. They
            have to tell token ids, and to continue the model's golden prompts as it does.
        token: that these servers ask for.
        max_outstanding: generations that one server has not answered yet; beyond it they go to another, or are refused.
        connect_timeout_s: longest wait for a connection.
        start_timeout_s: longest wait for the first token of any server.
        hang_s: a server that owes us answers and sends no token for so long is given up, with all that it owes.
        failures: in a row, after which a server is left alone for a while.
        retry_s: how long it is left alone at first; doubled with each try that fails.
        max_retry_s: longest such time.
        retry_after_s: what those are told who find no server, where no server says it.
        idle_probe_s: a server that was asked for nothing for so long is asked for one token, to see whether it still
            makes any; 0 never asks: who pays for tokens may not want it.
        prefix_block_tokens: prompts that are equal up to a multiple of so many tokens go to the server that has
            computed them, as far as that saves more than it makes them wait. As long as a block of the servers' caches.
        max_prefix_blocks: that are remembered of one server.
        max_unread_events: events of one generation that nobody has read yet; beyond it the generation is cancelled.
    """

    urls: dict[str, tuple[str, ...]] = {}
    token: str = ""
    max_outstanding: Count = 64
    connect_timeout_s: Positive = 5.0
    start_timeout_s: Positive = 180.0
    hang_s: Positive = 120.0
    failures: Count = 3
    retry_s: Positive = 2.0
    max_retry_s: Positive = 60.0
    retry_after_s: Positive = 1.0
    idle_probe_s: Seconds = 0.0
    prefix_block_tokens: Annotated[int, Meta(ge=1, le=65_536)] = 128
    max_prefix_blocks: Annotated[int, Meta(ge=1, le=10_000_000)] = 16_384
    max_unread_events: Count = 2048

    def breaker(self) -> CircuitBreaker:
        """Begin with a server of which nothing is known."""
        longest_s = max(self.retry_s, self.max_retry_s)
        return CircuitBreaker(failure_limit=self.failures, open_s=self.retry_s, max_open_s=longest_s)


class EngineSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an engine may use the machine.

    Attributes:
        slots: generations that run at the same time.
        context_tokens: of prompt and answer together; 0 for as many as the model can take.
        chunk_tokens: of a prompt that are computed in one step, while others wait for their next token.
    """

    slots: Annotated[int, Meta(ge=1, le=256)] = 4
    context_tokens: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    chunk_tokens: Annotated[int, Meta(ge=1, le=8192)] = 64


class TextLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much text one request may be, whatever the model's context has room for.

    Attributes:
        max_prompt_tokens: of a prompt; 0 for as many as the context has room for.
        max_new_tokens: of an answer; 0 for as many as the context has room for.
        usual_new_tokens: of an answer whose request names no number, where none was certified either.
        default_timeout_s: deadline of a request that names none.
        cache_bytes: of whole answers that are kept for requests that are the same in every token, greedy or seeded, by
            tenant; 0 keeps none. In the core only.
    """

    max_prompt_tokens: Annotated[int, Meta(ge=0)] = 0
    max_new_tokens: Annotated[int, Meta(ge=0)] = 0
    usual_new_tokens: Count = 512
    default_timeout_s: Positive = 600.0
    cache_bytes: Annotated[int, Meta(ge=0, le=_TIB)] = 0

    def of(self, facts: EngineFacts) -> TokenLimits:
        """Add what the engine has room for."""
        return TokenLimits(
            context_tokens=facts.context_tokens,
            max_input_tokens=self.max_prompt_tokens or None,
            max_output_tokens=self.max_new_tokens or None,
        )


class GenerationSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Language models, run here or by servers of others."""

    limits: TextLimits = TextLimits()
    engine: EngineSettings = EngineSettings()
    line: LineSettings = LineSettings()
    worker: WorkerSettings = WorkerSettings()
    remote: RemoteSettings = RemoteSettings()

    def options(self, provider: str, *, threads: int = 0) -> GenerationOptions:
        """Return what an engine is loaded with.

        Args:
            threads: where the settings name no number.
        """
        return GenerationOptions(
            provider=provider,
            threads=self.worker.threads or threads or 1,
            slots=self.engine.slots,
            context_tokens=self.engine.context_tokens or None,
            chunk_tokens=self.engine.chunk_tokens,
        )
