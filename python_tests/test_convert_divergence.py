"""What counts as a run that has gone wrong, and what is said of it."""

import math
from dataclasses import replace

import pytest

from edlm_engine.convert.config import TrainConfig
from edlm_engine.convert.divergence import Divergence

CONFIG = TrainConfig(steps=100, learning_rate=0.5, muon_learning_rate=0.2)


def feed(losses, guessing=1.0, config=CONFIG):
    divergence = Divergence(config, guessing)
    for step, loss in enumerate(losses):
        divergence.check_loss(loss, step, 0.1)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_losses_and_gradients_that_are_not_finite(loss):
    message = rf"the loss is {loss}, in step 3 of 100 at learning_rate 0\.05; try a tenth"
    with pytest.raises(FloatingPointError, match=message):
        feed([1.0, 1.0, loss])
    divergence = Divergence(CONFIG)
    divergence.check_gradient(1e30, 0, 1.0)
    with pytest.raises(
        FloatingPointError, match=rf"the gradient's norm is {loss}, in step 1 of 100 at learning_rate 0\.5"
    ):
        divergence.check_gradient(loss, 0, 1.0)


def test_muons_rate_is_said_too():
    with pytest.raises(FloatingPointError, match=r"learning_rate 0\.05, muon_learning_rate 0\.02;"):
        feed([math.nan], config=replace(CONFIG, optimizer="muon"))


def test_losses_far_above_guessing():
    feed([2.0, *[4.0] * 200])  # four times the loss of guessing is bad, and may be the beginning
    with pytest.raises(
        FloatingPointError, match=r"the loss is 4\.185 on average, after 2 in the first step, in step 20 of"
    ):
        feed([2.0, *[4.3] * 20])
    feed([2.0, *[4.2] * 18, 2.0])  # 3.98 on average
    feed([1.0, 60.0, *[1.0] * 200])  # a single loss may be large
    feed([30.0, *[59.0] * 200])  # and so may the first one, of a base that is sure of something else
    with pytest.raises(FloatingPointError, match="the loss is 61 on average, after 30 in the first step"):
        feed([30.0, *[61.0] * 200])
    feed([1.0, *[1e9] * 200], guessing=math.inf)
    with pytest.raises(FloatingPointError):
        feed([1.0] * 100 + [5.0] * 20)  # the average is of the last steps
