"""Where a request's positions lie once it runs."""

import pytest
from test_scheduler import request

from edlm_engine.core.requests import Sequence


def test_a_request_needs_room_for_its_prompt_and_all_that_may_follow():
    assert request(5, 20).length == 25
    assert request(5, 20) != request(5, 20) and not request(1, 1).cancelled
    assert request(1, 1).priority == 0 and not request(1, 1).expired


@pytest.mark.parametrize(
    ("prompt", "aligned", "shift", "prefix", "rows"),
    [(13, False, False, 13, 13), (13, True, False, 8, 8), (16, True, False, 16, 16),
     (13, False, True, 13, 12), (13, True, True, 8, 7), (7, True, False, 0, 0), (7, True, True, 0, 0),
     (1, False, True, 1, 0)],
)  # fmt: skip
def test_what_of_the_prompt_lies_before_the_first_block(prompt, aligned, shift, prefix, rows):
    sequence = Sequence(r := request(prompt, 20), 2, 8, aligned=aligned, shift=shift)
    assert (sequence.prefix, sequence.prompt_rows, sequence.slot) == (prefix, rows, 2)
    assert sequence.tokens == r.prompt[:prefix] and sequence.block_start == prefix
    assert sequence.output_start == prefix - prompt
    assert sequence.policy == r.params.commit_policy
    assert sequence.prompt_due == (rows > 0)
    sequence.cached = rows - 1
    assert sequence.prompt_due
    sequence.cached = rows
    assert not sequence.prompt_due
