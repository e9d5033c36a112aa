"""Stop strings, found while the text grows."""

from collections import deque
from collections.abc import Sequence


class StopStrings:
    """Looks for several strings at once in a text that comes piece by piece, in constant work per character:
    the automaton of Aho and Corasick (Efficient string matching, CACM 18(6), 1975).

    A state is a prefix of one of the strings, the longest that the text ends with.
    """

    def __init__(self, strings: Sequence[str]):
        self._next: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._found = [0]  # length of the longest string that a text in this state ends with
        for string in strings:
            state = 0
            for character in string:
                state = self._next[state].setdefault(character, len(self._next))
                if state == len(self._next):
                    self._next.append({})
                    self._depth.append(0)
                    self._found.append(0)
            self._found[state] = len(string)
        self._link()
        self._state = 0

    def _link(self):
        """Give every state the one to go on from where the text does not follow its strings."""
        self._back = [0] * len(self._next)
        queue = deque([0])
        while queue:
            state = queue.popleft()
            for character, following in self._next[state].items():
                self._depth[following] = self._depth[state] + 1
                self._back[following] = self._after(self._back[state], character) if state else 0
                self._found[following] = max(self._found[following], self._found[self._back[following]])
                queue.append(following)

    def _after(self, state: int, character: str) -> int:
        while state and character not in self._next[state]:
            state = self._back[state]
        return self._next[state].get(character, 0)

    def feed(self, text: str) -> tuple[int, int] | None:
        """Go on with `text`, up to the end of the first string in it. Where that begins and ends, in
        characters from the beginning of `text` (a negative one lies before it); of several that end together
        the longest counts. None: there is none."""
        for end, character in enumerate(text, 1):
            self._state = self._after(self._state, character)
            if length := self._found[self._state]:
                return end - length, end
        return None

    @property
    def pending(self) -> int:
        """Characters at the end of the text that may be the beginning of one of the strings."""
        return self._depth[self._state]
