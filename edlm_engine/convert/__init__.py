"""Conversion of autoregressive checkpoints into block-diffusion ones: `convert(base, out, data, config)`."""

from edlm_engine.convert.config import ConversionConfig
from edlm_engine.convert.conversion import convert

__all__ = ["ConversionConfig", "convert"]
