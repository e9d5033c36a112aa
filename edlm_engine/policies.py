"""Policies to choose from: SamplingParams(policy=policies.Threshold(0.8)). See steps/policies."""

from typing import TYPE_CHECKING

from .steps import policies as _policies
from .steps.policies import *  # noqa: F403

if TYPE_CHECKING:  # type checkers do not see what the folder's files add to it by themselves
    from .steps.policies import BY_NAME as BY_NAME
    from .steps.policies import describe as describe
    from .steps.policies import parse as parse
    from .steps.policies.entropy_bound import EntropyBound as EntropyBound
    from .steps.policies.factor import Factor as Factor
    from .steps.policies.frechet import Frechet as Frechet
    from .steps.policies.margin import Margin as Margin
    from .steps.policies.policy import Policy as Policy
    from .steps.policies.policy import Statistics as Statistics
    from .steps.policies.schedule import Schedule as Schedule
    from .steps.policies.threshold import Threshold as Threshold

__all__ = _policies.__all__
