"""Data, tokenizer and the autoregressive base model, Qwen3 shape."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path

import tasks
import torch
import torch.nn.functional as F
from tokenizer import END, save_tokenizer, train_tokenizer
from tokenizers import Tokenizer
from torch import Tensor

from edlm_engine.convert.checkpoint import load_decoder, save_checkpoint
from edlm_engine.convert.data import Batches, read_documents
from edlm_engine.convert.model import Decoder
from edlm_engine.convert.train import TrainConfig, train
from edlm_engine.models.families import read_config

VOCABULARY = 768
DOCUMENTS = 400_000
SHAPE = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "attention_bias": False,
}


def write_data(folder: Path, seed: int, documents: int = DOCUMENTS) -> Path:
    """train.jsonl of {"prompt", "completion"}; written once."""
    path = folder / "train.jsonl"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with temporary.open("w") as file:
            for problem in islice(tasks.problems(seed, held_out=False, order=tasks.TRAINING_MIX), documents):
                file.write(json.dumps({"prompt": problem.prompt, "completion": problem.completion}) + "\n")
        os.replace(temporary, path)
    return path


def write_tokenizer(folder: Path, seed: int) -> Tokenizer:
    """tokenizer.json and tokenizer_config.json in `folder`; written once."""
    if not (folder / "tokenizer.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        sample = islice(tasks.problems(seed, held_out=False), 40_000)
        save_tokenizer(
            train_tokenizer((text for p in sample for text in (p.prompt, p.completion)), VOCABULARY), folder
        )
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def autoregressive_loss(model: Decoder, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross-entropy of every next token; ids and weights (rows, length)."""
    losses = F.cross_entropy(
        model(ids[:, :-1]).float().flatten(0, 1), ids[:, 1:].flatten().long(), reduction="none"
    )
    weight = weights[:, 1:].flatten()
    return (losses * weight).sum() / weight.sum()


def train_base(
    out: Path, work: Path, data: Path, tokenizer_folder: Path, config: TrainConfig, every=None
) -> bool:
    """Train the base model and write its checkpoint folder; resumes, and returns at once when it is done."""
    if (out / "config.json").is_file():
        return True
    config = config.with_precision()
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    eos = tokenizer.token_to_id(END)
    hf_config = {**SHAPE, "vocab_size": tokenizer.get_vocab_size(), "eos_token_id": eos}
    model = Decoder(read_config(hf_config, "SHAPE")[0]).initialise(torch.Generator().manual_seed(config.seed))
    documents = read_documents(data, tokenizer_folder, eos, hf_config["vocab_size"])
    batches = Batches(documents, config.length, config.rows, config.seed, config.prompt_weight)
    loss = torch.compile(autoregressive_loss) if config.compile else autoregressive_loss

    def loss_of(step: int) -> Tensor:
        rows = batches(step)
        ids, weights = torch.from_numpy(rows.ids), torch.from_numpy(rows.weights)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            return loss(model, ids, weights)

    evaluate = every and (every[0], lambda step: every[1](model, step))
    finished = train(model, loss_of, config, work / "base-state.pt", title="AR base", every=evaluate)
    if finished:
        save_checkpoint(out, model, hf_config, tokenizer_folder)
    return finished


def load_base(folder: Path) -> Decoder:
    return load_decoder(folder)[0].eval()
