"""The gap-free part of a request's output: where it ends, and its text."""

from ..checkpoints.tokenizer import Tokenizer
from ..params import SamplingParams

_INCOMPLETE = "\ufffd"  # what a decoder shows for a character whose bytes have not all come


class Transcript:
    """Takes tokens in output order and knows when the request is over.

    token_ids: everything accepted, the ending id included; finish_reason: None while open.
    """

    def __init__(self, params: SamplingParams, eos_token_ids: tuple[int, ...], tokenizer: Tokenizer | None):
        self._eos = frozenset(() if params.ignore_eos else eos_token_ids)
        self._stop_ids = frozenset(params.stop_token_ids)
        self._stop = params.stop
        self._limit = params.max_new_tokens
        self._tokenizer = tokenizer
        self._cut: int | None = None  # where a stop string begins in the text
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None

    @property
    def ending_ids(self) -> frozenset[int]:
        """The ids that end the request."""
        return self._eos | self._stop_ids

    def extend(self, token_ids: list[int]):
        """Accept tokens up to the one that ends the request, if one does."""
        before = len(self.token_ids)
        for token in token_ids:
            self.token_ids.append(token)
            if token in self._eos:
                self.finish_reason = "eos"
            elif token in self._stop_ids:
                self.finish_reason = "stop"
            elif len(self.token_ids) == self._limit:
                self.finish_reason = "length"
            if self.finish_reason:
                break
        if self._stop and len(self.token_ids) > before:
            self._find_stop_string(before)

    def _find_stop_string(self, before: int):
        """Cut at the first stop string; the ids then end with the token that completed it."""
        if self._first_stop(len(self.token_ids)) < 0:
            return
        count = next(n for n in range(before + 1, len(self.token_ids) + 1) if self._first_stop(n) >= 0)
        self._cut = self._first_stop(count)
        del self.token_ids[count:]
        self.finish_reason = "stop"

    def _first_stop(self, count: int) -> int:
        text = self._decode(count)
        found = [text.find(stop) for stop in self._stop if stop in text]
        return min(found, default=-1)

    def _decode(self, count: int) -> str:
        ids = self.token_ids[:count]
        if count == len(self.token_ids) and ids and ids[-1] in self.ending_ids:
            ids.pop()  # the id that ends a text is no part of it
        return self._tokenizer.decode(ids) if self._tokenizer else ""

    def text(self) -> str:
        """The text so far; while the request is open, without a tail that may yet change or be cut."""
        text = self._decode(len(self.token_ids))
        if self._cut is not None:
            return text[: self._cut]
        if self.finish_reason:
            return text
        text = text.rstrip(_INCOMPLETE)
        return text[: len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that ends `text`."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)
