"""What host and device tell each other: snapshots in turn, and the host's wishes."""

import torch

from edlm_engine import ops
from edlm_engine.device_led.host_link import HostLink
from edlm_engine.steps.block_state import BlockState


def link_of(ring_size: int) -> tuple[HostLink, BlockState]:
    state = BlockState(2, 4, 3)
    return HostLink(state, ring_size), state


def step(link: HostLink, state: BlockState):
    """A step of the device, which leaves a snapshot."""
    ops.advance(state.records, None, link.control, link.link, ops.SNAPSHOT | ops.TAKE)


def test_snapshots_come_in_turn_however_often_the_ring_goes_round():
    link, state = link_of(3)
    assert link.link.shape == (4, state.records.numel()) and link.next() is None
    written = read = 0
    for unread in (1, 3, 2, 3, 3, 1):
        for _ in range(unread):
            state.host.start[1] = written = written + 1
            step(link, state)
        for _ in range(unread):
            read += 1
            state.host_records.zero_()
            state.load_snapshot(link.next())
            assert state.host.start[1] == read
        assert link.next() is None


def test_reset_begins_anew():
    link, state = link_of(3)
    for _ in range(2):
        step(link, state)
    link.next()
    link.pause(), link.stop(1)
    link.reset()
    assert link.next() is None and not link.control.any() and not link.link[0].any()
    state.host.start[1] = 5
    step(link, state)
    state.load_snapshot(link.next())
    assert state.host.start[1] == 5 and link.next() is None


def test_what_the_host_wants_is_said_to_the_device():
    link, state = link_of(2)
    for slot in (0, 1):
        state.host.active[slot], state.host.end[slot], state.host.full_length[slot] = 1, 64, 4
        state.host.block_length[slot] = 4
        state.host.open[slot] = 1
    link.stop(1)
    step(link, state)
    assert state.host.active.tolist() == [1, 0]
    before = state.records.clone()
    link.pause()
    step(link, state)
    assert link.control[0] == 0 and state.host.active.tolist() == [1, 0]
    assert torch.equal(before, state.records)
