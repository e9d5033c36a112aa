"""What fits into a memory: the bounds themselves, to the byte and to the page."""

import pytest
import torch
from checkpoints import config_dict

from edlm_engine.core import memory
from edlm_engine.models.families import read_config

CPU = torch.device("cpu")
CONFIG = read_config(config_dict("qwen3", max_position_embeddings=640), "config.json")[0]
PER_TOKEN = 2 * 2 * 2 * 16 * 2  # keys and values, layers, heads, head_dim, bytes of bfloat16


def with_free(monkeypatch, bytes_free: int):
    monkeypatch.setattr(memory, "available_memory", lambda: bytes_free)


def tokens(slots: int, wanted=None, config=CONFIG) -> int:
    return memory.cache_tokens(config, slots, wanted, torch.bfloat16, CPU)


def test_room_for_every_slot(monkeypatch):
    with_free(monkeypatch, 2**40)
    assert tokens(3) == 3 * 640 and tokens(1, 100) == 100
    longer = read_config(config_dict(max_position_embeddings=9000), "config.json")[0]
    assert tokens(2, config=longer) == 2 * 4096


def test_whole_pages(monkeypatch):
    with_free(monkeypatch, 2**40)
    odd = read_config(config_dict(max_position_embeddings=100), "config.json")[0]
    assert [tokens(n, config=odd) for n in (1, 2, 3)] == [128, 256, 320]


@pytest.mark.parametrize(("free", "want"), [(1000, 1024), (1024, 1024), (1025, 1088), (160, 640), (400, 640)])
def test_a_quarter_of_what_is_free_but_one_sequence_always(monkeypatch, free, want):
    with_free(monkeypatch, 4 * free * PER_TOKEN + 3)
    assert tokens(16) == want and tokens(16, 4 * free) == 4 * free
    room = f"room for {4 * free} positions"
    with pytest.raises(torch.OutOfMemoryError, match=rf"={4 * free + 1} needs 0\.0 GiB, 0\.0 GiB .* {room}"):
        tokens(16, 4 * free + 1)


def test_not_even_one_sequence(monkeypatch):
    with_free(monkeypatch, 639 * PER_TOKEN)
    with pytest.raises(torch.OutOfMemoryError, match=r"=640 needs .*room for 639 positions"):
        tokens(16)


def test_on_a_gpu_what_is_free_there_counts(monkeypatch):
    monkeypatch.setattr(memory.gpu, "free_memory", lambda device: 10 * 64 * PER_TOKEN)
    device = torch.device("cuda", 0)
    for wanted, want in ((None, 8 * 64), (64, 64), (8 * 64, 8 * 64)):
        assert memory.cache_tokens(CONFIG, 16, wanted, torch.bfloat16, device) == want
    with pytest.raises(torch.OutOfMemoryError, match=r"513 needs 0\.0 GiB .* leave 0\.0 GiB, room for 512"):
        memory.cache_tokens(CONFIG, 16, 513, torch.bfloat16, device)


@pytest.mark.parametrize(("pages", "want"), [(1, None), (1.25, 64), (2.4, 64), (2.5, 128), (100, 640)])
def test_pages_that_fit_into_the_share_of_the_cache(pages, want):
    free = int(pages * 64 * PER_TOKEN)
    if want is None:
        with pytest.raises(torch.OutOfMemoryError, match=r"a cache of 640 needs .* room for 0 positions"):
            memory.cache_tokens_on_gpu(CONFIG, torch.bfloat16, 640, False, free)
    else:
        assert memory.cache_tokens_on_gpu(CONFIG, torch.bfloat16, 640, False, free) == want


@pytest.mark.parametrize("shape", ("qwen2", "qwen3"))
def test_weights_to_the_byte(shape):
    config = read_config(config_dict(shape), "config.json")[0]
    embedding, count = 128 * 64, config.num_parameters
    quantised = 2 * embedding + count - (0 if config.tied_head else embedding)
    for needed, is_quantised in ((2 * count, False), (quantised, True)):
        memory.check_weights_fit(config, torch.bfloat16, needed, is_quantised)
        with pytest.raises(torch.OutOfMemoryError, match=r"the weights need 0\.0 GiB on the GPU"):
            memory.check_weights_fit(config, torch.bfloat16, needed - 1, is_quantised)
    memory.check_weights_fit(config, torch.float32, 4 * count)
    for on_gpu, message in (
        (True, "on the GPU, .*device='cpu'"),
        (False, "GiB, 0.0 .* take a smaller model"),
    ):
        with pytest.raises(torch.OutOfMemoryError, match=message):
            memory.check_weights_fit(config, torch.float32, 4 * count - 1, on_gpu=on_gpu)


def test_what_one_sequence_can_have_at_most():
    assert memory.most_positions(CONFIG, 1, None) == 640 and memory.most_positions(CONFIG, 1, 100) == 100
    assert memory.most_positions(CONFIG, 1, 5000) == 640
    longer = read_config(config_dict(max_position_embeddings=9000), "config.json")[0]
    assert memory.most_positions(longer, 1, None) == 4096 and memory.most_positions(longer, 2, None) == 8192
