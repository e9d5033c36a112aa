"""What the files beside a tokenizer add to it: ids and texts as transformers has them."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from edlm_engine import CheckpointError
from edlm_engine.checkpoints.added_tokens import AddedToken, read_added_tokens, read_special_tokens
from edlm_engine.checkpoints.tokenizer import load_tokenizer

BASE = len(pre_tokenizers.ByteLevel.alphabet()) + 2  # the bytes, <|end|> and <think>
TEXTS = (
    "a<|end|>b<think>c</think> d", " <tool> x <tool>", "<|new|><|end|>", "[PAD]<s>", "x<mask> y", "<think>",
)  # fmt: skip


def token(content, *, special=False, **flags):
    return {
        "content": content, "special": special, "lstrip": False, "rstrip": False, "single_word": False,
        "normalized": False,
    } | flags  # fmt: skip


def write_byte_level(folder):
    """A byte-level tokenizer.json that knows <|end|> as a special token and <think> as a plain one."""
    pieces = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(models.BPE(pieces, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.add_tokens(["<think>"])
    tokenizer.save(str(folder / "tokenizer.json"))


def write_json(folder, name, data):
    (folder / name).write_text(json.dumps(data))


PAD = token("[PAD]", __type="AddedToken")  # as transformers writes it
CONFIGS = {
    "nothing": {},
    "tokens that only the config knows": {
        "added_tokens_decoder": {
            str(BASE - 2): token("<|end|>", special=True),
            str(BASE): token("<tool>"),
            str(BASE + 1): token("<|new|>", special=True),
        }
    },
    "special flags": {
        "added_tokens_decoder": {
            str(BASE - 2): token("<|end|>"),
            str(BASE - 1): token("<think>", special=True),
            str(BASE): token("<tool>", lstrip=True, rstrip=True),
        }
    },
    "named tokens": {"eos_token": "<|end|>", "bos_token": "<s>", "pad_token": PAD},
    "additional": {"additional_special_tokens": ["<|new|>", "<tool>"], "eos_token": "<|end|>"},
    "extra": {"extra_special_tokens": {"image_token": "<tool>"}, "mask_token": "<mask>"},
    "own name": {"end_of_thought_token": "</think>", "eos_token": token("<|end|>", __type="AddedToken")},
    "unsplit": {"split_special_tokens": True, "eos_token": "<|end|>"},
    "named and listed": {
        "eos_token": "<|new|>", "added_tokens_decoder": {str(BASE): token("<|new|>", special=True)},
    },
}  # fmt: skip


@pytest.mark.parametrize("files", CONFIGS)
@pytest.mark.parametrize("beside", ("no other files", "a map of special tokens", "added tokens"))
def test_as_transformers_has_it(tmp_path, files, beside):
    transformers = pytest.importorskip("transformers")
    write_byte_level(tmp_path)
    write_json(tmp_path, "tokenizer_config.json", CONFIGS[files])
    if beside == "a map of special tokens":
        named = {"eos_token": "<|end|>", "unk_token": token("<unk>"), "extra_special_tokens": ["<tool>"]}
        write_json(tmp_path, "special_tokens_map.json", named)
    if beside == "added tokens":
        write_json(tmp_path, "added_tokens.json", {"<tool>": BASE, "<mask>": BASE + 1})
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        assert ours.encode(text, special=False) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text


def test_ids_that_are_of_another_model_are_refused(tmp_path):
    write_byte_level(tmp_path)
    table = {str(BASE + 7): token("<tool>")}
    write_json(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": table})
    with pytest.raises(CheckpointError, match=rf"'<tool>' has the id {BASE + 7} .* would be {BASE}"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": []}, "must be an object of tokens by id"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"x": "y"}},
            "_decoder.x' must be a token id",
        ),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 99: "y"}}, "must be a token"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"0" * 5000 + "1": "y"}}, "must be a token"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"1": 5}},
            r"'added_tokens_decoder.1' must be a string",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"1": {"content": "a", "special": 1}}},
            "'special' must be true or false, is 1",
        ),
        (
            "tokenizer_config.json",
            {"extra_special_tokens": 3},
            "must be a list of tokens",
        ),
        ("tokenizer_config.json", {"additional_special_tokens": [[]]}, "must be a string or"),
        ("added_tokens.json", {"a": "b"}, "'a' must be a token id, is 'b'"),
        ("added_tokens.json", {"a": -1}, "'a' must be a token id, is -1"),
        (
            "special_tokens_map.json",
            {"eos_token": {"content": 3}},
            "'eos_token' must be a string or an object",
        ),
        ("special_tokens_map.json", [], "must hold a dict"),
    ],
)
def test_malformed_files(tmp_path, name, data, message):
    write_json(tmp_path, name, data)
    with pytest.raises(CheckpointError, match=message) as error:
        read_added_tokens(tmp_path), read_special_tokens(tmp_path)
    assert name in str(error.value)


def test_ids_are_numbers_of_31_bits(tmp_path):
    write_json(tmp_path, "added_tokens.json", {"last": 2**31 - 1, "first": 0})
    assert read_added_tokens(tmp_path) == [AddedToken("first", 0), AddedToken("last", 2**31 - 1)]
    write_json(tmp_path, "added_tokens.json", {"last": 2**31})
    with pytest.raises(CheckpointError, match="'last' must be a token id, is 2"):
        read_added_tokens(tmp_path)
    for number, right in ((2**31 - 1, True), (2**31, False)):
        write_json(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": {str(number): "a"}})
        if right:
            assert {*read_added_tokens(tmp_path)} == {AddedToken("a", number)}
        else:
            with pytest.raises(CheckpointError, match=f"'added_tokens_decoder.{number}' must be a token id"):
                read_added_tokens(tmp_path)


def test_the_map_of_special_tokens_goes_first_and_adds_to_the_extra_ones(tmp_path):
    write_json(tmp_path, "tokenizer_config.json", {"extra_special_tokens": ["x"], "eos_token": "a"})
    named = {"extra_special_tokens": ["y"], "eos_token": "b", "own_token": "c", "bos_token": None}
    write_json(tmp_path, "special_tokens_map.json", named)
    found = read_special_tokens(tmp_path)
    assert [token.content for token in found] == ["b", "x", "y", "c"]
    assert found[0] == AddedToken("b", special=True, normalized=False)


@pytest.fixture
def sentencepiece_folder(tmp_path, sentencepiece_model):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model)
    size = load_tokenizer(tmp_path).vocab_size
    write_json(tmp_path, "added_tokens.json", {"<|im_start|>": size, "<|im_end|>": size + 1})
    return tmp_path, size


def test_added_to_sentencepiece(sentencepiece_folder):
    folder, size = sentencepiece_folder
    plain = load_tokenizer(folder)
    write_json(folder, "special_tokens_map.json", {"eos_token": "<|im_end|>"})
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("<|im_start|>the cat<|im_end|>the mat")
    assert [i for i in ids if i >= size] == [size, size + 1]
    assert tokenizer.vocab_size == size + 2
    assert tokenizer.decode(ids) == "<|im_start|> the cat the mat"
    assert plain.decode(ids) == "<|im_start|> the cat<|im_end|> the mat"
    assert tokenizer.piece(size) == "<|im_start|>"
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"


def test_sentencepiece_without_a_space_behind_added_tokens(sentencepiece_folder):
    folder, _ = sentencepiece_folder
    write_json(folder, "tokenizer_config.json", {"legacy": False})
    tokenizer = load_tokenizer(folder)
    pieces = [tokenizer.piece(i) for i in tokenizer.encode("the<|im_start|>the<|im_end|> the")]
    assert "".join(pieces) == " the<|im_start|>the<|im_end|> the"
    write_json(folder, "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"})
    assert load_tokenizer(folder).encode("a<|im_start|>the") == tokenizer.encode("a<|im_start|>the")


def test_white_space_around_tokens_of_sentencepiece(sentencepiece_folder):
    folder, size = sentencepiece_folder
    strips = {str(size): token("<|im_start|>", rstrip=True), str(size + 1): token("<|im_end|>", lstrip=True)}
    write_json(folder, "tokenizer_config.json", {"added_tokens_decoder": strips})
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("<|im_start|>  the   <|im_end|>")
    assert ids == tokenizer.encode("<|im_start|>the<|im_end|>")


def test_single_words_among_tokens_of_sentencepiece(sentencepiece_folder):
    folder, size = sentencepiece_folder
    words = {str(size): token("<x>", single_word=True), str(size + 1): token("sat", single_word=True)}
    write_json(folder, "tokenizer_config.json", {"added_tokens_decoder": words})
    encode = load_tokenizer(folder).encode

    def found(text):
        return [i - size for i in encode(text) if i >= size]

    assert found("the <x> sat <x><x>") == [0, 1, 0, 0]
    assert found("a<x>b <x>b satin") == []
    assert found("sat<x> cat") == [1]  # the end of a token is the end of a word, too


def test_sentencepiece_gives_the_next_ids_to_named_tokens_that_have_none(sentencepiece_folder):
    folder, size = sentencepiece_folder
    write_json(folder, "tokenizer_config.json", {"pad_token": "<pad>", "extra_special_tokens": ["<tool>"]})
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("the<pad><tool><|im_end|>")
    assert ids[-3:] == [size + 2, size + 3, size + 1]
    assert tokenizer.vocab_size == size + 4
    assert tokenizer.decode(ids) == "the<|im_end|>"


def test_sentencepiece_without_a_space_in_front(sentencepiece_folder):
    folder, _ = sentencepiece_folder
    write_json(folder, "tokenizer_config.json", {"add_prefix_space": False, "legacy": False})
    tokenizer = load_tokenizer(folder)
    for text in ("the cat", " the cat"):
        ids = tokenizer.encode(text)
        assert "".join(map(tokenizer.piece, ids)) == text
        assert tokenizer.decode(ids) == text


def test_sentencepiece_and_a_table_of_another_model(sentencepiece_folder):
    folder, _ = sentencepiece_folder
    write_json(folder, "tokenizer_config.json", {"added_tokens_decoder": {"5": token("<tool>")}})
    with pytest.raises(CheckpointError, match=r"model: token 5 is .*, in the files beside it '<tool>'"):
        load_tokenizer(folder)


def vocabulary_folder(folder, **config):
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "Ġt", "he", "Ġthe", "12"])}
    write_json(folder, "vocab.json", vocabulary | {"<|endoftext|>": len(vocabulary)})
    (folder / "merges.txt").write_text("#version: 0.2\nĠ t\nh e\nĠt he\n1 2\n")
    write_json(folder, "tokenizer_config.json", config)


@pytest.mark.parametrize("name", ("Qwen2Tokenizer", "GPT2Tokenizer"))
def test_vocabulary_and_merges(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    vocabulary_folder(tmp_path, tokenizer_class=name, eos_token="<|endoftext|>", unk_token="<|endoftext|>")
    theirs = getattr(transformers, name).from_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    for text in ("the the 12 cafe\u0301", " the<|endoftext|>x\r\n\n  y 's 12", "日本 😀", ""):
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_vocabulary_of_an_unknown_class(tmp_path):
    vocabulary_folder(tmp_path, tokenizer_class="BartTokenizer")
    with pytest.raises(CheckpointError, match=r"tokenizer_class 'BartTokenizer' is not known here"):
        load_tokenizer(tmp_path)


def test_merges_that_do_not_fit(tmp_path):
    vocabulary_folder(tmp_path)
    (tmp_path / "merges.txt").write_text("a\n")
    with pytest.raises(CheckpointError, match=r"merges\.txt:1: must be two pieces and a space"):
        load_tokenizer(tmp_path)
    (tmp_path / "merges.txt").write_text("t zz\n")
    with pytest.raises(CheckpointError, match=r"vocab\.json and merges\.txt do not fit together: "):
        load_tokenizer(tmp_path)
