"""Observers come and go, each told of what happens while it is there."""

import pytest

from edlm_engine.core.observers import Observers


class Note:
    def __init__(self):
        self.moments = []

    def begin(self, moment):
        self.moments.append(moment)

    def end(self, moment):
        self.moments.append(f"/{moment}")


def test_who_is_told_of_what():
    observers, first, second = Observers(), Note(), Note()
    observers.begin("step")
    with observers.attached(first) as same:
        assert same is first
        observers.end("step")
        with observers.attached(second), observers.attached(second):
            observers.begin("read")
        observers.end("read")
    observers.begin("wait")
    assert first.moments == ["/step", "read", "/read"]
    assert second.moments == ["read", "read"]


def test_an_observer_leaves_though_its_block_fails():
    observers, note = Observers(), Note()
    with pytest.raises(KeyError), observers.attached(note):
        raise KeyError
    observers.begin("step")
    assert not note.moments


def test_nobody_looks_on():
    observers = Observers()
    observers.begin("step")
    observers.end("step")
