"""The host's side of the block state: what a request, a sequence and a block leave in it."""

import numpy as np
import pytest
import torch

from edlm_engine import ops, policies
from edlm_engine.steps.block_state import OPEN, STOP_IDS, BlockState, fields_of, record_words

MASK = 7


@pytest.fixture
def state() -> BlockState:
    """Two slots whose every word is taken from an earlier life."""
    state = BlockState(2, 6, MASK)
    state.records[:] = 1
    return state


def test_open_is_no_token():
    assert OPEN < 0


def test_only_cuda_needs_memory_that_is_pinned():
    """Which there is none of on other machines: torch would refuse."""
    state = BlockState(1, 4, MASK, device="meta")
    assert state.host_records.device.type == "cpu" and state.records.device.type == "meta"


@pytest.mark.parametrize("block_length", range(1, 9))
def test_fields_share_no_word_and_records_are_of_whole_16_bytes(block_length):
    words = record_words(block_length)
    assert words % 4 == 0
    records = torch.zeros(3, words, dtype=torch.int32)
    fields = fields_of(records, block_length)
    names = [name for name, *_ in [*ops.SLOT_FIELDS, *ops.POSITION_FIELDS]]
    assert list(fields) == names
    for name, _, count in ops.SLOT_FIELDS:
        assert fields[name].shape == ((3,) if count == 1 else (3, count))
    assert all(fields[name].shape == (3, block_length) for name, _ in ops.POSITION_FIELDS)
    for field in fields.values():
        field += 1
    of_one = {"std::int32_t": 1, "float": int(torch.tensor(1.0).view(torch.int32))}
    counts = [(kind, count) for _, kind, count in ops.SLOT_FIELDS]
    counts += [(kind, block_length) for _, kind in ops.POSITION_FIELDS]
    want = [of_one[kind] for kind, count in counts for _ in range(count)]
    assert records.tolist() == [want + [0] * (words - len(want))] * 3
    assert words - len(want) < 4


def test_what_a_request_chooses(state):
    policy = policies.Threshold(0.75, 3)
    state.begin_request(1, policy, temperature=0.5, top_k=9, top_p=0.25, seed=0x1234567890ABCDEF)
    host = state.host
    assert host.rule[1] == ops.RULES["threshold"]
    assert host.rule_parameters[1].tolist() == [0.75, 3, 0, 0]
    assert (host.temperature[1], host.top_k[1], host.top_p[1]) == (0.5, 9, 0.25)
    assert host.seed[1].view(np.uint32).tolist() == [0x90ABCDEF, 0x12345678]
    assert host.mask_id[1] == MASK and host.keep_wanted[1] == 0
    assert state.records[0].eq(1).all()


def test_defaults_of_a_request_are_greedy(state):
    state.begin_request(0, policies.Threshold())
    host = state.host
    assert host.rule_parameters[0].tolist() == [np.float32(0.9), np.inf, 0, 0]  # no bound on the steps
    assert (host.temperature[0], host.top_k[0], host.top_p[0]) == (0, 0, 1)
    assert host.seed[0].tolist() == [0, 0]


@pytest.mark.parametrize("seed", (0, 1, 2**31, 2**32, 2**63, 2**64 - 1))
def test_seeds_have_64_bits(state, seed):
    state.begin_request(0, policies.Threshold(), seed=seed)
    low, high = state.host.seed[0].view(np.uint32).tolist()
    assert low + (high << 32) == seed


def test_a_policy_without_a_native_rule_or_that_wants_all():
    class Own:
        rule, wants = None, "all"

        def parameters(self):
            return ()

    state = BlockState(1, 4, MASK)
    state.host.rule_parameters[0] = 9
    state.begin_request(0, Own())
    assert state.host.rule[0] == ops.RULES["selected"] and state.host.keep_wanted[0] == 1
    assert not state.host.rule_parameters[0].any()


@pytest.mark.parametrize(("mask", "stored"), [(None, 0), (0, 0), (5, 5)])
def test_the_mask_id(mask, stored):
    state = BlockState(1, 4, mask)
    state.begin_request(0, policies.Threshold())
    state.begin_block(0, [OPEN, 3])
    assert state.host.mask_id[0] == stored and state.host.tokens[0].tolist() == [stored, 3, stored, stored]


def test_where_the_blocks_of_a_sequence_lie(state):
    state.begin_sequence(1, 20, [50, 51], 64, 6, [8, 9])
    host = state.host
    assert (host.active[1], host.start[1], host.end[1], host.full_length[1]) == (0, 20, 64, 6)
    assert host.pending[1] == 2 and host.clean[1, :2].tolist() == [50, 51]
    assert host.stop_ids[1].tolist() == [8, 9] + [-1] * (STOP_IDS - 2)
    assert state.records[0].eq(1).all()


def test_more_stop_ids_than_the_device_is_told_of(state):
    state.begin_sequence(0, 0, [], 64, 6, range(100, 100 + STOP_IDS + 3))
    assert state.host.stop_ids[0].tolist() == list(range(100, 100 + STOP_IDS))
    assert state.host.pending[0] == 0


def test_a_block_shorter_than_the_one_before_it(state):
    """Nothing of the longer one is left behind it."""
    state.begin_request(1, policies.Threshold())
    state.begin_block(1, [OPEN] * 6)
    state.host.step[1], state.host.status[1] = 4, -1
    state.begin_block(1, [OPEN, 3, OPEN])
    host = state.host
    assert host.tokens[1].tolist() == [MASK, 3, MASK, MASK, MASK, MASK]
    assert host.open[1].tolist() == host.wanted[1].tolist() == [1, 0, 1, 0, 0, 0]
    assert host.given[1].tolist() == [0, 1, 0, 0, 0, 0]
    assert (host.block_length[1], host.step[1], host.status[1]) == (3, 0, 0)
    assert state.records[0].eq(1).all()


def test_both_sides_are_the_same_memory_on_a_cpu(state):
    assert state.host_records is state.records
    state.host.start[1] = 33
    assert state.start[1] == 33


def test_sides_apart():
    """What one side writes the other sees after upload() or download(), and not before."""
    state = BlockState(2, 4, MASK, apart=True)
    state.host.start[1] = 33
    assert state.start[1] == 0
    state.upload()
    assert state.start[1] == 33
    state.start[1] = 44
    assert state.host.start[1] == 33
    state.download()
    assert state.host.start[1] == 44
    snapshot = state.records.clone().flatten()
    state.start[1] = 55
    state.load_snapshot(snapshot.index_fill(0, torch.tensor([0]), 66))
    assert state.host_records[0, 0] == 66 and state.host.start[1] == 44 and state.start[1] == 55
