"""The gap-free part of a request's output: where it ends, and its text."""

from ..checkpoints.detokenizer import Detokenizer
from ..checkpoints.tokenizer import Tokenizer
from ..params import SamplingParams
from .stop_strings import StopStrings


class Transcript:
    """Takes tokens in output order and knows when the request is over.

    token_ids: everything accepted, the ending id included; finish_reason: None while open. pieces: the text
    that is final, as it came; taken: how many of them take() has given out.
    """

    def __init__(self, params: SamplingParams, eos_token_ids: tuple[int, ...], tokenizer: Tokenizer | None):
        self._eos = frozenset(() if params.ignore_eos else eos_token_ids)
        self._stop_ids = frozenset(params.stop_token_ids)
        self.ending_ids = self._eos | self._stop_ids
        self._limit = params.max_new_tokens
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer) if tokenizer else None
        self._stop = StopStrings(params.stop) if params.stop and tokenizer else None
        # Text that may belong to a stop string, in parts; False: the name of a special token.
        self._held: list[tuple[str, bool]] = []
        self._decoded = 0  # tokens whose text has been asked for
        self.pieces: list[str] = []
        self.taken = 0
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None

    def extend(self, token_ids: list[int]):
        """Accept tokens up to the one that ends the request, if one does."""
        for token in token_ids:
            self.token_ids.append(token)
            if token in self._eos:
                self.finish_reason = "eos"
            elif token in self._stop_ids:
                self.finish_reason = "stop"
            elif len(self.token_ids) == self._limit:
                self.finish_reason = "length"
            if self._stop:
                self._search(token)
            if self.finish_reason:
                break

    def text(self) -> str:
        """The text so far; while the request is open, without a tail that may yet change or be cut."""
        self._decode()
        return "".join(self.pieces)

    def take(self) -> str:
        """What has been added to the text since the last call."""
        self._decode()
        begin, self.taken = self.taken, len(self.pieces)
        return "".join(self.pieces[begin:])

    def _decode(self):
        """Bring the text up to date; where there are stop strings it is."""
        if not self._tokenizer or self._stop or self._decoded == len(self.token_ids):
            return
        new = [token for token in self.token_ids[self._decoded :] if token not in self.ending_ids]
        if self.finish_reason and not self._decoded:  # nobody asked on the way
            self._give(self._tokenizer.decode(new))
        else:
            self._give(self._detokenizer.push(new))
            if self.finish_reason:
                self._give(self._detokenizer.flush())
        self._decoded = len(self.token_ids)

    def _give(self, text: str):
        if text:
            self.pieces.append(text)

    def _search(self, token: int):
        """Go on with the search for stop strings, which may also name special tokens."""
        name = self._tokenizer.special.get(token)
        if token not in self.ending_ids:
            text = self._detokenizer.push([token]) if name is None else self._detokenizer.settle()
            if self._look(text, True) or (name and self._look(name, False)):
                return
        if self.finish_reason and not self._look(self._detokenizer.flush(), True):
            self._release(0)

    def _look(self, text: str, visible: bool) -> bool:
        """Take a piece of text; whether a stop string ends in it, and with it the request."""
        self._held.append((text, visible))
        found = self._stop.feed(text)
        if found is None:
            self._release(self._stop.pending)
            return False
        begin, end = found
        self._release(len(text) - begin)
        self._held.clear()
        self.finish_reason = "stop"
        if visible:
            self._drop(self._detokenizer.tokens_behind(end))
        return True

    def _release(self, keep: int):
        """Make the held text final but for its last `keep` characters."""
        left = sum(len(part) for part, _ in self._held) - keep
        while self._held and left > 0:
            part, visible = self._held.pop(0)
            if visible:
                self._give(part[:left])
            if left < len(part):
                self._held.insert(0, (part[left:], visible))
            left -= len(part)

    def _drop(self, count: int):
        """Take back `count` tokens of text that came with the one that completed a stop string, and what is
        no text behind them."""
        while count or self.token_ids[-1] in self.ending_ids:
            token = self.token_ids.pop()
            count -= not (token in self.ending_ids or token in self._tokenizer.special)
