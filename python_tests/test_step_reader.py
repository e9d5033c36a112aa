"""What is read off the block state behind a step: transcript, chunk, statistics, result."""

import pytest
from test_scheduler import EOS, MASK, request

from edlm_engine import NumericalError
from edlm_engine.core.requests import Sequence
from edlm_engine.core.step_reader import StepReader
from edlm_engine.steps.block_state import OPEN, BlockState

SLOT, WIDTH = 1, 8


class Steps:
    """A request in slot 1, whose steps the test commits by hand."""

    def __init__(self, prompt: int, new: int, aligned=False, **options):
        self.chunks, self.request = [], request(prompt, new, **options)
        self.request.on_chunk = self.chunks.append
        self.request.admitted = self.request.submitted + 1
        self.state = BlockState(3, WIDTH, MASK)
        self.sequence = Sequence(self.request, SLOT, WIDTH, aligned=aligned, shift=False)
        self.reader = StepReader(self.state)
        self.begin(self.request.prompt[self.sequence.prefix :])

    def begin(self, given=()):
        self.state.begin_block(SLOT, [*given, *[OPEN] * (WIDTH - len(given))])

    def commit(self, tokens: dict[int, int]):
        """tokens: by place in the block. The confidence is a hundredth of the token, the entropy a tenth."""
        host = self.state.host
        for at, token in tokens.items():
            host.tokens[SLOT, at], host.open[SLOT, at], host.commit_step[SLOT, at] = token, 0, host.step[SLOT]
            host.confidence[SLOT, at], host.entropy[SLOT, at] = token / 128, token / 64
        host.step[SLOT] += 1
        host.status[SLOT] = int(not host.open[SLOT].any())
        return self.reader.read(self.sequence)


def test_a_step_within_a_block():
    steps = Steps(5, 20)
    assert steps.commit({0: 10, 3: 13, 7: 17}) is None
    sequence, transcript = steps.sequence, steps.request.transcript
    assert transcript.token_ids == [10] and transcript.finish_reason is None  # behind a gap nothing counts
    assert steps.commit({1: 11}) is None
    assert transcript.token_ids == [10, 11]
    assert steps.commit({2: 12, 5: 15}) is None
    assert transcript.token_ids == [10, 11, 12, 13]
    assert sequence.tokens == steps.request.prompt and sequence.denoisings == 3 and sequence.read == 4
    assert [chunk.positions for chunk in steps.chunks] == [[0, 3, 7], [1], [2, 5]]
    assert steps.chunks[0].token_ids == [10, 13, 17]
    assert steps.chunks[0].confidences == [10 / 128, 13 / 128, 17 / 128]
    assert all(chunk.block == range(0, 8) and chunk.generation is None for chunk in steps.chunks)
    assert sequence.confidences == []


def test_blocks_follow_each_other_to_the_result():
    steps = Steps(5, 10, ignore_eos=True)
    steps.commit({i: 10 + i for i in range(0, 8, 2)})
    assert steps.commit({i: 10 + i for i in range(1, 8, 2)}) is None
    sequence = steps.sequence
    assert sequence.tokens == [*steps.request.prompt, *range(10, 18)] and sequence.read == 0
    assert (sequence.block_start, sequence.output_start) == (13, 8)
    steps.begin()
    steps.sequence.prefills = 3
    steps.request.submitted -= 5
    result = steps.commit({0: 20, 1: 21, 2: 22})  # the third is behind the end
    assert result.token_ids == [*range(10, 18), 20, 21] and result.finish_reason == "length"
    assert result.confidences == [t / 128 for t in result.token_ids]
    assert result.entropies == [t / 64 for t in result.token_ids]
    assert result.commit_steps == [0, 1] * 4 + [0, 0]
    assert result.prompt_token_ids == steps.request.prompt and 5 < result.seconds < 60
    assert result.queue_seconds == pytest.approx(6)
    assert result.nfe == 3 == result.forwards.denoising and result.forwards.prefill == 3
    assert result.tokens_per_forward == 10 / 3
    assert len(steps.chunks) == 2  # the last is the scheduler's to give
    last = steps.reader.chunk(sequence, result)
    assert (last.positions, last.token_ids, last.block) == ([8, 9], [20, 21], range(8, 16))
    assert last.generation is result and last.text == result.text


def test_an_end_within_a_block_that_is_not_full():
    steps = Steps(5, 20)
    steps.commit({3: 13})
    result = steps.commit({0: 10, 1: EOS, 6: 16})
    assert [len(result.confidences), len(result.entropies), len(result.commit_steps)] == [2, 2, 2]
    assert result.token_ids == [10, EOS] and result.finish_reason == "eos"
    assert result.commit_steps == [1, 1] and result.confidences == [10 / 128, EOS / 128]
    assert steps.reader.chunk(steps.sequence, result).positions == [0, 1]


def test_what_the_prompt_gave_is_no_output():
    """An aligned block begins with the prompt's end, 3 of its 8 places."""
    steps = Steps(11, 20, aligned=True, ignore_eos=True)
    assert steps.sequence.output_start == -3
    steps.commit({3: 13, 5: 15})
    assert steps.request.transcript.token_ids == [13]
    steps.commit({4: 14, 6: 16, 7: 17})
    assert steps.request.transcript.token_ids == [13, 14, 15, 16, 17]
    assert [chunk.positions for chunk in steps.chunks] == [[0, 2], [1, 3, 4]]
    assert steps.chunks[0].block == range(0, 5)
    sequence = steps.sequence
    assert sequence.confidences == [t / 128 for t in range(13, 18)] and sequence.commit_steps == [
        0,
        1,
        0,
        1,
        1,
    ]
    assert sequence.entropies == [t / 64 for t in range(13, 18)]
    assert sequence.tokens == [*steps.request.prompt, *range(13, 18)] and sequence.output_start == 5


def test_numbers_that_are_none():
    steps = Steps(5, 20)
    steps.state.host.status[SLOT] = -1
    with pytest.raises(NumericalError, match="NaN or infinite"):
        steps.reader.read(steps.sequence)
    assert not steps.chunks


def test_without_a_listener_nobody_is_told():
    steps = Steps(5, 20)
    steps.request.on_chunk = None
    assert steps.commit({0: 10}) is None
    assert steps.request.transcript.token_ids == [10]
