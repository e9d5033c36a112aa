import pytest
import torch

GUARD = 64  # elements before and after
SENTINEL = 77


@pytest.fixture
def guarded():
    """Makes output tensors that lie between guard bands; fails at the end if anything was written there."""
    bands = []

    def make(*shape: int, dtype: torch.dtype, fill: float | None = None) -> torch.Tensor:
        size = torch.Size(shape).numel()
        memory = torch.full((GUARD + size + GUARD,), SENTINEL, dtype=dtype)
        bands.extend((memory[:GUARD], memory[GUARD + size :]))
        out = memory[GUARD : GUARD + size].view(shape)
        return out if fill is None else out.fill_(fill)

    yield make
    for band in bands:
        assert bool((band == SENTINEL).all()), "an op wrote outside of its output"


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture
def threads():
    """Sets torch's number of threads; the old one comes back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory):
    import sentencepiece

    folder = tmp_path_factory.mktemp("sentencepiece")
    text = ["the cat sat on the mat", "a block of masks turns into text", "numbers 0123456789"] * 20
    (folder / "text").write_text("\n".join(text))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "tokenizer"), vocab_size=300, model_type="bpe",
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return (folder / "tokenizer.model").read_bytes()
