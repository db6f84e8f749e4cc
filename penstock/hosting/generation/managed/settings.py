"""How vLLM runs a model that a core starts it for: a section of the core's settings. What follows from it is
``penstock.hosting.generation.managed.vllm``'s.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from penstock.hosting.generation.settings import Count
from penstock.hosting.workers.settings import Positive, Seconds

_Word = Annotated[str, Meta(min_length=1, max_length=4096)]
_Ranks = Annotated[int, Meta(ge=1, le=1024)]


class VllmSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that vLLM runs in place of a process here: the core starts it, watches it and ends it.

    Attributes:
        directory: of the model, as Hugging Face's libraries read it. It has to continue the golden prompts of the
            artifact as that does, token by token.
        tensor_parallel: ranks that share each layer; a divisor of the number of attention heads.
        pipeline_parallel: groups of layers, each on ranks of its own.
        data_parallel: engines beside each other, each with all of the above.
        dtype: of weights and activations; ``auto`` takes the model's.
        context_tokens: of prompt and answer together; 0 for as many as the model can take.
        kv_cache_bytes: of keys and values, of each rank; 0 leaves it to vLLM.
        max_sequences: that are computed at the same time.
        max_waiting: beyond those; further ones are refused with a hint when to come back.
        enforce_eager: compile nothing: it starts in seconds rather than minutes, and answers more slowly. Pipelines of
            vLLM 0.32 on processors do not answer at all with it.
        arguments: further ones of vLLM's, such as ``--gpu-memory-utilization=0.8``.
        environment: further variables for it, such as ``CUDA_VISIBLE_DEVICES``.
        start_timeout_s: longest time from its start to its first token. It compiles the model in that time.
        hang_s: when it owes answers and sends no token for so long, it is killed and started again.
        idle_probe_s: when it was asked for nothing for so long, it is asked for one token; 0 never asks.
        exit_s: how long it may take to end when it is told to, before it is killed; when somebody else tells it, how
            long it may go on with what it has begun.
        max_restarts: in a row; after one more failure the model is down, with the reason in its health, and is tried
            now and then.
        slow_restart_s: longest wait before each of those tries; 0 for none, so that it stays down until it is loaded
            again.
        steady_s: when it was ready for so long, it was well, and its failure begins a new row.
        backoff_base_s: upper end of the wait before the first restart.
        backoff_max_s: longest wait before a restart.
        max_log_bytes: of what it printed, that are kept in the core's data directory.
        max_unread_events: of one generation that nobody has read yet; beyond it the generation is cancelled.
    """

    directory: _Word
    tensor_parallel: _Ranks = 1
    pipeline_parallel: _Ranks = 1
    data_parallel: _Ranks = 1
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    context_tokens: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    kv_cache_bytes: Annotated[int, Meta(ge=0, le=2**50)] = 0
    max_sequences: Annotated[int, Meta(ge=1, le=65_536)] = 64
    max_waiting: Annotated[int, Meta(ge=0, le=1_000_000)] = 64
    enforce_eager: bool = False
    arguments: Annotated[tuple[_Word, ...], Meta(max_length=64)] = ()
    environment: Annotated[dict[_Word, Annotated[str, Meta(max_length=4096)]], Meta(max_length=64)] = {}
    start_timeout_s: Positive = 900.0
    hang_s: Positive = 120.0
    idle_probe_s: Seconds = 60.0
    exit_s: Seconds = 30.0
    max_restarts: Annotated[int, Meta(ge=0, le=1000)] = 5
    slow_restart_s: Seconds = 600.0
    steady_s: Seconds = 60.0
    backoff_base_s: Positive = 1.0
    backoff_max_s: Positive = 60.0
    max_log_bytes: Annotated[int, Meta(ge=65_536, le=2**40)] = 16 * 1024**2
    max_unread_events: Count = 2048
