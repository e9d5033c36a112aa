"""Documents from files, and the rows packed from them."""

import json

import numpy as np
import pytest
import tokenizers
from convert_tools import write_tokenizer

from edlm_engine.convert.data import (
    WAITING,
    Batches,
    Documents,
    data_files,
    pack,
    read_documents,
)

EOS = 0


@pytest.fixture
def folder(tmp_path):
    return write_tokenizer(tmp_path / "tokenizer")


def documents_of(found):
    return [found.ids[a:b].tolist() for a, b in zip(found.starts[:-1], found.starts[1:], strict=True)]


@pytest.fixture
def read(tmp_path, folder):
    """Reads the given lines (values, or text as it is) as a .jsonl file."""

    def read(*lines):
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        (tmp_path / "x.jsonl").write_text(text, encoding="utf-8")
        return read_documents(tmp_path / "x.jsonl", folder, EOS, 10)

    return read


def test_documents_end_with_eos_and_know_their_prompts(read):
    found = read(
        {"prompt": "a b c", "completion": "d e"},
        {"text": "f"},
        {"prompt": "", "completion": "g"},
        {"text": ""},
    )
    assert documents_of(found) == [[2, 3, 4, 5, 6, 0], [7, 0], [8, 0], [0]]
    assert found.prompt_lengths.tolist() == [3, 0, 0, 0] and len(found) == 4
    assert found.ids.dtype == np.int32


def test_lines_end_at_line_feeds_alone(read):
    found = read("\ufeff" + '{"text": "a\u2028b"}\r', "", '{"text": "c\u0085d"}', " ", "")
    assert documents_of(found) == [[2, 3, 0], [4, 5, 0]]


@pytest.mark.parametrize(
    "line",
    ["[1]", '"text"', "{}", '{"prompt": "a"}', '{"completion": "a"}', '{"text": 5}', '{"text": ["a"]}',
     '{"prompt": "a", "completion": null}', '{"text": "\\ud800"}', "nonsense", '{"text": "a"'],
)  # fmt: skip
def test_a_line_of_another_form_is_named(read, line):
    with pytest.raises(ValueError, match=r"x\.jsonl:3: "):
        read({"text": "a"}, "", line)


def test_a_long_line_is_not_repeated_whole(read):
    with pytest.raises(ValueError) as caught:
        read({"texts": "a" * 10_000})
    assert len(str(caught.value)) < 400
    for letters, shown in ((56, "['" + "a" * 56 + "']"), (57, "['" + "a" * 57 + "'…")):
        with pytest.raises(ValueError) as caught:
            read(["a" * letters])
        assert str(caught.value).endswith(f"found {shown}")


def test_tokens_outside_of_the_vocabulary_are_named(tmp_path, folder, read):
    np.save(tmp_path / "ids.npy", np.array([2, 3, 10, 0], np.uint16))
    with pytest.raises(
        ValueError, match=r"ids\.npy: token id 10 \(token 2\) is outside the vocabulary of 10"
    ):
        read_documents(tmp_path / "ids.npy", folder, EOS, 10)
    np.save(tmp_path / "ids.npy", np.array([2, 0, 9, -1], np.int64))
    with pytest.raises(ValueError, match=r"token id -1 \(token 3\)"):
        read_documents(tmp_path / "ids.npy", folder, EOS, 10)
    read({"text": "h"})
    with pytest.raises(ValueError, match=r"x\.jsonl: token id 9 \(token 0\) is outside the vocabulary of 9"):
        read_documents(tmp_path / "x.jsonl", folder, EOS, 9)


