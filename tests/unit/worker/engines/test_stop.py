"""Stop strings: the text ends exactly before the first, however it was cut into tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.engines.stop import StopFilter

PIECES = st.lists(st.text("ab\n", max_size=3), max_size=12)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=3)


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    stop = StopFilter(stops)
    text = ""
    for piece in pieces:
        text += stop.feed(piece)
        if stop.stopped:
            return text, True
    return text + stop.flush(), False


@given(STOPS, PIECES)
def test_the_cuts_make_no_difference(stops: list[str], pieces: list[str]) -> None:
    whole = "".join(pieces)
    assert run(stops, pieces) == run(stops, list(whole))


@given(STOPS, PIECES)
def test_the_text_ends_before_the_stop_string_that_is_complete_first(stops: list[str], pieces: list[str]) -> None:
    whole = "".join(pieces)
    text, stopped = run(stops, pieces)
    assert stopped == any(stop in whole for stop in stops)
    assert text == whole[: len(text)]
    assert stopped or text == whole
    assert not any(stop in text for stop in stops)


@given(STOPS, PIECES)
def test_nothing_is_held_back_that_cannot_be_a_stop_string(stops: list[str], pieces: list[str]) -> None:
    stop = StopFilter(stops)
    sent = sum(len(stop.feed(piece)) for piece in pieces)
    held = stop.flush()
    assert stop.stopped or sent + len(held) == len("".join(pieces))
    assert held == "" or any(one.startswith(held) for one in stops)


def test_of_two_that_end_together_the_longer_counts() -> None:
    assert run(["b", "ab"], ["xab"]) == ("x", True)
