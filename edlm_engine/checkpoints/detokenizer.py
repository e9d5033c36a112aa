"""The text of tokens that come one by one."""

from .tokenizer import Tokenizer

_INCOMPLETE = "\ufffd"  # what a decoder shows for a character whose bytes have not all come
_BYTES = 4  # of the longest character in UTF-8
_LONGEST_WINDOW = 64


class Detokenizer:
    """Gives out the text of a growing sequence piece by piece: joined, what the tokenizer makes of the whole.

    Only the last tokens are decoded, so that the work per token does not grow: a context whose text is out,
    since decoders treat the first token of a text in their own way, and what came behind it. A piece is held
    back while it may yet change: an incomplete character, and a run of byte tokens, of which some decoders
    make text only as a whole. (Of a run longer than 64 bytes that is no UTF-8, the beginning may be out as
    text where the whole would be shown as broken.)
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._shown = ""  # text of the window's tokens that is out
        self._last: tuple[list[int], str] = ([], "")  # both as they were for the last piece

    def push(self, token_ids: list[int]) -> str:
        """The text that is final with these tokens and was not before."""
        window, tokenizer = self._window, self._tokenizer
        window += [token for token in token_ids if token not in tokenizer.special]
        long = len(window) > _LONGEST_WINDOW
        settled = len(window)
        while settled and not long and window[settled - 1] in tokenizer.byte_ids:
            settled -= 1
        text = tokenizer.decode(window[:settled])
        if settled == len(window) and not text.endswith(_INCOMPLETE):
            return self._give(text, settled)
        return self._give_part(text) if long else self._show(text.rstrip(_INCOMPLETE))

    def settle(self) -> str:
        """What is held back though it is whole, because other than text comes next."""
        text = self._tokenizer.decode(self._window)
        return "" if text.endswith(_INCOMPLETE) else self._give(text, len(self._window))

    def flush(self) -> str:
        """The rest, once no more tokens come."""
        return self._give(self._tokenizer.decode(self._window), len(self._window))

    def tokens_behind(self, length: int) -> int:
        """How many tokens of the last piece given out are needless for its first `length` characters."""
        window, shown = self._last
        needed = self._tokenizer.decode(window)[: len(shown) + length]
        counts = range(1, len(window))
        shortest = (n for n in counts if self._tokenizer.decode(window[:n]).startswith(needed))
        return len(window) - next(shortest, len(window))

    def _show(self, text: str) -> str:
        """Give out `text`, and keep the window: of its last tokens not all is in it."""
        piece = text[len(self._shown) :]
        if piece:
            self._last, self._shown = (self._window[:], self._shown), text
        return piece

    def _give(self, text: str, count: int) -> str:
        """Give out `text`, that of the window's first `count` tokens."""
        piece = text[len(self._shown) :]
        given, rest = self._window[:count], self._window[count:]
        self._last = (given, self._shown)
        context = given[-1:]
        if context and context[0] in self._tokenizer.byte_ids:  # no character of its own
            context = next(filter(self._is_text, (given[:n] for n in range(1, _BYTES + 1))), given[:1])
        self._window, self._shown = context + rest, self._tokenizer.decode(context)
        return piece

    def _is_text(self, token_ids: list[int]) -> bool:
        return _INCOMPLETE not in self._tokenizer.decode(token_ids)

    def _give_part(self, text: str) -> str:
        """Give out the beginning of a long incomplete text. A character is four tokens long at most: behind
        one of the last few tokens one ends."""
        for back in range(1, 2 * _BYTES):
            part = self._tokenizer.decode(self._window[:-back])
            if not part.endswith(_INCOMPLETE) or (back >= _BYTES and text.startswith(part)):
                return self._give(part, len(self._window) - back)
        return self._give(text, len(self._window))
