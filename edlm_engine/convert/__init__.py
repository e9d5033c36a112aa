"""Conversion of autoregressive checkpoints into block-diffusion ones: `convert(base, out, data, config)`."""

from edlm_engine.convert.conversion import ConversionConfig, convert

__all__ = ["ConversionConfig", "convert"]
