"""Training documents, and rows of whole documents packed from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

WAITING = 32  # documents looked through for one that fits the rest of a row


@dataclass(frozen=True)
class Documents:
    """Token ids of all documents one after the other, int32 (tokens,); where each begins, int64 (documents +
    1,); and how many of each one's first tokens are prompt, int32 (documents,)."""

    ids: np.ndarray
    starts: np.ndarray
    prompt_lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.prompt_lengths)


def read_documents(
    data: str | Path, tokenizer_file: str | Path, eos_token_id: int, vocab_size: int
) -> Documents:
    """Read training documents from a file, or from every *.jsonl and *.npy file of a folder, in name order.

    *.jsonl: one document a line, {"prompt": str, "completion": str} (encoded apart, as an engine does) or
    {"text": str}; `eos_token_id` is put after each. *.npy: one flat array of token ids, its documents ended
    by `eos_token_id`. Raises FileNotFoundError or ValueError with file and line (or index).
    """
    path = Path(data)
    files = sorted((*path.glob("*.jsonl"), *path.glob("*.npy"))) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise FileNotFoundError(f"{path}: no training data (a .jsonl or .npy file, or a folder of them)")
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for file in files:
        if file.suffix == ".npy":
            parts.append(read_token_array(file, eos_token_id))
        elif file.suffix == ".jsonl":
            parts.append(encode_jsonl(file, Tokenizer.from_file(str(tokenizer_file)), eos_token_id))
        else:
            raise ValueError(f"{file}: training data must be .jsonl or .npy")
        ids = parts[-1][0]
        if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
            at = int(np.argmax((ids < 0) | (ids >= vocab_size)))
            raise ValueError(
                f"{file}: token id {ids[at]} (token {at}) is outside the vocabulary of {vocab_size}"
            )
    ids, lengths, prompts = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not len(lengths):
        raise ValueError(f"{path}: no documents")
    return Documents(ids.astype(np.int32), np.concatenate(([0], np.cumsum(lengths))), prompts)


def read_token_array(file: Path, eos_token_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = np.load(file, mmap_mode="r")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"{file}: expected a flat array of integers, found shape {ids.shape} of {ids.dtype}")
    ends = np.flatnonzero(ids == eos_token_id) + 1
    if len(ids) and (not len(ends) or ends[-1] != len(ids)):
        ends = np.append(ends, len(ids))
    return np.asarray(ids), np.diff(ends, prepend=0), np.zeros(len(ends), np.int32)


def encode_jsonl(
    file: Path, tokenizer: Tokenizer, eos_token_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    prompts, completions = [], []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            prompt, completion = (
                ("", record["text"]) if "text" in record else (record["prompt"], record["completion"])
            )
            prompts.append(prompt + "")
            completions.append(completion + "")
        except (json.JSONDecodeError, KeyError, TypeError):
            want = '{"prompt": text, "completion": text} or {"text": text}'
            raise ValueError(f"{file}, line {number}: expected {want}, found {line[:60]!r}") from None
    heads = [encoding.ids for encoding in tokenizer.encode_batch(prompts, add_special_tokens=False)]
    tails = [encoding.ids for encoding in tokenizer.encode_batch(completions, add_special_tokens=False)]
    documents = [head + tail + [eos_token_id] for head, tail in zip(heads, tails, strict=True)]
    ids = np.fromiter((i for document in documents for i in document), np.int32)
    return ids, np.array([len(d) for d in documents], np.int64), np.array([len(h) for h in heads], np.int32)


@dataclass(frozen=True)
class Rows:
    """Packed rows, each array (rows, length): token ids int32, loss weights fp32, and bool `starts`, True at
    the first token of every completion that follows a prompt."""

    ids: np.ndarray
    weights: np.ndarray
    starts: np.ndarray


def segments(documents: Documents, order: np.ndarray, length: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, prompt end) of every document in `order`; one longer than a row is cut into rows."""
    for index in order:
        start, end = int(documents.starts[index]), int(documents.starts[index + 1])
        prompt_end = start + int(documents.prompt_lengths[index])
        for piece in range(start, end, length):
            yield piece, min(piece + length, end), prompt_end


def pack(documents: Documents, length: int, seed: int, epoch: int, prompt_weight: float) -> Rows:
    """All documents of one epoch in random order, packed into rows of exactly `length` tokens.

    Every row begins with the beginning of a document (or of a row-long piece of one); each next document is
    the first of those waiting that fits; when none fits, one is cut to fill the row. Prompt tokens weigh
    `prompt_weight`, others 1. The incomplete last row is dropped, unless it is the only one: then it is
    repeated to the full length.
    """
    order = np.random.default_rng((seed, epoch)).permutation(len(documents))
    source = segments(documents, order, length)
    waiting: list[tuple[int, int, int]] = []
    full: list[Rows] = []
    row: list[Rows] = []
    left = length
    while waiting := [*waiting, *islice(source, WAITING - len(waiting))]:
        at = next((i for i, (start, end, _) in enumerate(waiting) if end - start <= left), 0)
        start, end, prompt_end = waiting.pop(at)
        row.append(piece(documents, start, min(end, start + left), prompt_end, prompt_weight))
        left -= len(row[-1].ids)
        if not left:
            full.append(joined(row, np.concatenate))
            row, left = [], length
    if full:
        return joined(full, np.stack)
    return joined([joined(row, np.concatenate)], lambda parts: np.resize(parts[0], (1, length)))


def piece(documents: Documents, start: int, end: int, prompt_end: int, prompt_weight: float) -> Rows:
    at = np.arange(start, end)
    weights = np.where(at < prompt_end, prompt_weight, 1.0).astype(np.float32)
    return Rows(documents.ids[start:end], weights, (at == prompt_end) & (at > start))


def joined(parts: list[Rows], join) -> Rows:
    return Rows(*(join([getattr(part, field.name) for part in parts]) for field in fields(Rows)))


class Batches:
    """Batch number `step` as a pure function of (documents, seed, step), so that a resumed run sees the
    same."""

    def __init__(self, documents: Documents, length: int, rows: int, seed: int, prompt_weight: float):
        self.documents, self.length, self.rows = documents, length, rows
        self.seed, self.prompt_weight = seed, prompt_weight
        self.load(0)
        self.per_epoch = max(1, len(self.packed.ids) // rows)

    def __call__(self, step: int) -> Rows:
        epoch, batch = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            self.load(epoch)
        pick = np.arange(batch * self.rows, (batch + 1) * self.rows) % len(self.packed.ids)
        return joined([self.packed], lambda parts: parts[0][pick])

    def load(self, epoch: int) -> None:
        self.packed = pack(self.documents, self.length, self.seed, epoch, self.prompt_weight)
        self.epoch = epoch
