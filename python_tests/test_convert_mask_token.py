"""Which token is the mask: one that the base has, or a new one, in every kind of tokenizer."""

import json
from types import SimpleNamespace

import pytest
import sentencepiece
import tokenizers
from convert_tools import VOCABULARY, write_tokenizer

from edlm_engine import CheckpointError
from edlm_engine.convert.mask_token import MaskToken, add_to_tokenizer, choose_mask, known_tokens

LETTERS = {letter: i for i, letter in enumerate("abcdefghij")}
FIVE = {letter: i for i, letter in enumerate("abcde")}


def checkpoint(folder, vocab_size=10, mask_token_id=None):
    """What `choose_mask` needs of one."""
    model, decoding = SimpleNamespace(vocab_size=vocab_size), SimpleNamespace(mask_token_id=mask_token_id)
    return SimpleNamespace(folder=folder, model=model, decoding=decoding)


def write(folder, **files):
    """Writes values to files: tokenizer_config={} becomes tokenizer_config.json."""
    folder.mkdir(exist_ok=True)
    if "vocab" in files:
        (folder / "merges.txt").write_text("#version: 0.2\n")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_tokenizer(tmp_path / "tokenizer")


def test_what_is_asked_for_comes_first_then_the_configs_then_the_tokenizers(folder):
    assert choose_mask(checkpoint(folder, mask_token_id=8), 9) == MaskToken(9)
    assert choose_mask(checkpoint(folder, mask_token_id=8), None) == MaskToken(8)
    assert choose_mask(checkpoint(folder, mask_token_id=8), 0) == MaskToken(0)
    assert choose_mask(checkpoint(folder), None) == MaskToken(1, "<|mask|>")


@pytest.mark.parametrize("wrong", [-1, 10, "1", 1.0, True])
def test_ids_outside_of_the_vocabulary_are_refused(folder, wrong):
    with pytest.raises(ValueError, match=f"mask_token_id {wrong!r} is outside the vocabulary of 10"):
        choose_mask(checkpoint(folder), wrong)
    with pytest.raises(ValueError, match="is outside the vocabulary of 10"):
        choose_mask(checkpoint(folder, mask_token_id=wrong), None)


@pytest.mark.parametrize("token", ["c", {"content": "c", "lstrip": False}])
@pytest.mark.parametrize("file", ["tokenizer_config", "special_tokens_map"])
def test_the_tokenizer_may_call_it_something_else(folder, file, token):
    write(folder, **{file: {"mask_token": token}})
    assert choose_mask(checkpoint(folder), None) == MaskToken(4, "c")


@pytest.mark.parametrize("nothing", [None, ""])
def test_a_config_that_names_none_leaves_the_usual_name(folder, nothing):
    write(folder, tokenizer_config={"mask_token": nothing})
    assert choose_mask(checkpoint(folder), None) == MaskToken(1, "<|mask|>")


