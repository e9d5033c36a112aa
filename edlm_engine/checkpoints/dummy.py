"""Random weights in a checkpoint's place, for benchmarks."""

from collections.abc import Iterator

import torch


class DummyTensors:
    """Stands in for Checkpoint.tensor with random weights: N(0, 0.02), norms 1, biases 0.

    Filled by repeating one pool of random numbers, because drawing billions of them takes minutes. device:
    where the tensors are made; on a GPU that takes a second, copying them there as long as reading a disk.
    """

    def __init__(self, seed: int = 0, device: torch.device | str = "cpu"):
        generator = torch.Generator("cpu").manual_seed(seed)
        count = 1_000_003  # a prime, so rows do not repeat
        pool = torch.randn(count, generator=generator, dtype=torch.float32, device="cpu") * 0.02
        self._pool = pool.to(device=device, dtype=torch.bfloat16)
        self._offset = 0

    def close(self):
        """Nothing is held."""

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
        device = self._pool.device
        if name.endswith(".bias"):
            return torch.zeros(shape, dtype=torch.float32, device=device)
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.float32, device=device)
        out = torch.empty(shape, dtype=torch.bfloat16, device=device)
        flat = out.view(-1)
        for begin, piece in self._pieces(flat.numel()):
            flat[begin : begin + len(piece)] = piece
        return out

    def _pieces(self, count: int) -> Iterator[tuple[int, torch.Tensor]]:
        begin = 0
        while begin < count:
            piece = self._pool[self._offset : self._offset + count - begin]
            yield begin, piece
            begin += len(piece)
            self._offset = (self._offset + len(piece)) % len(self._pool)
