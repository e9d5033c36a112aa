"""A block turning from masks into text, on the terminal."""

import sys
import time
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..checkpoints.detokenizer import Detokenizer
from ..checkpoints.tokenizer import Tokenizer
from ..outputs import Chunk, Generation
from ..printing import can_show, is_terminal, printable

_CONTEXT = 4  # tokens before a block that its first character may begin in
# confidence at commit -> style: the surer, the cooler; without colours, the less sure, the louder
_COLOURS = ((0.99, "bright_cyan"), (0.9, "bright_green"), (0.6, "yellow"), (0.0, "bright_red"))
_LOUDNESS = ((0.9, ""), (0.6, "underline"), (0.0, "bold underline"))


class Look:
    """What a console can show.

    mask, at_least, line_end: characters, or what stands for them in ASCII. levels: (lowest confidence, style)
    from sure to unsure.
    """

    def __init__(self, console: Console):
        rich = can_show("▒≥↵", console.file)
        self.mask, self.at_least, self.line_end = ("▒▒", "≥", "↵") if rich else ("__", ">=", "\\n")
        self.levels = _LOUDNESS if console.no_color else _COLOURS
        self._file = console.file

    def style(self, confidence: float) -> str:
        return next(style for low, style in self.levels if confidence >= low)

    def text(self, text: str) -> str:
        return printable(text, self._file)

    def legend(self) -> Text:
        text = Text().append("confidence when committed:", style="dim")
        for low, style in self.levels:
            text.append("  ").append(
                f"{self.at_least}{low}" if low else f"<{self.levels[-2][0]}", style=style
            )
        return text


class Canvas:
    """The output so far: committed tokens in the style of their confidence, masks in the active block, names
    of special tokens dim. Once all is there, what is shown is the Generation's text."""

    def __init__(self, prompt: str, tokenizer: Tokenizer, look: Look):
        self._prompt, self._tokenizer, self._look = prompt, tokenizer, look
        self._tokens: dict[int, tuple[int, float]] = {}
        self._end = 0
        self._generation: Generation | None = None

    def update(self, chunk: Chunk):
        for position, token, confidence in zip(
            chunk.positions, chunk.token_ids, chunk.confidences, strict=True
        ):
            self._tokens[position] = (token, confidence)
        self._generation = chunk.generation
        self._end = len(chunk.generation.token_ids) if chunk.generation else chunk.block.stop

    def render(self) -> Text:
        """Prompt and output."""
        text = Text().append(self._look.text(self._prompt), style="dim")
        left = len(self._generation.text) if self._generation else None  # a stop string may cut a token
        for part, style, is_text in self._parts(0):
            if left is None:
                text.append(self._look.text(part), style=style)
            elif is_text:
                text.append(self._look.text(part[:left]), style=style)
                left -= min(left, len(part))
        return text

    def line(self, begin: int) -> str:
        """The output from position `begin` on in one line, special tokens by name."""
        text = "".join(part for part, _, _ in self._parts(begin))
        return self._look.text(text).replace("\n", self._look.line_end)

    def _parts(self, begin: int) -> Iterator[tuple[str, str, bool]]:
        """(text, style, whether it is part of the output's text) from position `begin` on."""
        detokenizer, style = Detokenizer(self._tokenizer), ""
        for position in range(max(0, begin - _CONTEXT), self._end):
            token, confidence = self._tokens.get(position, (None, 0.0))
            if token is None:
                parts = [(detokenizer.flush(), style, True), (self._look.mask, "bright_black", False)]
            elif name := self._tokenizer.special.get(token):
                parts = [(detokenizer.settle(), style, True), (name, "dim", False)]
            else:
                style = self._look.style(confidence)
                parts = [(detokenizer.push([token]), style, True)]
            if position >= begin:
                yield from parts
        yield detokenizer.flush(), style, True


def show_live(prompt: str, chunks: Iterable[Chunk], tokenizer: Tokenizer, delay: float) -> Generation:
    """Draw a stream as it comes, `delay` seconds per denoising step; returns its Generation.

    On a terminal one picture changes in place; elsewhere, and on a terminal that cannot do so, every step
    prints a line: its number, how many tokens it committed, and its block; then comes the text.
    """
    console = Console(file=sys.stdout, highlight=False)
    look = Look(console)
    canvas = Canvas(prompt, tokenizer, look)
    if not is_terminal(sys.stdout) or console.is_dumb_terminal:
        return _show_lines(chunks, canvas)
    console.print(look.legend())
    with Live(console=console, auto_refresh=False) as live:
        for chunk in chunks:
            canvas.update(chunk)
            live.update(_last_lines(canvas.render(), console), refresh=True)
            time.sleep(delay)
        live.update(canvas.render())
    return chunk.generation


def _show_lines(chunks: Iterable[Chunk], canvas: Canvas) -> Generation:
    for step, chunk in enumerate(chunks, 1):
        canvas.update(chunk)
        print(f"{step:>3} +{len(chunk.positions):<2} {canvas.line(chunk.block.start)}")
    print_text(chunk.generation.text)
    return chunk.generation


def _last_lines(text: Text, console: Console) -> Text:
    """What of the text fits onto the screen: its end, where things happen."""
    lines = text.wrap(console, console.width)[-max(1, console.height - 1) :]
    return Text("\n").join(lines)


def print_text(text: str) -> None:
    """A model's text: as it is where a program reads it, without control characters where a terminal does."""
    print(printable(text, sys.stdout) if is_terminal(sys.stdout) else text)