def sentencepiece_model(folder):
    """Letters as a sentencepiece model: <unk>, <s>, </s>, then pieces."""
    folder.mkdir(exist_ok=True)
    text = folder / "text.txt"
    text.write_text("\n".join(["abc bca cab " * 3] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=10, hard_vocab_limit=False,
        minloglevel=2, user_defined_symbols=["<m>"],
    )  # fmt: skip
    text.unlink()
    (folder / "tokenizer.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def test_tokens_are_found_in_every_file_that_gives_ids(tmp_path):
    processor = sentencepiece_model(tmp_path / "sp")
    write(tmp_path / "sp", tokenizer_config={"mask_token": "<m>"})
    assert choose_mask(checkpoint(tmp_path / "sp"), None) == MaskToken(processor.piece_to_id("<m>"), "<m>")
    write(tmp_path / "vocab", vocab=LETTERS | {"h": 9, "<|mask|>": 7})
    assert choose_mask(checkpoint(tmp_path / "vocab"), None) == MaskToken(7, "<|mask|>")
    write(tmp_path / "vocab", vocab=FIVE, added_tokens={"<|mask|>": 5})
    assert choose_mask(checkpoint(tmp_path / "vocab"), None) == MaskToken(5, "<|mask|>")
    decoder = {"5": {"content": "<x>"}, "6": {"content": "<|mask|>", "special": True}}
    write(tmp_path / "vocab", tokenizer_config={"added_tokens_decoder": decoder})
    assert choose_mask(checkpoint(tmp_path / "vocab"), None) == MaskToken(6, "<|mask|>")


def test_broken_tokenizer_files_are_named(tmp_path):
    for file, content in (("tokenizer.json", "{}"), ("tokenizer.model", "no model"), ("vocab.json", "[]")):
        folder = write(tmp_path / file, vocab={})
        (folder / file).write_text(content)
        with pytest.raises(CheckpointError, match=file):
            choose_mask(checkpoint(folder), None)


@pytest.mark.parametrize(("rows", "named"), [(10, None), (12, None), (11, "<fill>")])
def test_a_new_one_is_the_tokenizers_next_id(tmp_path, rows, named):
    """Whether the embedding has a row for it is the embedding's affair."""
    folder = write_tokenizer(tmp_path / "t", LETTERS)
    if named:
        write(folder, tokenizer_config={"mask_token": named})
    assert choose_mask(checkpoint(folder, rows), None) == MaskToken(10, named or "<|mask|>", new=True)


def test_a_token_without_a_row_is_new(tmp_path):
    folder = write_tokenizer(tmp_path / "t", LETTERS | {"<|mask|>": 10})
    assert choose_mask(checkpoint(folder, 10), None) == MaskToken(10, "<|mask|>", new=True)
    assert choose_mask(checkpoint(folder, 11), None) == MaskToken(10, "<|mask|>")
    folder = write_tokenizer(tmp_path / "first", {"<|mask|>": 0, "a": 1})
    assert choose_mask(checkpoint(folder, 2), None) == MaskToken(0, "<|mask|>")


def test_without_a_tokenizer_a_row_is_added(tmp_path):
    assert choose_mask(checkpoint(tmp_path, 12), None) == MaskToken(12, None, new=True)


def test_ids_that_cannot_be_are_refused(tmp_path):
    folder = write(tmp_path / "t", vocab={"a": 0, "b": 4_000_000_000})
    with pytest.raises(
        ValueError, match="would get the id 4000000001, far outside the vocabulary of 10; pass"
    ):
        choose_mask(checkpoint(folder), None)
    folder = write_tokenizer(tmp_path / "u", {"a": 0, "b": 2})
    with pytest.raises(ValueError, match=r"its token ids have gaps, .* with the id 3; pass mask_token_id"):
        choose_mask(checkpoint(folder), None)


def test_it_is_added_to_tokenizer_json_and_nothing_else_changes(tmp_path):
    folder = write_tokenizer(tmp_path / "t", LETTERS)
    before = json.loads((folder / "tokenizer.json").read_text())
    write(folder, tokenizer_config={"eos_token": "a"})
    mask = choose_mask(checkpoint(folder), None)
    add_to_tokenizer(folder, mask)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.token_to_id("<|mask|>") == 10 and tokenizer.encode("a <|mask|> b").ids == [0, 10, 1]
    assert tokenizer.decode([0, 10, 1]) == "a b"  # it is special
    after = json.loads((folder / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    assert after["added_tokens"] == [{"id": 10, "content": "<|mask|>", **flags, "special": True}]
    after.pop("added_tokens")
    assert before.pop("added_tokens") == [] and after == before
    config = (folder / "tokenizer_config.json").read_text()
    assert config == '{\n  "eos_token": "a",\n  "mask_token": "<|mask|>"\n}\n'
    assert not (folder / "added_tokens.json").exists()
    assert choose_mask(checkpoint(folder, 11), None) == MaskToken(10, "<|mask|>")
    add_to_tokenizer(folder, mask)  # once more changes nothing
    assert json.loads((folder / "tokenizer.json").read_text())["added_tokens"][-1]["id"] == 10
    assert len(json.loads((folder / "tokenizer.json").read_text())["added_tokens"]) == 1


def test_it_is_listed_where_the_config_lists_tokens(folder):
    decoder = {"0": {"content": "<|endoftext|>", "special": True}}
    write(folder, tokenizer_config={"added_tokens_decoder": decoder, "mask_token": "<new>"})
    add_to_tokenizer(folder, choose_mask(checkpoint(folder), None))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["added_tokens_decoder"].keys() == {"0", "10"}
    assert config["added_tokens_decoder"]["10"]["content"] == config["mask_token"] == "<new>"
    assert config["added_tokens_decoder"]["10"]["special"] is True


def test_behind_tokens_that_only_the_config_knows(folder):
    """tokenizer.json would give it an id that one of those has."""
    write(
        folder, tokenizer_config={"mask_token": "<new>", "added_tokens_decoder": {"10": {"content": "<x>"}}}
    )
    mask = choose_mask(checkpoint(folder, 12), None)
    assert mask == MaskToken(11, "<new>", new=True)
    before = (folder / "tokenizer.json").read_bytes()
    add_to_tokenizer(folder, mask)
    assert (folder / "tokenizer.json").read_bytes() == before
    assert known_tokens(folder)["<new>"] == 11 and known_tokens(folder)["<x>"] == 10


@pytest.mark.parametrize("known", [{}, {"<x>": 10}])
def test_other_tokenizers_take_it_from_added_tokens(tmp_path, known):
    folder = write(tmp_path / "t", vocab=LETTERS, **({"added_tokens": known} if known else {}))
    mask = choose_mask(checkpoint(folder, 16), None)
    assert mask == MaskToken(10 + len(known), "<|mask|>", new=True)
    add_to_tokenizer(folder, mask)
    assert json.loads((folder / "added_tokens.json").read_text()) == known | {"<|mask|>": mask.id}
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {"mask_token": "<|mask|>"}
    assert json.loads((folder / "vocab.json").read_text()) == LETTERS


def test_transformers_knows_it_too(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = write_tokenizer(tmp_path / "t", LETTERS)
    write(folder, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast"})
    add_to_tokenizer(folder, choose_mask(checkpoint(folder), None))
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    assert (tokenizer.mask_token, tokenizer.mask_token_id, len(tokenizer)) == ("<|mask|>", 10, 11)
    assert len(VOCABULARY) == 10
