"""Policies to choose from: SamplingParams(policy=policies.Threshold(0.8)). See steps/policies."""

from .steps import policies as _policies
from .steps.policies import *  # noqa: F403

__all__ = _policies.__all__