def test_settings_for_truncation_and_padding_do_not_act(tmp_path, folder):
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(pad_id=5, length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    lines = [{"text": "a"}, {"text": "b " * 20}, {"prompt": "c " * 9, "completion": "d"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for given in (folder, folder / "tokenizer.json"):
        found = read_documents(tmp_path / "x.jsonl", given, EOS, 10)
        assert documents_of(found) == [[2, 0], [3] * 20 + [0], [4] * 9 + [5, 0]]
        assert found.prompt_lengths.tolist() == [0, 0, 9]


@pytest.mark.parametrize(
    ("frame", "documents", "prompts"),
    [
        ("h $A", [[9, 2, 2, 0], [9, 2, 3, 0], [9, 0]], [0, 2, 1]),  # as a bos
        ("h $A g", [[9, 2, 2, 8, 0], [9, 2, 8, 3, 0], [9, 8, 0]], [0, 3, 2]),
        ("$A <|endoftext|>", [[2, 2, 0], [2, 0, 3, 0], [0, 0]], [0, 2, 1]),  # one eos ends a text, not two
    ],
)
def test_prompts_are_encoded_as_an_engine_does_and_completions_plainly(
    tmp_path, folder, frame, documents, prompts
):
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    specials = [(word, tokenizer.token_to_id(word)) for word in frame.split() if word != "$A"]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single=frame, special_tokens=specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    lines = [{"text": "a a"}, {"prompt": "a", "completion": "b"}, {"prompt": "", "completion": ""}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = read_documents(tmp_path / "x.jsonl", folder, EOS, 10)
    assert documents_of(found) == documents and found.prompt_lengths.tolist() == prompts


def test_flat_arrays_are_cut_behind_every_eos_and_keep_their_tail(tmp_path, folder):
    for ids, documents in (
        ([2, 3, 0, 4, 0], [[2, 3, 0], [4, 0]]),
        ([2, 3, 0, 4, 5], [[2, 3, 0], [4, 5]]),
        ([0, 0, 4], [[0], [0], [4]]),
        ([2], [[2]]),
    ):
        np.save(tmp_path / "ids.npy", np.array(ids, np.uint16))
        found = read_documents(tmp_path / "ids.npy", tmp_path / "no tokenizer needed", EOS, 10)
        assert documents_of(found) == documents and not found.prompt_lengths.any()


def test_folders_give_all_their_files_in_name_order(tmp_path, folder):
    data = tmp_path / "data"
    data.mkdir()
    np.save(data / "b.npy", np.array([3, 0]))
    (data / "c.jsonl").write_text('{"text": "c"}')
    (data / "a.jsonl").write_text('{"prompt": "a", "completion": "h"}')
    (data / "empty.jsonl").write_text("\n")
    (data / "._c.jsonl").write_bytes(b"\x00\x05\x16\x07")  # what macOS leaves on foreign disks
    (data / "notes.txt").write_text("not data")
    (data / "folder.npy").mkdir()
    found = read_documents(data, folder, EOS, 10)
    assert documents_of(found) == [[2, 9, 0], [3, 0], [4, 0]] and found.prompt_lengths.tolist() == [1, 0, 0]


def test_unreadable_data_is_named(tmp_path, folder):
    (tmp_path / "none").mkdir()
    for missing in (tmp_path / "none", tmp_path / "x.npy"):
        with pytest.raises(FileNotFoundError, match=f"{missing.name}: no training data"):
            data_files(missing)
    (tmp_path / "x.txt").write_text("a")
    with pytest.raises(ValueError, match=r"x\.txt: training data must be \.jsonl or \.npy"):
        data_files(tmp_path / "x.txt")
    np.savez(tmp_path / "archive.npz", ids=np.array([2, 0]))
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "whole.npy", np.arange(8))
    contents = {
        "archive": (tmp_path / "archive.npz").read_bytes(), "nothing": b"", "text": b"2 3 0",
        "objects": (tmp_path / "objects.npy").read_bytes(), "cut": (tmp_path / "whole.npy").read_bytes()[:-8],
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / f"{name}.npy").write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.npy: is no \.npy file"):
            read_documents(tmp_path / f"{name}.npy", folder, EOS, 10)
    for array in (np.array([[2, 0]]), np.array([2.0, 0.0])):
        np.save(tmp_path / "odd.npy", array)
        with pytest.raises(ValueError, match=r"odd\.npy: expected a flat array of integers, found shape"):
            read_documents(tmp_path / "odd.npy", folder, EOS, 10)
    (tmp_path / "blank.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match=r"blank\.jsonl: no documents"):
        read_documents(tmp_path / "blank.jsonl", folder, EOS, 10)
    with pytest.raises(ValueError, match=r"none: has no tokenizer for \.jsonl data"):
        read_documents(tmp_path / "blank.jsonl", tmp_path / "none", EOS, 10)


def test_the_checksum_is_of_tokens_ends_and_prompts():
    def documents(ids=(1, 2, 3), starts=(0, 2, 3), prompts=(0, 1)):
        return Documents(np.array(ids, np.int32), np.array(starts), np.array(prompts, np.int32))

    others = (documents(ids=(1, 2, 4)), documents(starts=(0, 1, 3)), documents(prompts=(1, 1)))
    assert documents().checksum == documents().checksum
    assert len({documents().checksum, *(other.checksum for other in others)}) == 4


def numbered(*lengths, prompts=None):
    """Documents of these lengths whose tokens are 0, 1, 2, …"""
    starts = np.concatenate(([0], np.cumsum(lengths)))
    prompts = np.zeros(len(lengths), np.int32) if prompts is None else np.array(prompts, np.int32)
    return Documents(np.arange(starts[-1], dtype=np.int32), starts, prompts)


def in_order(monkeypatch):
    """Documents in the order in which they are."""

    class Order:
        def __init__(self, seed):
            pass

        def permutation(self, count):
            return np.arange(count)

    monkeypatch.setattr(np.random, "default_rng", Order)


def test_packed_rows_are_whole_documents_with_completions_marked():
    documents = numbered(7, 5, 6, 12, prompts=[3, 2, 0, 5])
    rows = pack(documents, 10, seed=0, epoch=0, prompt_weight=0.25)
    assert rows.ids.shape == rows.weights.shape == rows.starts.shape and rows.ids.shape in ((2, 10), (3, 10))
    begins, completions = {0, 7, 12, 18, 28}, {3, 9, 23}  # the document of twelve tokens is cut into rows
    assert set(rows.ids[:, 0].tolist()) <= begins
    assert set(rows.ids[rows.starts].tolist()) <= completions
    for row in range(len(rows.ids)):
        for at, token in enumerate(rows.ids[row].tolist()):
            in_prompt = token < 3 or 7 <= token < 9 or 18 <= token < 23
            assert rows.weights[row, at] == (0.25 if in_prompt else 1.0)
            assert at == 0 or token == rows.ids[row, at - 1] + 1 or token in begins
    assert (pack(documents, 10, 0, 0, 0.25).ids == rows.ids).all()
    assert any((pack(documents, 10, 0, epoch, 0.25).ids != rows.ids).any() for epoch in range(1, 6))
    assert any((pack(documents, 10, seed, 0, 0.25).ids != rows.ids).any() for seed in range(1, 6))


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ((6, 4), [[*range(10)]]),  # one that just fits is taken
        ((6, 5, 4, 5), [[0, 1, 2, 3, 4, 5, 11, 12, 13, 14], [6, 7, 8, 9, 10, 15, 16, 17, 18, 19]]),
        ((6, 5), [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]),  # none fits: cut; its rest is dropped
        ((10, 3), [[*range(10)]]),  # the incomplete last row is dropped
        ((25,), [[*range(10)], [*range(10, 20)]]),  # longer than a row: cut into rows
        ((3,), [[0, 1, 2, 0, 1, 2, 0, 1, 2, 0]]),  # too little for a row: repeated
    ],
)
def test_documents_go_into_rows(monkeypatch, lengths, rows):
    in_order(monkeypatch)
    assert pack(numbered(*lengths), 10, 0, 0, 1.0).ids.tolist() == rows


def test_so_many_documents_are_looked_through_for_one_that_fits(monkeypatch):
    in_order(monkeypatch)
    too_long = [5] * (WAITING - 1)
    fits = 6 + sum(too_long)
    # Behind the first one, which leaves four places, WAITING documents wait; the last of them fits.
    assert pack(numbered(6, *too_long, 4), 10, 0, 0, 1.0).ids[0, 6] == fits
    assert pack(numbered(6, *too_long, 5, 4), 10, 0, 0, 1.0).ids[0, 6] == 6


def test_only_completions_behind_a_prompt_are_marked(monkeypatch):
    in_order(monkeypatch)
    rows = pack(numbered(4, 3, 3, prompts=[2, 0, 3]), 10, 0, 0, 0.5)
    assert rows.starts.tolist() == [[False, False, True] + [False] * 7]
    assert rows.weights.tolist() == [[0.5, 0.5, *[1.0] * 5, *[0.5] * 3]]


def test_batches_depend_on_the_step_alone():
    documents = numbered(*[10] * 10)
    forward, again = (Batches(documents, 20, 2, seed=3, prompt_weight=1.0) for _ in range(2))
    seen = [forward(step).ids for step in range(6)]
    assert all((again(step).ids == seen[step]).all() for step in (5, 0, 3))


def test_an_epoch_has_every_row_once_and_the_next_one_another_order():
    documents = numbered(*[10] * 40)
    batches = Batches(documents, 20, 5, seed=3, prompt_weight=1.0)
    epochs = [np.concatenate([batches(step).ids for step in range(start, start + 4)]) for start in (0, 4, 8)]
    assert all(sorted(epoch.flatten().tolist()) == list(range(400)) for epoch in epochs)
    assert not any((epochs[a] == epochs[b]).all() for a, b in ((0, 1), (1, 2), (0, 2)))
    other = Batches(documents, 20, 5, seed=4, prompt_weight=1.0)
    assert (other(0).ids != batches(0).ids).any()


def test_a_batch_of_more_rows_than_there_are_repeats_them():
    batches = Batches(numbered(10, 10), 20, 3, seed=0, prompt_weight=0.5)
    ids = batches(0).ids
    assert ids.shape == (3, 20) and (ids == ids[0]).all() and batches.per_epoch == 1
    weighed = Batches(numbered(4, prompts=[2]), 4, 1, seed=0, prompt_weight=0.5)
    assert weighed(0).weights.tolist() == [[0.5, 0.5, 1.0, 1.0]]
