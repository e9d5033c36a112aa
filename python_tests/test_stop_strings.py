"""Stop strings against what str.find says."""

from hypothesis import given
from hypothesis import strategies as st

from edlm_engine.core.stop_strings import StopStrings

SHORT = st.text("ab", min_size=1, max_size=4)


@given(st.text("ab", max_size=30), st.lists(SHORT, min_size=1, max_size=4), st.lists(st.integers(1, 9)))
def test_the_first_to_end_the_longest_of_those(text, strings, sizes):
    """For a text in pieces of any sizes."""
    ends = [n for n in range(1, len(text) + 1) if text[:n].endswith(tuple(strings))]
    finder, at = StopStrings(strings), 0
    for size in [*sizes, len(text)]:
        piece = text[at : at + size]
        found = finder.feed(piece)
        if ends and ends[0] <= at + len(piece):
            end = ends[0]
            begin = min(end - len(s) for s in strings if text[:end].endswith(s))
            assert found == (begin - at, end - at)
            return
        at += len(piece)
        assert found is None
        prefixes = {s[:n] for s in strings for n in range(len(s))}
        assert finder.pending == max(len(p) for p in prefixes if text[:at].endswith(p))
    assert not ends


def test_strings_that_begin_alike():
    finder = StopStrings([f"{'a' * 20}{i}" for i in range(1000)])
    assert finder.feed("a" * 1000) is None and finder.pending == 20
    assert finder.feed("b") is None and finder.pending == 0
    assert finder.feed("a" * 20) is None and finder.feed("999") == (-20, 1)


def test_every_state_falls_back_to_its_longest_suffix():
    """Strings that contain each other's beginnings and ends, character by character."""
    finder = StopStrings(["abcabd", "bcab_", "cabx", "b"])
    assert finder.feed("ab") == (1, 2)
    finder = StopStrings(["abcabd", "bcab_", "cabx"])
    assert [finder.feed(c) or finder.pending for c in "abcab"] == [1, 2, 3, 4, 5]
    assert finder.feed("x") == (-3, 1)  # the longest prefix at hand was not the one that counted
    finder = StopStrings(["abcabd", "bcab_", "cabx"])
    assert finder.feed("abcab") is None and finder.feed("_") == (-4, 1)
    finder = StopStrings(["abcabd"])
    assert finder.feed("abcabcab") is None and finder.pending == 5 and finder.feed("d") == (-5, 1)
    assert StopStrings(["a"]).pending == 0
