"""What greedy search has to do to answer as a model's generation settings say. Pure; no runner itself.

Decides which settings become part of the graph, which do not concern greedy search, and which are refused because the
graph would answer otherwise than the model does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocol import InputError

DEFAULT_NEW_TOKENS = 64
MOST_NEW_TOKENS = 4096
_LIBRARY_MAX_LENGTH = 20  # what transformers has where a model says nothing; no model means it

# what must have this value, since no rule of the graph stands for another: it depends on the tokens before, on the
# input's tokens, or on a second run of the model
_MUST_BE: Mapping[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1.0),
    "no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "exponential_decay_length_penalty": (None,),
    "sequence_bias": (None,),
    "guidance_scale": (None, 1, 1.0),
    "constraints": (None,),
    "force_words_ids": (None,),
    "stop_strings": (None,),
    "penalty_alpha": (None, 0, 0.0),
    "dola_layers": (None,),
    "watermarking_config": (None,),
    "token_healing": (None, False),
    "max_time": (None,),
}


def greedy_of(
    settings: Mapping[str, Any], asked: Mapping[str, Any], *, positions: int, vocabulary: int
) -> dict[str, Any]:
    """Return what ``compiler.graph.greedy_loop.Greedy`` takes, as plain JSON.

    Args:
        settings: the model's, as ``GenerationConfig.to_dict`` gives them.
        asked: ``max_new_tokens`` (0 takes the model's) and ``prompt`` (tokens behind the first; empty takes the
            model's).
        positions: most tokens that the decoder can have; 0 where nothing limits them.
        vocabulary: how many tokens the decoder chooses from.

    Raises:
        InputError: a setting that cannot be honoured, one that is no number of a token, or one that is missing.
    """
    for name, fine in _MUST_BE.items():
        if settings.get(name) not in fine:
            raise InputError(
                f"generation_config.json: {name} = {settings[name]!r} cannot become part of the graph, and answers "
                "without it would be others. Remove it there if you can do without it"
            )
    start = settings.get("decoder_start_token_id")
    start = settings.get("bos_token_id") if start is None else start
    if isinstance(start, bool) or not isinstance(start, int):
        raise InputError(
            f"generation_config.json: decoder_start_token_id is {start!r}, expected one token that every answer begins "
            "with"
        )
    ends = _tokens(settings, "eos_token_id")
    pad = _token(settings, "pad_token_id")
    prompt = (start, *(asked["prompt"] or _own_prompt(settings)))
    count = _count(settings, asked["max_new_tokens"], len(prompt), positions)
    # a token that the model forces right behind its start is not forced where a prompt stands in that place
    first = _token(settings, "forced_bos_token_id") if len(prompt) == 1 else None
    last = _token(settings, "forced_eos_token_id")
    forced = ({} if first is None else {0: first}) | ({} if last is None else {count - 1: last})
    unknown = sorted({token for token in (*prompt, *forced.values()) if not 0 <= token < vocabulary})
    if unknown:
        raise InputError(f"tokens {unknown} are to be given or forced, but the decoder knows 0 to {vocabulary - 1}")
    bans = _bans(settings, ends, len(prompt), count, begins=int(first is not None))
    for ban in bans:  # Whisper's -1 and the like stand for no token, and would be an index from the end in the graph
        ban["tokens"] = [token for token in ban["tokens"] if 0 <= token < vocabulary]
    bans = [ban for ban in bans if ban["tokens"]]
    clash = sorted(
        {token for step, token in forced.items() for ban in bans if token in ban["tokens"] and _in(ban, step)}
    )
    if clash:
        raise InputError(f"generation_config.json: tokens {clash} are forced and suppressed at the same place")
    return {
        "prompt": list(prompt),
        "max_new_tokens": count,
        "ends": ends or [-1],
        "pad": pad if pad is not None else ends[0] if ends else 0,
        "forced": {str(step): token for step, token in sorted(forced.items())},
        "bans": bans,
    }


def beams_of(settings: Mapping[str, Any]) -> str:
    """Say in words what the model's settings ask for instead of greedy search; "" where they ask for nothing else."""
    beams, samples = settings.get("num_beams") or 1, settings.get("do_sample")
    return f"{beams} beams" if beams > 1 else "sampling" if samples else ""


def _count(settings: Mapping[str, Any], asked: int, prompt: int, positions: int) -> int:
    length = _whole(settings, "max_length")
    own = _whole(settings, "max_new_tokens")
    said = "max_length" if own is None else "max_new_tokens"
    if own is None and length not in (None, _LIBRARY_MAX_LENGTH):
        own = length - prompt
    room = (positions or MOST_NEW_TOKENS) - prompt
    if asked > room:
        raise InputError(
            f"source.max_new_tokens: {asked} given, but the decoder has {room + prompt} places, {prompt} of them for "
            "the prompt"
        )
    count = asked or min(DEFAULT_NEW_TOKENS if own is None else own, room)
    if count < 1:
        raise InputError(f"generation_config.json: {said} {settings[said]} leaves no token beside a prompt of {prompt}")
    return count


def _own_prompt(settings: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the tokens that the model's own settings put behind its start: language, task and the like of Whisper."""
    found: list[int] = []
    for place, token in settings.get("forced_decoder_ids") or ():
        if token is None or place != len(found) + 1:
            break
        found.append(int(token))
    if settings.get("is_multilingual") and not found:
        known = settings.get("lang_to_id") or {}
        example = [next(iter(known.values()), 0), (settings.get("task_to_id") or {}).get("transcribe", 0)]
        raise InputError(
            "source.prompt: the model hears several languages, and nothing says which. Give the tokens behind the "
            f"start: language, task, no timestamps; for {next(iter(known), 'its first language')} "
            f"{[*example, settings.get('no_timestamps_token_id', 0)]}"
        )
    silent = settings.get("no_timestamps_token_id")
    if silent is not None and silent not in found:
        found.append(int(silent))
    return tuple(found)


def _bans(
    settings: Mapping[str, Any], ends: list[int], prompt: int, count: int, *, begins: int
) -> list[dict[str, Any]]:
    """Return tokens that are not chosen, from a generated token to before another."""
    always = set(_tokens(settings, "suppress_tokens"))
    for word in settings.get("bad_words_ids") or ():
        if len(word) > 1:
            raise InputError(
                f"generation_config.json: bad_words_ids has {word}, a word of several tokens, which cannot become part "
                "of the graph. Remove it there if you can do without it"
            )
        always |= set(word) - set(ends)
    least = max((_whole(settings, "min_length") or 0) - prompt, _whole(settings, "min_new_tokens") or 0)
    found = [
        (sorted(always), 0, count),
        (ends, 0, min(least, count)),
        (_tokens(settings, "begin_suppress_tokens"), begins, begins + 1),
    ]
    return [{"tokens": tokens, "first": first, "end": end} for tokens, first, end in found if tokens and end > first]


def _in(ban: Mapping[str, Any], step: int) -> bool:
    return bool(ban["first"] <= step < ban["end"])


def _tokens(settings: Mapping[str, Any], name: str) -> list[int]:
    given = settings.get(name)
    found = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in found):
        raise InputError(f"generation_config.json: {name} is {given!r}, expected tokens by their numbers")
    return found


def _token(settings: Mapping[str, Any], name: str) -> int | None:
    found = _tokens(settings, name)
    if settings.get(name) is not None and len(found) != 1:
        forced = "; only one token can be forced" if name.startswith("forced") else ", expected one token"
        raise InputError(f"generation_config.json: {name} is {found}{forced}")
    return found[0] if found else None


def _whole(settings: Mapping[str, Any], name: str) -> int | None:
    found = settings.get(name)
    if found is not None and (isinstance(found, bool) or not isinstance(found, int)):
        raise InputError(f"generation_config.json: {name} is {found!r}, expected a whole number")
    return found
