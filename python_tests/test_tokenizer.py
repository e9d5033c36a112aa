"""Tokenizer files of both kinds."""

import json

import pytest
import tokenizers
from checkpoints import EOS, MASK, config_dict, write_checkpoint, write_tokenizer

from edlm_engine import CheckpointError, Engine
from edlm_engine.checkpoints.tokenizer import load_tokenizer


def write_config(folder, **config):
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_json_tokenizer(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("w7 w8 nonsense") == [7, 8, 0]
    assert tokenizer.decode([7, EOS, 8, MASK]) == "w7 w8"  # special tokens are no text
    assert tokenizer.piece(MASK) == f"w{MASK}"
    assert tokenizer.vocab_size == 128


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("w1 w2 w3 w4 w5 w6") == [1, 2, 3, 4, 5, 6]
    assert load_tokenizer(tmp_path).encode("w1") == [1]


@pytest.mark.parametrize("text", ["\ud800", "a\udcff", "x" * 20000 + "\udfff"])
@pytest.mark.parametrize("kind", ("json", "sentencepiece"))
def test_half_a_surrogate_pair_is_no_text(tmp_path, sentencepiece_model, kind, text):
    if kind == "json":
        write_tokenizer(tmp_path)
    else:
        (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model)
    message = rf"character {len(text) - 1} is the lone surrogate '\\ud..."
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path).encode(text)


def changed_tokenizer(folder, **changes):
    write_tokenizer(folder)
    data = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(data | changes))


def test_a_panic_of_the_library_is_an_ordinary_error(tmp_path):
    model = {"type": "WordLevel", "vocab": {"w": 0, "5": 5}, "unk_token": "w"}
    strip = {"type": "Strip", "content": "5", "start": 1, "stop": 1}
    changed_tokenizer(tmp_path, model=model, decoder=strip)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode([0]) == "w"
    with pytest.raises(ValueError, match="the tokenizer cannot decode the tokens: "):
        tokenizer.decode([5])


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        (
            {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]],
                       "continuing_subword_prefix": "##"}},
            "model.continuing_subword_prefix",
        ),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "//////8="}}, "precompiled_charsmap"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Precompiled", "precompiled_charsmap": "AA"}]}},
            "precompiled_charsmap",
        ),
    ],
)  # fmt: skip
def test_what_would_abort_the_process_is_refused(tmp_path, changes, key):
    changed_tokenizer(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json: key '.*{key}'"):
        load_tokenizer(tmp_path)


def test_long_texts_are_cut_as_short_ones(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    text = "w5 w126 nonsense " * 4000
    assert tokenizer.encode(text) == tokenizer.encode("w5 w126 nonsense ") * 4000


@pytest.mark.parametrize("name", ("tokenizer.json", "tokenizer.model"))
def test_unreadable_file(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=f"{name}: cannot be read as a"):
        load_tokenizer(tmp_path)


def test_pieces_that_are_no_text(tmp_path, sentencepiece_model):
    """The library takes a model with them, and fails where one is shown."""
    assert b"at" in sentencepiece_model
    broken = sentencepiece_model.replace(b"at", b"a\xb2", 1)
    (tmp_path / "tokenizer.model").write_bytes(broken)
    with pytest.raises(CheckpointError, match=r"model: cannot be read as a sentencepiece model: .*utf-8"):
        load_tokenizer(tmp_path)


def test_sentencepiece(tmp_path, sentencepiece_model):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("the cat 3 €")
    assert tokenizer.decode(ids) == "the cat 3 €"
    assert tokenizer.decode([1, *ids, 2]) == "the cat 3 €"  # bos and eos are no text
    assert tokenizer.decode([*ids, tokenizer.vocab_size + 5]) == "the cat 3 €"  # rows of a padded embedding
    assert "\u2581" not in "".join(map(tokenizer.piece, ids)) and tokenizer.piece(10**6) == ""
    assert tokenizer.decode(ids[:-1]).endswith("\ufffd")  # what the transcript holds back
    write_config(tmp_path, add_bos_token=True)
    assert load_tokenizer(tmp_path).encode("the cat 3 €") == [1, *ids]


def test_sentencepiece_checkpoint_generates(tmp_path, sentencepiece_model):
    config = config_dict(vocab_size=320, mask_token_id=319, eos_token_id=2)
    folder = write_checkpoint(tmp_path / "checkpoint", config, tokenizer=False)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model)
    with Engine(folder) as engine:
        result = engine.generate("the cat", max_new_tokens=10)
        assert result.prompt_token_ids == engine.tokenizer.encode("the cat")
        assert result.text and result.text == engine.tokenizer.decode(result.token_ids)


@pytest.mark.parametrize("add_bos", (True, False))
def test_chat_has_no_second_bos(tmp_path, sentencepiece_model, add_bos):
    config = config_dict(vocab_size=320, mask_token_id=319, eos_token_id=2)
    folder = write_checkpoint(tmp_path / "checkpoint", config, tokenizer=False)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model)
    write_config(folder, bos_token="<s>", add_bos_token=add_bos)
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    messages = [{"role": "user", "content": "the cat"}]
    with Engine(folder) as engine:
        assert engine.chat_prompt(messages) == "<s>the cat"
        ids = engine.chat(messages, max_new_tokens=2).prompt_token_ids
        assert ids == [1, *engine.tokenizer.encode("the cat", special=False)]
        assert engine.generate("the cat", max_new_tokens=2).prompt_token_ids == [1] * add_bos + ids[1:]


def test_no_tokenizer(tmp_path):
    assert load_tokenizer(tmp_path) is None
