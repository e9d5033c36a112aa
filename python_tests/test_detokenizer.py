"""Text that comes piece by piece is the text of the whole."""

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from edlm_engine.checkpoints.detokenizer import Detokenizer
from edlm_engine.checkpoints.json_tokenizer import JsonTokenizer
from edlm_engine.checkpoints.sentencepiece_tokenizer import SentencePieceTokenizer

WORDS = ["▁hi", "▁", "x", "▁▁", "é", "日", ",", "▁go"]


def byte_level(folder):
    """A token for each byte, and some of several bytes that begin or end inside a character."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pieces = [*sorted(alphabet), "âĤ", "Ġhi", "¬x", "ðŁĺ"]
    tokenizer = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return JsonTokenizer(tokenizer, folder)


def byte_fallback(folder):
    """As Llama 2 has it: a leading space is stripped, unknown characters are tokens of bytes."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + WORDS
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<end>"])
    return JsonTokenizer(tokenizer, folder)


def metaspace(folder):
    tokenizer = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="x"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.add_tokens(["<think>"])
    return JsonTokenizer(tokenizer, folder)


def word_piece(folder):
    words = ["do", "##ing", "##n", "'", "t", ".", "##s", "a"]
    tokenizer = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="a"))
    tokenizer.decoder = decoders.WordPiece()
    return JsonTokenizer(tokenizer, folder)


@pytest.fixture(scope="module")
def of_kind(tmp_path_factory, sentencepiece_model):
    folder = tmp_path_factory.mktemp("plain")
    (folder / "tokenizer.model").write_bytes(sentencepiece_model)
    (folder / "added_tokens.json").write_text('{"<think>": 300}')
    kinds = {f.__name__: f(folder.parent) for f in (byte_level, byte_fallback, metaspace, word_piece)}
    return kinds | {"sentencepiece": SentencePieceTokenizer(folder / "tokenizer.model")}


def pieces(tokenizer, steps) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(step) for step in steps), detokenizer.flush()]


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "metaspace", "word_piece", "sentencepiece"])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_joined_pieces_are_the_whole(of_kind, kind, data):
    tokenizer = of_kind[kind]
    ids = st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=6)
    steps = data.draw(st.lists(ids, max_size=12))
    assert "".join(pieces(tokenizer, steps)) == tokenizer.decode([token for step in steps for token in step])


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "sentencepiece"])
@settings(max_examples=100, deadline=None)
@given(text=st.text("aé日😀 hi", min_size=1, max_size=80), size=st.integers(1, 5), spaces=st.integers(0, 2))
def test_text_of_several_bytes_per_character(of_kind, kind, text, size, spaces):
    tokenizer = of_kind[kind]
    ids = tokenizer.encode(" " * spaces + text, special=False)
    found = pieces(tokenizer, [ids[i : i + size] for i in range(0, len(ids), size)])
    assert "".join(found) == tokenizer.decode(ids)
    assert "\ufffd" not in "".join(found)


@pytest.mark.parametrize(
    ("kind", "token"), [("byte_level", i) for i in (40, 130)] + [("byte_fallback", 0x80)]
)
@pytest.mark.parametrize("step", (1, 3))
def test_work_per_token_does_not_grow(of_kind, kind, token, step):
    """Ids decoded for a long text, of letters or of bytes that never become a character."""
    inner, counted = of_kind[kind], []

    class Counting:
        special, byte_ids = inner.special, inner.byte_ids

        def decode(self, ids):
            counted.append(len(ids))
            return inner.decode(ids)

    def work(length):
        counted.clear()
        found = pieces(Counting(), [[token] * step] * (length // step))
        assert "".join(found) == inner.decode([token] * (length // step * step))
        return sum(counted)

    assert work(3000) < 4 * work(1000)


def test_characters_show_when_they_are_whole_and_words_at_once(of_kind):
    tokenizer = of_kind["byte_level"]
    euro = tokenizer.encode("€")
    assert pieces(tokenizer, [tokenizer.encode("ab")[:2] + euro[:1], euro[1:], []]) == ["ab", "€", "", ""]
    tokenizer = of_kind["byte_fallback"]
    hi, go = 256, 263
    assert pieces(tokenizer, [[hi, 0xE2], [0x82], [0xAC], [go]]) == ["hi", "", "", "€ go", ""]


def test_a_long_run_of_byte_tokens_does_not_wait_for_its_end(of_kind):
    tokenizer = of_kind["byte_fallback"]
    found = pieces(tokenizer, [[byte] for byte in ("😀" * 100).encode()] + [[263]])
    assert "".join(found) == "😀" * 100 + " go"
    assert len("".join(found[:-2])) > 80


def test_a_run_of_64_byte_tokens_waits_and_a_longer_one_does_not(of_kind):
    detokenizer, run = Detokenizer(of_kind["byte_fallback"]), ("😀" * 17).encode()
    assert detokenizer.push(list(run[:64])) == "" and detokenizer.push([run[64]]) == "😀" * 16
    assert detokenizer.push(list(run[65:])) + detokenizer.flush() == "😀"


def test_what_is_held_back_is_settled_if_it_is_whole(of_kind):
    """Of byte tokens, and what comes behind them keeps its space."""
    detokenizer, go = Detokenizer(of_kind["byte_fallback"]), 263
    assert detokenizer.push(list("é".encode())) == "" and detokenizer.settle() == "é"
    assert detokenizer.push([go]) == " go" and detokenizer.settle() == ""
    assert detokenizer.push([0xE2]) == detokenizer.settle() == "" and detokenizer.flush() == "\ufffd"


def test_tokens_behind_the_first_characters_of_a_piece(of_kind):
    tokenizer = of_kind["byte_level"]
    detokenizer = Detokenizer(tokenizer)
    for text in ("a€bc", "xyz"):  # the second behind a token of context
        ids = tokenizer.encode(text, special=False)
        assert detokenizer.push(ids) == text
        needed = [len(text[:n].encode()) for n in range(1, len(text) + 1)]
        assert [detokenizer.tokens_behind(n + 1) for n in range(len(text))] == [len(ids) - n for n in needed]
