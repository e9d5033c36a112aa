"""Decoder-only transformers and the checkpoint families that the engine reads."""
