"""The query blocks of a prompt."""

from .inputs import QueryBlock


def prompt_blocks(
    slot: int, cached: int, length: int, prefill: str, block_length: int, most_rows: int, rows: int
) -> list[QueryBlock]:
    """Query blocks of prompt positions [cached, rows) that fit into `most_rows` rows, maybe none.

    length: of the prompt; rows: those of its positions that are laid out here. The last one may be left to
    the first denoising step, where its row predicts a token; others see it all the same. prefill:
    "block_causal" (its own block and those before), "bidirectional" (everything: such a prompt cannot be
    divided) or "causal".
    """
    if prefill == "bidirectional":
        return [QueryBlock(slot, 0, rows, length)] if rows <= most_rows else []
    if prefill == "causal":
        count = min(most_rows, rows - cached)
        return [QueryBlock(slot, cached, count, cached + count, True)] if count > 0 else []
    blocks = []
    for start in range(cached, rows, block_length):
        end = min(start + block_length, length)
        if min(end, rows) - cached > most_rows:
            break
        blocks.append(QueryBlock(slot, start, min(end, rows) - start, end))
    return blocks
