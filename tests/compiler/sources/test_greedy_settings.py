"""What generation settings mean for greedy search: the part of the exporter that needs no transformers."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from penstock.toolchain import programs

RUNNERS = Path(__file__).parents[3] / "compiler" / "runners"
VOCABULARY = 51865
BART = {"decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as it is imported in the toolchain, beside the runners' protocol."""
    monkeypatch.syspath_prepend(str(Path(programs.__file__).parent))
    monkeypatch.syspath_prepend(str(RUNNERS))
    return importlib.import_module("greedy_settings")


def greedy(
    module: ModuleType, *, tokens: int = 0, prompt: tuple[int, ...] = (), positions: int = 0, **given: Any
) -> Any:
    asked = {"max_new_tokens": tokens, "prompt": list(prompt)}
    return module.greedy_of({**BART, **given}, asked, positions=positions, vocabulary=VOCABULARY)


def test_what_every_model_says(settings: ModuleType) -> None:
    assert greedy(settings) == {
        "prompt": [2], "max_new_tokens": 64, "ends": [2], "pad": 1, "forced": {}, "bans": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({"max_length": 20}, 64),  # what the library has where a model says nothing
        ({"max_length": 31}, 30),
        ({"max_length": 31, "max_new_tokens": 12}, 12),
        ({"max_length": 31, "tokens": 9}, 9),
        ({"positions": 25}, 24),
        ({"max_length": 512, "positions": 25}, 24),
    ],
)
def test_how_long_answers_are(settings: ModuleType, given: dict[str, Any], count: int) -> None:
    assert greedy(settings, **given)["max_new_tokens"] == count


def test_forced_tokens_are_the_first_and_the_last(settings: ModuleType) -> None:
    found = greedy(settings, forced_bos_token_id=0, forced_eos_token_id=2, tokens=10)
    assert found["forced"] == {"0": 0, "9": 2}
    behind = greedy(settings, forced_bos_token_id=0, prompt=(7,), tokens=10)
    assert behind["forced"] == {}, "transformers forces the token behind the start, where the prompt is"


def test_tokens_that_are_never_chosen_or_not_at_once(settings: ModuleType) -> None:
    found = greedy(
        settings,
        tokens=10,
        suppress_tokens=[9, 8],
        bad_words_ids=[[1], [2]],  # an end may be chosen whatever this says, as in transformers
        begin_suppress_tokens=[5],
        min_new_tokens=3,
        forced_bos_token_id=0,
    )
    assert found["bans"] == [
        {"tokens": [1, 8, 9], "first": 0, "end": 10},
        {"tokens": [2], "first": 0, "end": 3},
        {"tokens": [5], "first": 1, "end": 2},  # behind the forced one
    ]
    assert greedy(settings, min_length=5)["bans"] == [{"tokens": [2], "first": 0, "end": 4}]


def test_a_number_that_stands_for_no_token_is_not_suppressed(settings: ModuleType) -> None:
    """-1, as Whisper's own library writes it, and tokens of a larger vocabulary; transformers passes over them, too."""
    found = greedy(settings, suppress_tokens=[-1, 7, VOCABULARY], begin_suppress_tokens=[-1], tokens=5)
    assert found["bans"] == [{"tokens": [7], "first": 0, "end": 5}]


def test_the_prompt_of_a_whisper(settings: ModuleType) -> None:
    english = {"decoder_start_token_id": 50257, "no_timestamps_token_id": 50362, "is_multilingual": False}
    assert greedy(settings, **english)["prompt"] == [50257, 50362]
    older = {**english, "is_multilingual": True, "forced_decoder_ids": [[1, 50259], [2, 50359], [3, 50363]]}
    assert greedy(
        settings,
        **older,
    )["prompt"] == [50257, 50259, 50359, 50363, 50362]
    assert greedy(settings, **{**older, "no_timestamps_token_id": 50363})["prompt"] == [50257, 50259, 50359, 50363]
    asked = greedy(settings, **older, prompt=(50260,))
    assert asked["prompt"] == [50257, 50260]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"repetition_penalty": 1.2}, r"repetition_penalty = 1.2 cannot become part of the graph"),
        ({"no_repeat_ngram_size": 3}, r"no_repeat_ngram_size = 3 cannot"),
        ({"sequence_bias": [[[3], 2.0]]}, "sequence_bias"),
        ({"bad_words_ids": [[3, 4]]}, r"bad_words_ids has \[3, 4\], a word of several tokens"),
        ({"decoder_start_token_id": None}, "decoder_start_token_id is None, expected one token"),
        ({"decoder_start_token_id": [1, 2]}, r"decoder_start_token_id is \[1, 2\]"),
        ({"forced_eos_token_id": [2, 3]}, "only one token can be forced"),
        ({"forced_eos_token_id": []}, r"forced_eos_token_id is \[\]; only one token can be forced"),
        ({"forced_bos_token_id": VOCABULARY}, r"tokens \[51865\] are to be given or forced, .* knows 0 to 51864"),
        ({"prompt": (-1,)}, r"tokens \[-1\] are to be given or forced"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>', expected tokens by their numbers"),
        ({"begin_suppress_tokens": [[3]]}, r"begin_suppress_tokens is \[\[3\]\], expected tokens by their numbers"),
        ({"pad_token_id": [0, 1]}, r"pad_token_id is \[0, 1\], expected one token"),
        ({"max_length": "20"}, "max_length is '20', expected a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens 0 leaves no token"),
        ({"max_time": 2.0}, "max_time = 2.0 cannot"),
        ({"forced_bos_token_id": 3, "suppress_tokens": [3]}, r"tokens \[3\] are forced and suppressed"),
        ({"tokens": 30, "positions": 25}, "30 given, but the decoder has 25 places, 1 of them for the prompt"),
        ({"is_multilingual": True, "lang_to_id": {"<|de|>": 7}}, r"hears several languages.*for <\|de\|> \[7, 0, 0\]"),
    ],
)
def test_what_cannot_be_honoured_is_refused(settings: ModuleType, given: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        greedy(settings, **given)
    assert type(caught.value).__name__ == "InputError"


def test_what_greedy_search_stands_for_is_told(settings: ModuleType) -> None:
    assert settings.beams_of({"num_beams": 4}) == "4 beams"
    assert settings.beams_of({"num_beams": 1, "do_sample": True}) == "sampling"
    assert settings.beams_of({"num_beams": None}) == ""
