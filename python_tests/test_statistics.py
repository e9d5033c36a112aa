"""What an engine says of itself, and the sums behind it."""

from dataclasses import FrozenInstanceError, asdict, fields

import pytest

from edlm_engine.core.statistics import Counters, EngineStats

VALUES = {field.name: number for number, field in enumerate(fields(EngineStats), 1)}


def test_all_of_it_as_a_dict():
    stats = EngineStats(**VALUES | {"tokens": 12, "forwards": 8})
    assert stats.tokens_per_forward == 1.5
    assert stats.to_dict() == VALUES | {"tokens": 12, "forwards": 8, "tokens_per_forward": 1.5}


def test_nothing_is_finished_yet():
    stats = EngineStats(**VALUES | {"tokens": 0, "forwards": 0})
    assert (stats.tokens_per_forward, stats.to_dict()["tokens_per_forward"]) == (0.0, 0.0)


def test_a_view_of_a_moment_stays_as_it_is():
    with pytest.raises(FrozenInstanceError):
        EngineStats(**VALUES).running = 0


def test_sums_begin_at_0_and_are_part_of_the_view():
    sums = asdict(Counters())
    assert set(sums) < set(VALUES) and set(sums.values()) == {0}
    assert asdict(Counters(tokens=3)) == sums | {"tokens": 3}
