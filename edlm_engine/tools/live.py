"""A block turning from masks into text, on the terminal."""

import sys
import time
from collections.abc import Iterable

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ..checkpoints.tokenizer import Tokenizer
from ..outputs import Chunk, Generation

MASK = "▒▒"
# confidence at commit -> colour: the surer, the cooler
_COLOURS = ((0.99, "bright_cyan"), (0.9, "bright_green"), (0.6, "yellow"), (0.0, "bright_red"))


class Canvas:
    """The output so far: committed tokens coloured by confidence, masks in the active block."""

    def __init__(self, prompt: str, tokenizer: Tokenizer):
        self._prompt, self._tokenizer = prompt, tokenizer
        self._tokens: dict[int, tuple[int, float]] = {}
        self._end = 0

    def update(self, chunk: Chunk):
        for position, token, confidence in zip(
            chunk.positions, chunk.token_ids, chunk.confidences, strict=True
        ):
            self._tokens[position] = (token, confidence)
        self._end = len(chunk.generation.token_ids) if chunk.generation else chunk.block.stop

    def render(self) -> Text:
        """Prompt and output."""
        text = Text(self._prompt, style="dim")
        return text.append_text(self.render_output(0))

    def render_output(self, begin: int) -> Text:
        """The output from position `begin` on."""
        text = Text()
        for position in range(begin, self._end):
            if position in self._tokens:
                token, confidence = self._tokens[position]
                colour = next(colour for low, colour in _COLOURS if confidence >= low)
                text.append(self._tokenizer.piece(token), style=colour)
            else:
                text.append(MASK, style="bright_black")
        return text


def legend() -> Text:
    text = Text("confidence when committed: ", style="dim")
    for low, colour in _COLOURS:
        text.append(f" {'≥' if low else '<'} {low or _COLOURS[-2][0]} ", style=colour)
    return text


def show_live(prompt: str, chunks: Iterable[Chunk], tokenizer: Tokenizer, delay: float) -> Generation:
    """Draw a stream as it comes, `delay` seconds per denoising step; returns its Generation.

    On a terminal one picture changes in place; elsewhere every step prints a line: its number, how many
    tokens it committed, and its block.
    """
    canvas, console = Canvas(prompt, tokenizer), Console(file=sys.stdout, highlight=False)
    chunk = None
    if not console.is_terminal:
        for step, chunk in enumerate(chunks, 1):
            canvas.update(chunk)
            block = canvas.render_output(chunk.block.start).plain.replace("\n", "↵")
            console.print(f"{step:>3} +{len(chunk.positions):<2} {block}", soft_wrap=True, markup=False)
        console.print(canvas.render_output(0).plain, soft_wrap=True, markup=False)
        return chunk.generation
    console.print(legend())
    with Live(console=console, auto_refresh=False) as live:
        for chunk in chunks:
            canvas.update(chunk)
            live.update(canvas.render(), refresh=True)
            time.sleep(delay)
    return chunk.generation
