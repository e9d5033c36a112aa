"""Tables of the command line's reports."""

from collections.abc import Mapping

from rich.table import Table


def table(title: str, headings: tuple[str, ...]) -> Table:
    """Of numbers; on a narrow terminal cells go on in the next line, so that nothing is cut off."""
    made = Table(title=title)
    for heading in headings:
        made.add_column(heading, justify="right", overflow="fold")
    return made


def step_table(title: str, step_ms: Mapping[int, float]) -> Table:
    """step_ms: {rows: milliseconds} of a denoising step."""
    made = table(title, ("rows", "ms", "ms per row"))
    for rows, ms in step_ms.items():
        made.add_row(str(rows), f"{ms:.2f}", f"{ms / rows:.3f}")
    return made
