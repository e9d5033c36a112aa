"""The recipe's plain-torch decoding against one-sequence loops, its tokenizer, and its accuracy count."""

import sys
from itertools import islice
from pathlib import Path

import jinja2
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes" / "tiny"))

import base
import quick
import tasks
from generate import AUTOREGRESSIVE, Decoding, generate
from tokenizer import CHAT_TEMPLATE, END, MASK, train_tokenizer

from edlm_engine.convert.model import Decoder
from edlm_engine.models.families import read_config

MASK_ID, EOS_ID, NEW = 1, 0, 11


@pytest.fixture(scope="module")
def model():
    shape = {**base.SHAPE, "hidden_size": 32, "head_dim": 16, "num_hidden_layers": 2, "vocab_size": 24}
    decoder = Decoder(read_config({**shape, "intermediate_size": 48}, "config.json")[0])
    for weight in decoder.initialise(torch.Generator().manual_seed(0)).parameters():
        weight.data.mul_(6 if weight.dim() == 2 else 1)
    return decoder.eval()


PROMPTS = [[5, 6, 7], [3, 4, 5, 6, 7, 8, 9, 10, 2], [20]]


@torch.no_grad()
def autoregressive(model, prompt):
    tokens = list(prompt)
    for _ in range(NEW):
        logits = model(torch.tensor([tokens]))[0, -1]
        logits[MASK_ID] = -torch.inf
        tokens.append(int(logits.argmax()))
        if tokens[-1] == EOS_ID:
            break
    return tokens[len(prompt) :]


@torch.no_grad()
def block_by_block(model, prompt, block, threshold):
    """Blocks start at the end of the prompt; the prompt is cut into blocks from its first token."""
    tokens, forwards = list(prompt), 0
    blocks = [i // block for i in range(len(prompt))]
    while len(tokens) < len(prompt) + NEW:
        size = min(block, len(prompt) + NEW - len(tokens))
        start = len(tokens)
        tokens += [MASK_ID] * size
        blocks += [max([-1, *blocks]) + 1] * size
        number = torch.tensor(blocks)
        while MASK_ID in tokens[start:]:
            logits = model(torch.tensor([tokens]), None, number[:, None] >= number[None, :])[0, start:]
            logits[:, MASK_ID] = -torch.inf
            confidence, token = logits.softmax(-1).max(-1)
            masked = torch.tensor([t == MASK_ID for t in tokens[start:]])
            confidence[~masked] = -1
            best = int(confidence.argmax())
            for i in range(size):
                if i == best or (threshold is not None and confidence[i] >= threshold):
                    tokens[start + i] = int(token[i])
            forwards += 1
            new = tokens[len(prompt) :]
            if EOS_ID in new and MASK_ID not in new[: new.index(EOS_ID)]:
                return new[: new.index(EOS_ID) + 1], forwards
    return tokens[len(prompt) :], forwards


def test_autoregressive_decoding_is_the_plain_loop(model):
    how = Decoding(block=1, shift=True, max_new_tokens=NEW)
    assert how.block == AUTOREGRESSIVE.block and how.shift == AUTOREGRESSIVE.shift
    outputs, _ = generate(model, PROMPTS, MASK_ID, EOS_ID, how)
    assert outputs == [autoregressive(model, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("threshold", [None, 0.08])
def test_a_batch_decodes_as_its_prompts_alone_do(model, block, threshold):
    outputs, forwards = generate(
        model, PROMPTS, MASK_ID, EOS_ID, Decoding(block, threshold, max_new_tokens=NEW)
    )
    alone = [block_by_block(model, prompt, block, threshold) for prompt in PROMPTS]
    assert list(zip(outputs, forwards, strict=True)) == alone
    if threshold is None:
        assert all(count >= len(output) for output, count in alone)
    elif block > 1:
        assert sum(forwards) < sum(map(len, outputs))


@pytest.fixture(scope="module")
def tokenizer():
    sample = islice(tasks.problems(0, held_out=False), 2000)
    return train_tokenizer((text for problem in sample for text in (problem.prompt, problem.completion)), 512)


def test_tokenizer_is_lossless_and_keeps_digits_apart(tokenizer):
    assert (tokenizer.token_to_id(END), tokenizer.token_to_id(MASK)) == (0, 1)
    for text in ("12 + 345 = 357\n", "naïve — 東京 \t x", 'def f(x):\n    return {"a": 1}'):
        encoding = tokenizer.encode(text)
        assert tokenizer.decode(encoding.ids) == text
        assert all(len(token) == 1 for token in encoding.tokens if any(c.isdigit() for c in token))


def test_chat_template_is_the_prompt_format():
    template = jinja2.Template(CHAT_TEMPLATE)
    message = "Reverse the list [1, 2]."
    assert template.render(messages=[{"role": "user", "content": message}]) == tasks.prompt_of(message)
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert template.render(messages=turns) == f"Q: a\nA: b{END}Q: c\nA: "


def test_accuracy_counts_right_answers_by_task(tokenizer, monkeypatch):
    problems = quick.sample(8)
    answers = {problem.prompt: problem.completion for problem in problems}
    wrong = next(problem.prompt for problem in problems if problem.task == "lists")

    def oracle(model, prompts, mask, eos, how):
        texts = [tokenizer.decode(prompt) for prompt in prompts]
        outputs = [[*tokenizer.encode("?" if text == wrong else answers[text]).ids, eos] for text in texts]
        return outputs, [1] * len(outputs)

    monkeypatch.setattr(quick, "generate", oracle)
    result = quick.accuracy(None, tokenizer, problems, Decoding())
    assert result["exact"] == 7 / 8 and result["count"] == 8
    assert result["tasks"]["lists"]["exact"] == 1 / 2 and result["tasks"]["json"]["exact"] == 1
    assert result["tpf"] > 3
