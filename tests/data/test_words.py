"""Words of a search: how a query is read, and what is shown of the place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_core.data.words import fold, parse_words

LENGTH = 160  # of a snippet, beside the marks where it is cut
TEXT = st.text(st.sampled_from("ab e\u0301\u0323ßİΐ한\n") | st.characters(codec="utf-8"), max_size=600)
WORD = st.text(st.characters(codec="utf-8", exclude_characters='"'), min_size=1, max_size=40).filter(str.strip)


@pytest.mark.parametrize(
    "query,words",
    [
        ("one two", ("one", "two")),
        (" one\t\n two ", ("one", "two")),
        ("two ONE Two", ("two", "one")),
        ('"one two" three', ("one two", "three")),
        ('"one  two', ("one two",)),
        ('" one "', ("one",)),
        ('one"two"', ('one"two"',)),
        ('"one"two', ("one", "two")),
        ('5" pipe', ('5"', "pipe")),
        ('"" one', ("one",)),
    ],
)
def test_a_query_is_read_as_these_words(query: str, words: tuple[str, ...]) -> None:
    assert parse_words(query).folded == words


@pytest.mark.parametrize("query", ["", " ", '"', '""', '" " "', "x" * 1001])
def test_a_query_without_words_or_too_long_is_refused(query: str) -> None:
    with pytest.raises(ValueError):
        parse_words(query)


def test_a_short_text_is_shown_whole_and_on_one_line() -> None:
    assert parse_words("b").snippet(" a\n\n b\tc ") == "a b c"


def test_a_long_text_is_cut_between_words() -> None:
    snippet = parse_words("needle").snippet("hay " * 100 + "needle " + "straw " * 100)
    assert snippet.startswith("…hay hay ") and snippet.endswith(" straw…")
    assert " needle " in snippet


@given(before=TEXT, word=WORD, after=TEXT)
def test_a_snippet_is_short_and_has_the_word(before: str, word: str, after: str) -> None:
    text = f"{before} {word} {after}"
    words = parse_words(f'"{word}"')
    snippet = words.snippet(text)
    assert len(snippet) <= LENGTH + 2
    assert fold(word) in fold(snippet)
    assert snippet.strip("…") in " ".join(text.split()) or "…" in text


@given(TEXT)
def test_what_is_folded_stays_so(text: str) -> None:
    assert fold(fold(text)) == fold(text)
