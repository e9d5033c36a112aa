"""Training documents, and rows of whole documents packed from them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

import numpy as np

from edlm_engine.checkpoints.json_lines import read_json_lines
from edlm_engine.checkpoints.tokenizer import Tokenizer, load_tokenizer

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

    @property
    def checksum(self) -> int:
        checksum = 0
        for part in (self.ids, self.starts, self.prompt_lengths):
            checksum = zlib.crc32(np.ascontiguousarray(part), checksum)
        return checksum


def data_files(data: str | Path) -> list[Path]:
    """The file `data`, or every *.jsonl and *.npy file of the folder, in name order (hidden ones apart).

    Raises FileNotFoundError or ValueError naming it.
    """
    path = Path(data)
    files = [path]
    if path.is_dir():
        files = sorted((*path.glob("*.jsonl"), *path.glob("*.npy")))
        files = [file for file in files if file.is_file() and not file.name.startswith(".")]
    if not files or not all(file.is_file() for file in files):
        raise FileNotFoundError(f"{path}: no training data (a .jsonl or .npy file, or a folder of them)")
    for file in files:
        if file.suffix not in (".jsonl", ".npy"):
            raise ValueError(f"{file}: training data must be .jsonl or .npy")
        with file.open("rb"):  # an unreadable one is found out before the others are encoded
            pass
    return files


def read_documents(
    data: str | Path, tokenizer_folder: str | Path, eos_token_id: int, vocab_size: int
) -> Documents:
    """Read training documents from the files that `data_files` finds.

    *.jsonl: one document a line, {"prompt": str, "completion": str} or {"text": str}, encoded by the
    tokenizer of the checkpoint folder `tokenizer_folder` (or of the folder that holds this file): prompts and
    texts as an engine encodes prompts, completions without special tokens; `eos_token_id` is put after each.
    *.npy: one flat array of token ids, its documents ended by `eos_token_id`. Raises FileNotFoundError or
    ValueError with file and line (or index).
    """
    files = data_files(data)
    tokenizer = None
    if any(file.suffix == ".jsonl" for file in files):
        folder = Path(tokenizer_folder)
        folder = folder if folder.is_dir() else folder.parent
        tokenizer = load_tokenizer(folder)
        if tokenizer is None:
            raise ValueError(f"{folder}: has no tokenizer for .jsonl data; give token ids as .npy")
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for file in files:
        if file.suffix == ".npy":
            parts.append(read_token_array(file, eos_token_id))
        else:
            parts.append(encode_jsonl(file, tokenizer, eos_token_id))
        ids = parts[-1][0]
        if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
            at = int(np.argmax((ids < 0) | (ids >= vocab_size)))
            raise ValueError(
                f"{file}: token id {ids[at]} (token {at}) is outside the vocabulary of {vocab_size}"
            )
    ids, lengths, prompts = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not len(lengths):
        raise ValueError(f"{data}: no documents")
    return Documents(ids.astype(np.int32), np.concatenate(([0], np.cumsum(lengths))), prompts)


def read_token_array(file: Path, eos_token_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        # Unlike np.load this reads nothing but .npy: no archive, no pickle.
        ids = np.lib.format.open_memmap(file, mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{file}: is no .npy file: {error}") from error
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(f"{file}: expected a flat array of integers, found shape {ids.shape} of {ids.dtype}")
    ends = np.flatnonzero(ids == eos_token_id) + 1
    if len(ids) and (not len(ends) or ends[-1] != len(ids)):
        ends = np.append(ends, len(ids))
    return np.asarray(ids), np.diff(ends, prepend=0), np.zeros(len(ends), np.int32)


def encode_jsonl(
    file: Path, tokenizer: Tokenizer, eos_token_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    documents: list[np.ndarray] = []
    prompt_lengths = []
    for number, record in read_json_lines(file):
        try:
            prompt, completion = texts_of(record)
            head = tokenizer.encode(prompt)
            tail = [] if completion is None else tokenizer.encode(completion, special=False)
        except ValueError as error:
            raise ValueError(f"{file}:{number}: {error}") from error
        ids = head + tail
        if completion is not None or ids[-1:] != [eos_token_id]:  # some tokenizers end texts themselves
            ids.append(eos_token_id)
        documents.append(np.array(ids, np.int32))
        prompt_lengths.append(0 if completion is None else len(head))
    ids = np.concatenate(documents) if documents else np.empty(0, np.int32)
    return ids, np.array([len(d) for d in documents], np.int64), np.array(prompt_lengths, np.int32)


def texts_of(record: object) -> tuple[str, str | None]:
    """(prompt, completion) of a line's value; (text, None) of a text without a prompt."""
    if isinstance(record, dict):
        text, prompt, completion = (record.get(key) for key in ("text", "prompt", "completion"))
        if isinstance(text, str):
            return text, None
        if text is None and isinstance(prompt, str) and isinstance(completion, str):
            return prompt, completion
    shown = repr(record)
    shown = shown if len(shown) <= 60 else shown[:60] + "…"
    raise ValueError(f'expected {{"prompt": text, "completion": text}} or {{"text": text}}, found {shown}')


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
