"""The paged key/value cache: tensors for the kernels, free lists for the scheduler."""

import math

import torch

from ..config import ModelConfig

PAGE_LENGTH = 64  # positions per page: the kernels' K/V tile


def pages_for(tokens: int) -> int:
    """Pages that hold `tokens` positions."""
    return -(-tokens // PAGE_LENGTH)


class PagedKVCache:
    """Keys and values of all sequences, in pages of PAGE_LENGTH positions.

    keys[layer], values[layer]: [pages, kv_heads, PAGE_LENGTH, head_dim]; memory is touched, and so taken
        from the machine, only as pages come into use.
    page_table: int32 [slots, max_pages], the page of each PAGE_LENGTH positions of the sequence in a slot,
        -1 behind its end.
    """

    def __init__(self, config: ModelConfig, tokens: int, max_slots: int, dtype, device="cpu"):
        self.num_pages = pages_for(tokens)
        shape = (self.num_pages, config.num_kv_heads, PAGE_LENGTH, config.head_dim)
        self.keys = [_untouched(shape, dtype, device) for _ in range(config.num_layers)]
        self.values = [_untouched(shape, dtype, device) for _ in range(config.num_layers)]
        max_pages = min(self.num_pages, pages_for(config.max_positions))
        self.page_table = torch.full((max_slots, max_pages), -1, dtype=torch.int32, device=device)
        self._free_pages = list(range(self.num_pages - 1, -1, -1))
        self._free_slots = list(range(max_slots - 1, -1, -1))
        self._pages: dict[int, list[int]] = {}

    @property
    def free_pages(self) -> int:
        return len(self._free_pages)

    @property
    def free_tokens(self) -> int:
        return self.free_pages * PAGE_LENGTH

    def has_room(self, tokens: int) -> bool:
        """Whether reserve() would find a slot with so many positions."""
        return bool(self._free_slots) and pages_for(tokens) <= len(self._free_pages)

    def reserve(self, tokens: int) -> int | None:
        """A slot with pages for `tokens` positions; None while there is no room for it."""
        if not self.has_room(tokens):
            return None
        count = pages_for(tokens)
        slot = self._free_slots.pop()
        pages = [self._free_pages.pop() for _ in range(count)]
        self._pages[slot] = pages
        self.page_table[slot] = -1
        self.page_table[slot, :count] = torch.tensor(pages, dtype=torch.int32, device="cpu")
        return slot

    def release(self, slot: int):
        """Give a slot and its pages back. The table keeps them until the slot is reserved again: a device
        that is ahead of the host may still be at a step of the sequence that left."""
        self._free_pages.extend(reversed(self._pages.pop(slot)))
        self._free_slots.append(slot)

    def bytes_per_token(self) -> int:
        layer = self.keys[0]
        return 2 * len(self.keys) * layer.shape[1] * layer.shape[3] * layer.element_size()


def _untouched(shape: tuple[int, ...], dtype: torch.dtype, device) -> torch.Tensor:
    """What torch.empty() returns, except where the program asks for deterministic algorithms: there it fills
    all of the memory, which the machine may not even have."""
    storage = torch.UntypedStorage(math.prod(shape) * dtype.itemsize, device=device)
    return torch.empty(0, dtype=dtype, device=device).set_(storage, 0, shape)
