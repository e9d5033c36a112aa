"""Checkpoint folders: config files, safetensors, tokenizers and chat templates."""
