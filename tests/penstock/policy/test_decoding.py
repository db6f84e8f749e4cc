"""What outputs say: answers of every form, when two are the same, and how sure a model is of each."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from penstock.errors import InvalidInput
from penstock.policy.decoding import PART_SCORES, SCORES, Decoder, Decoding, Form, joined, kind_of

SHAPES: dict[Form, tuple[int, ...]] = {
    "classes": (4,),
    "labels": (4,),
    "boxes": (3, 6),
    "text": (5, 3),
    "mask": (2, 3, 3),
    "ranking": (4,),
    "numbers": (2,),
    "vectors": (4,),
}
numbers = st.floats(-20, 20, width=32)
forms = st.sampled_from(list(SHAPES))


def decoder(form: Form, kind: str = "logits", **more: object) -> Decoder:
    return Decoder(output="y", kind=kind, decoding=Decoding(form=form, **more))  # type: ignore[arg-type]


@st.composite
def outputs(draw: st.DrawFn) -> tuple[Form, NDArray[np.float32]]:
    form = draw(forms)
    values = draw(hnp.arrays(np.float32, (draw(st.integers(1, 4)), *SHAPES[form]), elements=numbers))
    return form, np.abs(values) / 20 if form == "boxes" else values  # whose scores are probabilities


@given(outputs())
def test_every_answer_is_the_same_as_itself_and_sameness_goes_both_ways(
    drawn: tuple[Form, NDArray[np.float32]],
) -> None:
    form, values = drawn
    reads = decoder(form)
    answers = reads.answers({"y": values})
    assert len(answers) == len(values)
    if form != "vectors" or np.linalg.norm(values.reshape(len(values), -1), axis=1).all():
        assert reads.same(answers, answers).all()
    other = answers[::-1]
    np.testing.assert_array_equal(reads.same(answers, other), reads.same(other, answers))


@given(outputs())
def test_scores_are_in_the_unit_interval_and_nan_for_a_row_that_is_not_finite(
    drawn: tuple[Form, NDArray[np.float32]],
) -> None:
    form, values = drawn
    reads = decoder(form)
    broken = values.copy()
    broken[0] = np.nan
    for name in reads.scores:
        scores = reads.score({"y": values}, name=name)
        assert scores.shape == (len(values),)
        assert ((scores >= 0) & (scores <= 1)).all()
        found = reads.score({"y": broken}, name=name)
        assert np.isnan(found[0])
        np.testing.assert_allclose(found[1:], scores[1:])


@given(outputs())
def test_what_is_read_batch_by_batch_says_the_same_as_the_outputs(drawn: tuple[Form, NDArray[np.float32]]) -> None:
    form, values = drawn
    reads = decoder(form)
    parts = [reads.reduced({"y": values[at : at + 1]}) for at in range(len(values))]
    kept = {name: joined([part[name] for part in parts]) for name in parts[0]}
    np.testing.assert_array_equal(reads.answers(kept), reads.answers({"y": values}))
    for name in reads.scores:
        np.testing.assert_allclose(reads.score(kept, name=name), reads.score({"y": values}, name=name))


def collapsed(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    return tuple(step for step, _ in itertools.groupby(path) if step != blank)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.sampled_from([0, 2, -1]))
def test_text_is_the_steps_without_repeats_and_blanks(path: list[int], blank: int) -> None:
    found = decoder("text", blank=blank).answers({"y": np.eye(3)[path][None]})[0]
    assert tuple(found[found >= 0].tolist()) == collapsed(tuple(path), blank % 3)


def test_text_is_as_sure_as_its_least_sure_character_and_blanks_between_do_not_count() -> None:
    steps = np.array([[[0.1, 0.9, 0], [0.3, 0.7, 0], [0.51, 0.49, 0], [0.2, 0, 0.8]]])
    reads = decoder("text", "probabilities")
    assert reads.score({"y": steps}, name="part_min")[0] == pytest.approx(0.8)
    nothing = np.array([[[0.9, 0.1, 0], [0.6, 0.4, 0]]])
    assert reads.score({"y": nothing}, name="part_min")[0] == pytest.approx(0.6)


def test_boxes_are_thinned_out_by_class_and_the_same_whatever_their_order() -> None:
    yolo = np.zeros((1, 6, 4))  # centre, size, two classes; four candidates
    yolo[0, :4] = np.array([[10, 10, 4, 4], [10.5, 10, 4, 4], [10, 10, 4, 4], [50, 50, 4, 4]]).T
    yolo[0, 4:] = np.array([[0.9, 0], [0.8, 0.1], [0, 0.7], [0.3, 0.1]]).T
    reads = decoder("boxes", layout="yolo")
    found = reads.answers({"y": yolo})
    kept = [[8, 8, 12, 12, 0, 0.9], [8, 8, 12, 12, 1, 0.7], [48, 48, 52, 52, 0, 0.3]]
    np.testing.assert_allclose(found[0][found[0][:, 4] >= 0], kept)
    assert reads.same(found, found[:, [2, 0, 1, *range(3, 100)]]).all()
    assert reads.score({"y": yolo}, name="part_min")[0] == pytest.approx(0.3)
    assert not reads.same(found, decoder("boxes", layout="yolo", threshold=0.4).answers({"y": yolo})).any()


def test_a_picture_without_boxes_is_as_sure_as_its_best_candidate_is_far_from_one() -> None:
    rows = np.array([[[0, 0, 1, 1, 0.2, 0], [0, 0, 1, 1, 0.05, 1]], [[0, 0, 1, 1, 0.24, 0], [0, 0, 0, 0, 0, -1]]])
    assert decoder("boxes").score({"y": rows}, name="part_min").tolist() == pytest.approx([0.8, 0.76])


def test_objectness_multiplies_what_the_classes_say() -> None:
    values = np.array([[[5.0, 5, 2, 2, 0.5, 0.2, 0.9]]])
    found = decoder("boxes", layout="yolo-objectness").answers({"y": values})[0, 0]
    np.testing.assert_allclose(found, [4, 4, 6, 6, 1, 0.45])


@pytest.mark.parametrize(
    ("form", "values"),
    [
        ("boxes", np.zeros((1, 3, 5))),
        ("text", np.zeros((1, 3))),
        ("text", np.zeros((1, 3, 1))),
        ("mask", np.zeros((1, 3))),
        ("labels", np.zeros((1, 3, 2))),
        ("classes", np.zeros((1, 3, 2))),
    ],
)
def test_an_output_of_another_shape_is_refused_with_what_was_expected(form: Form, values: NDArray[np.float64]) -> None:
    with pytest.raises(InvalidInput, match=r"expected|layout"):
        decoder(form).answers({"y": values})


def test_the_models_own_output_may_say_how_sure_it_is() -> None:
    reads = Decoder(output="y", kind="logits", decoding=Decoding(form="numbers"), probe="sure")
    assert reads.scores == ("probe",)
    values = {"y": np.zeros((4, 2)), "sure": np.array([[0.3], [1.0], [np.nan], [1.5]])}
    found = reads.score(values, name="probe")
    np.testing.assert_array_equal(found, [0.3, 1.0, np.nan, np.nan])
    np.testing.assert_array_equal(reads.score({**values, "sure": values["sure"][:, 0]}, name="probe"), found)
    with pytest.raises(InvalidInput, match="expected one real number"):
        reads.score({**values, "sure": np.zeros((4, 2))}, name="probe")
    assert decoder("numbers").scores == ()


@pytest.mark.parametrize("form", SHAPES)
def test_every_score_of_a_form_is_known_to_devices(form: Form) -> None:
    assert set(decoder(form).scores) <= set(SCORES)
    with pytest.raises(InvalidInput, match="cannot be had|unknown"):
        decoder("numbers").score({"y": np.zeros((1, 2))}, name=next(iter(PART_SCORES)))


@given(hnp.arrays(np.float64, st.tuples(st.integers(2, 5), st.integers(2, 5)), elements=st.floats(-9, 9)))
def test_a_softmax_is_told_by_its_values_however_it_was_written(logits: NDArray[np.float64]) -> None:
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert kind_of(p, "classes") == "probabilities"
    assert kind_of(np.moveaxis(p[:, :, None, None], 1, 1), "mask") == "probabilities"
    assert kind_of(p[:, None, :], "text") == "probabilities"
    assert kind_of(logits - 20, "classes") == "logits"
    assert kind_of(np.full((3, 4), 0.6), "classes") == "logits"  # in range, but no distribution
    assert kind_of(np.full((3, 4), 0.6), "labels") == "probabilities"
    assert kind_of(np.full((3, 1), 0.6), "classes") == "probabilities"
    assert kind_of(np.full((3, 1), 1.6), "classes") == "logits"


def test_a_vector_is_the_same_as_itself_however_short_it_is_and_nothing_is_the_same_as_none() -> None:
    reads = decoder("vectors")
    short, none = np.full((1, 4), 4.5e-9), np.zeros((1, 4))
    assert reads.same(short, short).all()
    assert not reads.same(none, none).any()
    assert not reads.same(short, none).any()
    assert not reads.same(short, -short).any()


IDS, CHANCES = "token_ids", "token_probabilities"


def generated(ids: list[list[int]], chances: list[list[float]]) -> dict[str, NDArray[np.generic]]:
    return {IDS: np.array(ids), CHANCES: np.array(chances, dtype=np.float32)}


def of_tokens(*skip: int) -> Decoder:
    return Decoder(output=CHANCES, kind="probabilities", decoding=Decoding(form="tokens", skip=skip))


def test_tokens_end_where_their_probability_is_0_and_ends_are_no_text() -> None:
    outputs = generated([[5, 0, 7, 2, 0], [2, 0, 0, 0, 0]], [[0.9, 0.8, 0.7, 0.6, 0], [0.5, 0, 0, 0, 0]])
    assert of_tokens(2).answers(outputs).tolist() == [[5, 0, 7, -1, -1], [-1] * 5], "0 is also a token that was chosen"
    assert of_tokens().answers(outputs).tolist() == [[5, 0, 7, 2, -1], [2, -1, -1, -1, -1]]
    assert of_tokens(2).outputs == (CHANCES, IDS)


def test_an_answer_of_tokens_is_as_sure_as_its_least_sure_token_and_its_end_is_one() -> None:
    outputs = generated([[5, 7, 2, 0], [5, 2, 0, 0]], [[0.9, 0.8, 0.6, 0], [0.9, 0.4, 0, 0]])
    found = of_tokens(2).score(outputs, name="part_min")
    np.testing.assert_allclose(found, [0.6, 0.4], atol=1e-6)
    mean = of_tokens(2).score(outputs, name="part_mean")
    np.testing.assert_allclose(mean, [(0.9 * 0.8 * 0.6) ** (1 / 3), 0.6], atol=1e-6)


def test_answers_of_tokens_are_the_same_whatever_their_length_and_padding() -> None:
    short = of_tokens(2).answers(generated([[5, 7, 2]], [[0.9, 0.8, 0.6]]))
    long = of_tokens(2).answers(generated([[5, 7, 2, 9, 9]], [[0.3, 0.8, 0.6, 0, 0]]))
    other = of_tokens(2).answers(generated([[5, 7, 7, 2]], [[0.9, 0.8, 0.6, 0.6]]))
    assert of_tokens(2).same(short, long).all()
    assert not of_tokens(2).same(long, other).any()


@pytest.mark.parametrize("broken", [np.nan, np.inf, -0.5, 1.5])
def test_tokens_with_a_probability_that_is_none_are_never_sure(broken: float) -> None:
    outputs = generated([[5, 7, 2], [5, 7, 2]], [[0.9, broken, 0.6], [0.9, 0.8, 0.6]])
    for name in PART_SCORES:
        assert np.isnan(of_tokens(2).score(outputs, name=name)).tolist() == [True, False]


def test_tokens_are_read_batch_by_batch() -> None:
    outputs = generated([[5, 7, 2], [2, 0, 0]], [[0.9, 0.7, 0.6], [0.9, 0, 0]])
    parts = [of_tokens(2).reduced({name: array[at : at + 1] for name, array in outputs.items()}) for at in (0, 1)]
    kept = {name: joined([part[name] for part in parts]) for name in parts[0]}
    assert of_tokens(2).answers(kept).tolist() == [[5, 7, -1], [-1, -1, -1]]
    np.testing.assert_allclose(of_tokens(2).score(kept, name="part_min"), [0.6, 0.9], atol=1e-6)


@pytest.mark.parametrize("ids", [np.zeros((2, 3)), np.zeros((2, 4), np.int64), np.zeros((2, 3, 1), np.int64)])
def test_tokens_of_another_shape_or_kind_are_refused(ids: NDArray[np.generic]) -> None:
    with pytest.raises(InvalidInput, match="expected whole numbers and real numbers"):
        of_tokens().answers({IDS: ids, CHANCES: np.zeros((2, 3), np.float32)})
