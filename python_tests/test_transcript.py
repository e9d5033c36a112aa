"""Where an output ends, and which text may be shown before it has."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edlm_engine import SamplingParams
from edlm_engine.core.transcript import Transcript

EOS = 0


class Bytes:
    """Token i is byte i; 0 and 1 are special, and skipped as tokenizers skip special tokens."""

    vocab_size, longest_piece = 256, 1
    special = {0: "<eos>", 1: "<end>"}  # noqa: RUF012
    byte_ids = frozenset()

    def encode(self, text, *, special=True):
        return list(text.encode())

    def decode(self, token_ids):
        return bytes(i for i in token_ids if i > 1).decode(errors="replace")


def transcript(**params) -> Transcript:
    return Transcript(SamplingParams(**{"max_new_tokens": 100, **params}), (EOS,), Bytes())


def feed(record: Transcript, *pieces) -> list[str]:
    """Extend piece by piece until the end; the text shown after each."""
    shown = []
    for piece in pieces:
        record.extend(list(piece.encode()) if isinstance(piece, str) else list(piece))
        shown.append(record.text())
        if record.finish_reason:
            break
    return shown


def test_eos_ends_and_is_kept_in_the_ids_but_not_in_the_text():
    record = transcript()
    assert feed(record, "ab", [99, EOS, 100]) == ["ab", "abc"]
    assert (record.finish_reason, record.token_ids) == ("eos", [97, 98, 99, EOS])


def test_ignore_eos_goes_on_to_the_limit():
    record = transcript(ignore_eos=True, max_new_tokens=4)
    feed(record, [EOS, 97, EOS], "bcd")
    assert (record.finish_reason, record.token_ids) == ("length", [EOS, 97, EOS, 98])


@pytest.mark.parametrize("ignore_eos", (False, True))
def test_stop_id_ends_beside_eos_and_without(ignore_eos):
    record = transcript(stop_token_ids=[98], ignore_eos=ignore_eos)
    assert feed(record, "abc") == ["a"]
    assert (record.finish_reason, record.token_ids) == ("stop", [97, 98])


def test_eos_that_is_the_last_allowed_token_counts_as_eos():
    record = transcript(max_new_tokens=2)
    feed(record, [97, EOS])
    assert record.finish_reason == "eos"


@pytest.mark.parametrize("pieces", [("one END two",), ("one E", "ND two"), tuple("one END two")])
def test_stop_string_across_tokens_and_steps(pieces):
    record = transcript(stop="END")
    assert feed(record, *pieces)[-1] == "one "
    assert record.finish_reason == "stop"
    assert Bytes().decode(record.token_ids) == "one END"  # up to the token that completed it


def test_the_stop_string_that_completes_first_wins():
    record = transcript(stop=["abcdef", "cd"])
    assert feed(record, "xabcdef")[-1] == "xab"
    record = transcript(stop=["d", "abc"])
    assert feed(record, "xabcd")[-1] == "x"
    record = transcript(stop=["cd", "abcd", "d"])  # all at once: the text ends before the longest
    assert feed(record, "xabcd")[-1] == "x"


def test_stop_string_that_overlaps_itself():
    record = transcript(stop="aab")
    assert feed(record, *"xaaab") == ["x", "x", "x", "xa", "xa"]
    assert record.finish_reason == "stop"


def test_partial_stop_string_is_held_back_until_decided():
    assert feed(transcript(stop="END"), "a E", "N", "x") == ["a ", "a ", "a ENx"]


def test_stop_string_that_never_comes():
    record = transcript(stop="never", max_new_tokens=6)
    assert feed(record, "abc", "neve") == ["abc", "abcnev"]  # held back no longer once the limit is reached
    assert (record.finish_reason, len(record.token_ids)) == ("length", 6)


def test_held_back_text_is_released_by_eos():
    assert feed(transcript(stop="END"), "a EN", [EOS]) == ["a ", "a EN"]


def test_stop_string_before_eos_in_the_same_step():
    record = transcript(stop="b")
    feed(record, [97, 98, 99, EOS])
    assert (record.finish_reason, record.token_ids, record.text()) == ("stop", [97, 98], "a")


def test_eos_hides_what_a_block_holds_behind_it():
    record = transcript(stop="END")
    feed(record, [97, EOS, *b"END"])
    assert (record.finish_reason, record.text()) == ("eos", "a")


def test_stop_string_at_the_limit():
    record = transcript(stop="END", max_new_tokens=3)
    feed(record, "END")
    assert (record.finish_reason, record.text()) == ("stop", "")


def test_incomplete_utf8_is_held_back():
    euro = "€".encode()
    assert feed(transcript(), b"a" + euro[:1], euro[1:2], euro[2:]) == ["a", "a", "a€"]


def test_incomplete_utf8_is_shown_once_nothing_can_complete_it():
    assert feed(transcript(max_new_tokens=2), "a" + "", b"\xe2") == ["a", "a\ufffd"]


def test_without_a_tokenizer_there_is_no_text():
    record = Transcript(SamplingParams(max_new_tokens=2), (EOS,), None)
    record.extend([5, 6, 7])
    assert (record.token_ids, record.text(), record.finish_reason) == ([5, 6], "", "length")


@given(
    st.text("abé", min_size=1, max_size=30),
    st.lists(st.text("abé", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_text_only_grows_and_does_not_depend_on_the_steps(text, stop, data):
    tokens = [*text.encode(), EOS]
    cuts = data.draw(st.lists(st.integers(1, len(tokens)), max_size=6).map(sorted))
    pieces = [tokens[a:b] for a, b in zip([0, *cuts], [*cuts, len(tokens)], strict=True)]
    stepwise, at_once = transcript(stop=stop), transcript(stop=stop)
    shown = feed(stepwise, *pieces)
    feed(at_once, tokens)
    assert all(later.startswith(earlier) for earlier, later in pairwise(shown))
    assert (stepwise.text(), stepwise.token_ids) == (at_once.text(), at_once.token_ids)
    assert not any(s in stepwise.text() for s in stop)
    assert text.startswith(stepwise.text())


END = 1  # the special token "<end>"


@pytest.mark.parametrize(
    ("stop", "ids", "text", "count"),
    [
        ("<end>", [97, 98, END, 99], "ab", 3),  # a special token by its name
        ("b<end>", [97, 98, END, 99], "a", 3),  # and with text before it
        ("<end>c", [97, END, 98, END, 99, 100], "ab", 5),
        ("end>", [97, END, 98], "a", 2),
        (["d", "<end>"], [97, 98, END, 100], "ab", 3),
    ],
)
@pytest.mark.parametrize("at_once", (True, False))
def test_special_tokens_in_stop_strings(stop, ids, text, count, at_once):
    record = transcript(stop=stop)
    feed(record, *([ids] if at_once else [[token] for token in ids]))
    assert (record.text(), record.token_ids, record.finish_reason) == (text, ids[:count], "stop")


def test_special_tokens_that_complete_no_stop_string_are_no_text():
    record = transcript(stop=["<end>x", "never"])
    shown = feed(record, [97, END], [98, END], [EOS])
    assert shown == ["a", "ab", "ab"] and record.finish_reason == "eos"


class ByteTokens(Bytes):
    """Token i is byte i, and those from 128 on become text only when another token follows."""

    byte_ids = frozenset(range(128, 256))


def test_a_stop_string_of_byte_tokens_ends_with_the_token_that_completed_it():
    record = Transcript(SamplingParams(stop="é"), (EOS,), ByteTokens())
    record.extend(list("aéàb".encode()))
    assert (record.text(), bytes(record.token_ids).decode(), record.finish_reason) == ("a", "aé", "stop")
    record = Transcript(SamplingParams(stop="é"), (EOS,), ByteTokens())
    record.extend([*"éà".encode(), EOS])
    assert (record.text(), bytes(record.token_ids).decode(), record.finish_reason) == ("", "é", "stop")


def test_what_is_taken_adds_up_to_the_text():
    for stop in ((), ("never",)):
        record = transcript(stop=stop)
        taken = []
        for piece in ("ab", "c€", "", "de"):
            record.extend(list(piece.encode()))
            taken.append(record.take())
        record.extend([EOS])
        assert taken == ["ab", "c€", "", "de"] and record.take() == "" and record.text() == "abc€de"


class Pieces(Bytes):
    """Tokens of several bytes: token i is PIECES[i]."""

    PIECES = (b"", b"", b"one E", b"ND two", b"END\xe2", b"\x82\xac", b"x", b"abcabc", b"a", b"b")

    def decode(self, token_ids):
        return b"".join(self.PIECES[i] for i in token_ids).decode(errors="replace")


def of_pieces(*token_ids, stop="END"):
    record = Transcript(SamplingParams(stop=stop), (EOS,), Pieces())
    shown = []
    for token in token_ids:
        record.extend([token])
        shown.append(record.text())
        if record.finish_reason:
            break
    return shown, record


def test_the_end_of_a_token_may_begin_a_stop_string():
    shown, record = of_pieces(2, 6, EOS)
    assert shown == ["one ", "one Ex", "one Ex"] and record.finish_reason == "eos"
    shown, record = of_pieces(2, 3)
    assert shown == ["one ", "one "] and record.token_ids == [2, 3]


def test_a_token_may_be_held_back_in_part_behind_it_another():
    shown, record = of_pieces(7, 8, EOS, stop="abcabc_")
    assert shown == ["", "abc", "abcabca"] and record.finish_reason == "eos"
    shown, record = of_pieces(7, 8, 9, 6, EOS, stop=["abcabcab_", "bcabx_"])
    assert shown == ["", "", "", "abca", "abcabcabx"]


def test_nothing_comes_behind_a_stop_string():
    """Its token goes on with a part of a character, and the limit is reached."""
    for ids in ((4,), (6, 4, 5)):
        shown, record = of_pieces(*ids)
        assert shown[-1] == "x" * (len(ids) > 1) and record.finish_reason == "stop"
        assert record.token_ids == list(ids[: ids.index(4) + 1])
