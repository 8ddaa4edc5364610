"""What a client that resends its whole conversation wants, by comparison with what is stored."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from session_core.turns.client_history import Wish, wish_of

TEXTS = st.lists(st.text("abcdefghij", min_size=1, max_size=6), unique=True, max_size=8)
NEW = st.text("xyz", min_size=1, max_size=4)  # no text of a conversation


@given(TEXTS, NEW)
def test_a_question_behind_the_whole_conversation_goes_on(stored: list[str], new: str) -> None:
    assert wish_of(stored, [*stored, new]) == Wish("next")


@given(TEXTS, NEW, st.data())
def test_a_client_that_trims_from_the_front_goes_on(stored: list[str], new: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(stored)))
    assert wish_of(stored, [*stored[cut:], new]) == Wish("next")


@given(TEXTS.filter(bool), st.data())
def test_the_last_question_once_more_is_that_one(stored: list[str], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(stored) - 1))
    assert wish_of(stored, stored[cut:]) == Wish("again")


@given(TEXTS.filter(lambda texts: len(texts) > 1), NEW, st.data())
def test_an_edited_question_stands_in_its_place(stored: list[str], new: str, data: st.DataObject) -> None:
    """Of any but the first, which cannot be told from a question that is sent alone."""
    place = data.draw(st.integers(1, len(stored) - 1))
    assert wish_of(stored, [*stored[:place], new]) == Wish("instead", place, place)


@given(TEXTS.filter(lambda texts: len(texts) > 2), NEW, NEW, st.data())
def test_an_edited_question_in_the_middle_brings_what_follows_it(
    stored: list[str], new: str, question: str, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(stored) - 2))
    client = [*stored[:place], new, *stored[place + 1 :], question]
    assert wish_of(stored, client) == Wish("instead", place, place)


@given(TEXTS, NEW, st.sampled_from([" {} ", "\n{}", "{}\t\n", "  {}"]))
def test_white_space_does_not_count(stored: list[str], new: str, form: str) -> None:
    assert wish_of(stored, [*map(form.format, stored), new]) == Wish("next")


@given(TEXTS.filter(lambda texts: len(texts) > 2), NEW, NEW, st.data())
def test_a_trimmed_client_that_edits_keeps_what_it_does_not_know(
    stored: list[str], new: str, question: str, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, len(stored) - 2))
    client = [stored[cut], new, question]
    assert wish_of(stored, client) == Wish("instead", cut + 1, 1)


@given(TEXTS.filter(bool), NEW, NEW)
def test_a_client_that_asked_elsewhere_meanwhile_brings_that_along(stored: list[str], one: str, two: str) -> None:
    assert wish_of(stored, [*stored, one, two]) == Wish("instead", len(stored), len(stored))


@given(TEXTS, st.lists(st.text("abcxyz", max_size=3), min_size=1, max_size=8))
def test_whatever_is_compared_the_wish_fits_both(stored: list[str], client: list[str]) -> None:
    wish = wish_of(stored, client)
    assert 0 <= wish.at <= len(stored) and 0 <= wish.since < max(1, len(client))
    if wish.kind == "again":
        assert stored


def test_two_clients_on_one_session_the_second_of_which_knows_less() -> None:
    assert wish_of(["a", "b"], ["a", "c"]) == Wish("instead", 1, 1)


def test_a_first_question_has_nothing_to_be_compared_with() -> None:
    assert wish_of([], ["a"]) == Wish("next")
    assert wish_of([], ["a", "b"]) == Wish("instead", 0, 0)
