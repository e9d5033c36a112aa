"""The training loop: schedules, optimizers, one step, when it saves and stops, and what it goes on from."""

import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from edlm_engine.convert.config import TrainConfig
from edlm_engine.convert.divergence import Divergence
from edlm_engine.convert.train import (
    State,
    identity_of,
    optimizers,
    rate,
    read_state,
    train,
    train_step,
)

PLAIN = TrainConfig(steps=6, rows=2, length=4, learning_rate=0.1, device="cpu", bf16=False)


@pytest.fixture(autouse=True)
def ctrl_c():
    """Acts as on a terminal; a shell's background processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Toy(nn.Module):
    """One matrix in a layer, one outside, and a vector."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        layer = nn.Module()
        layer.matrix = nn.Parameter(torch.randn(4, 3, generator=generator))
        layer.vector = nn.Parameter(torch.randn(4, generator=generator))
        self.model = nn.Module()
        self.model.layers = nn.ModuleList([layer])
        self.outer = nn.Parameter(torch.randn(2, 4, generator=generator))

    def loss(self, step):
        """Depends on every weight and on the step."""
        layer = self.model.layers[0]
        x = torch.randn(3, generator=torch.Generator().manual_seed(step))
        return (self.outer @ torch.tanh(layer.matrix @ x + layer.vector)).square().sum()


def values(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def rates(**changes):
    config = replace(PLAIN, **{"learning_rate": 1.0, **changes})
    return [rate(config, step) for step in range(config.steps)]


def test_warm_up_is_linear_and_ends_at_the_peak():
    found = rates(steps=100, warmup_steps=10)
    assert found[:11] == pytest.approx([0.1 * (i + 1) for i in range(10)] + [1.0])
    assert rates(steps=5)[0] == 1.0


def test_the_cosine_goes_down_to_the_final_rate():
    found = rates(steps=100, warmup_steps=20, final_learning_rate=0.2)
    assert found[20:] == pytest.approx(
        [0.2 + 0.8 * (1 + math.cos(math.pi * i / 80)) / 2 for i in range(80)], abs=1e-12
    )
    assert found[60] == pytest.approx(0.6) and found[99] == pytest.approx(0.2, abs=1e-3)
    # Shares are of the peak.
    assert rates(steps=100, learning_rate=2.0, final_learning_rate=0.4)[50] == pytest.approx(0.6)


def test_a_cosine_may_be_longer_or_shorter_than_the_run():
    longer = rates(steps=100, warmup_steps=10, cosine_steps=210)
    assert longer[60] == pytest.approx((1 + math.cos(math.pi / 4)) / 2) and longer[99] > 0.35
    shorter = rates(steps=100, cosine_steps=50, final_learning_rate=0.1)
    assert shorter[25] == pytest.approx(0.55) and shorter[50:] == pytest.approx([0.1] * 50)
    over = rates(steps=6, warmup_steps=2, cosine_steps=2, final_learning_rate=0.1)  # when it would begin
    assert over == pytest.approx([0.5, 1.0, 1.0, 0.1, 0.1, 0.1])


def test_the_cooldown_is_linear_from_where_the_cosine_was():
    plain = rates(steps=100, cosine_steps=200, final_learning_rate=0.1)
    found = rates(steps=100, cosine_steps=200, final_learning_rate=0.1, cooldown_steps=20)
    assert found[:81] == plain[:81]
    assert found[80:] == pytest.approx([0.1 + (plain[80] - 0.1) * (20 - i) / 20 for i in range(20)])


def test_optimizers_have_the_configs_settings():
    (adamw,) = optimizers(Toy(), replace(PLAIN, weight_decay=0.3))
    assert isinstance(adamw, torch.optim.AdamW) and len(adamw.param_groups[0]["params"]) == 3
    group = adamw.param_groups[0]
    assert (group["betas"], group["weight_decay"]) == ((0.9, 0.95), 0.3)
    assert group["lr"] == group["peak"] == 0.1


def test_muon_has_the_layers_matrices_at_its_own_rate():
    model = Toy()
    adamw, muon = optimizers(
        model, replace(PLAIN, optimizer="muon", muon_learning_rate=0.7, weight_decay=0.3)
    )
    assert [p is model.model.layers[0].matrix for p in muon.param_groups[0]["params"]] == [True]
    assert len(adamw.param_groups[0]["params"]) == 2
    assert isinstance(muon, torch.optim.Muon)
    assert [group["peak"] for o in (adamw, muon) for group in o.param_groups] == [0.1, 0.7]
    assert [group["weight_decay"] for o in (adamw, muon) for group in o.param_groups] == [0.3, 0.3]


def plain_step(model, loss_of, config, step=0):
    """One step of plain gradient descent at rate 1 instead of the config's optimizer."""
    sgd = torch.optim.SGD(model.parameters(), 1.0)
    sgd.param_groups[0]["peak"] = 1.0
    before = values(model)
    loss = train_step(State(model, [sgd], step), loss_of, config, Divergence(config))
    moved = {name: value - before[name] for name, value in values(model).items()}
    return loss, moved


def norm(parts):
    return torch.cat([part.flatten() for part in parts.values()]).norm().item()


def test_a_step_follows_the_gradient_at_its_rate():
    model = Toy()
    gradient = torch.autograd.grad(model.loss(3), list(model.parameters()))
    gradient = dict(zip(values(model), gradient, strict=True))
    config = replace(PLAIN, gradient_clip=1e6, final_learning_rate=0.02)
    loss, moved = plain_step(model, model.loss, config, step=3)
    for name, step in moved.items():
        assert torch.allclose(step, -gradient[name] * rate(config, 3), atol=1e-6)
    assert loss == pytest.approx(Toy().loss(3).item())
    assert all(weight.grad is None for weight in model.parameters())  # none is left for the next step


def test_the_whole_gradient_is_clipped():
    config = replace(PLAIN, gradient_clip=0.5)
    model = Toy()
    assert norm(plain_step(model, lambda step: 1000 * model.loss(step), config)[1]) == pytest.approx(
        0.5, rel=1e-3
    )
    model = Toy()
    small = norm(plain_step(model, lambda step: 1e-4 * model.loss(step), config)[1])
    assert 0 < small < 0.1  # and what is shorter stays as it is


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_decay(optimizer):
    config = replace(PLAIN, optimizer=optimizer, weight_decay=0.3, muon_learning_rate=0.2)
    model = Toy()
    before = values(model)
    state = State(model, optimizers(model, config))
    train_step(state, lambda step: model.loss(step) * 0, config, Divergence(config))
    for name, value in values(model).items():
        peak = 0.2 if optimizer == "muon" and "matrix" in name else 0.1
        assert torch.allclose(value, before[name] * (1 - peak * 0.3))


def test_a_loss_that_is_not_finite_ends_the_run_before_it_harms(tmp_path):
    model = Toy()
    before = {}

    def loss_of(step):
        before.update(values(model))
        return model.loss(step) * (math.nan if step == 2 else 1)

    with pytest.raises(FloatingPointError, match=r"the loss is nan, in step 3 of 6 at learning_rate 0\.075"):
        train(model, loss_of, PLAIN, tmp_path / "resume.pt")
    assert all(torch.equal(value, before[name]) for name, value in values(model).items())


def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path):
    model = Toy()
    with pytest.raises(FloatingPointError, match="the gradient's norm is nan, in step 1 of 6"):
        # The root has an infinite slope at 0, times 0: a finite loss without a finite gradient.
        train(model, lambda step: model.loss(step) + (model.outer.sum() * 0).sqrt(), PLAIN, tmp_path / "r")


def saves(monkeypatch):
    found = []
    save = State.save

    def watch(self, path, identity):
        found.append(self.step)
        save(self, path, identity)

    monkeypatch.setattr(State, "save", watch)
    return found


def test_the_state_is_saved_at_its_intervals_and_at_the_end(tmp_path, monkeypatch):
    found, model, config = saves(monkeypatch), Toy(), replace(PLAIN, steps=5, checkpoint_every=2)
    assert train(model, model.loss, config, tmp_path / "folder" / "resume.pt")
    assert found == [2, 4, 5]


def test_a_run_stops_where_it_is_told_to(tmp_path, monkeypatch):
    found, model, seen = saves(monkeypatch), Toy(), []

    def loss_of(step):
        seen.append(step)
        return model.loss(step)

    assert not train(model, loss_of, PLAIN, tmp_path / "r", stop_after=2)
    assert (seen, found) == ([0, 1], [2])
    assert not train(model, loss_of, PLAIN, tmp_path / "r", stop_after=2)  # is there already
    assert train(model, loss_of, PLAIN, tmp_path / "r", stop_after=100)
    assert (seen, found) == ([*range(6)], [2, 6])
    assert train(model, loss_of, PLAIN, tmp_path / "r")  # done already
    assert seen == [*range(6)]


def test_it_tells_how_it_goes(tmp_path, capsys):
    model = Toy()
    first = model.loss(0).item()
    train(model, model.loss, PLAIN, tmp_path / "resume.pt", title="toys")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].startswith("toys step 6/6  loss ")
    assert lines[0].startswith(f"toys step 1/6  loss {first:.4f}  ")


def test_every_is_called_behind_every_nth_step(tmp_path):
    model, calls = Toy(), []
    every = (2, lambda step: calls.append((step, values(model)["outer"])))
    train(model, model.loss, replace(PLAIN, steps=5), tmp_path / "r", every=every)
    assert [step for step, _ in calls] == [2, 4] and not torch.equal(calls[0][1], calls[1][1])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("during", ["step", "every"])
def test_ctrl_c_finishes_the_step_and_saves(tmp_path, during):
    model, whole = Toy(), Toy()
    train(whole, whole.loss, PLAIN, tmp_path / "whole.pt")

    def loss_of(step):
        if during == "step" and step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return model.loss(step)

    def callback(step):
        if during == "every":
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"resume\.pt: holds the run after step 3$"):
        train(model, loss_of, PLAIN, tmp_path / "resume.pt", every=(3, callback))
    assert signal.getsignal(signal.SIGINT) is before
    resumed, seen = Toy(), []
    assert train(resumed, lambda step: seen.append(step) or resumed.loss(step), PLAIN, tmp_path / "resume.pt")
    assert seen == [3, 4, 5]
    assert all(torch.equal(value, values(whole)[name]) for name, value in values(resumed).items())


@pytest.mark.timeout(60)
def test_ctrl_c_in_the_last_step_changes_nothing(tmp_path):
    model = Toy()

    def loss_of(step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return model.loss(step)

    assert train(model, loss_of, PLAIN, tmp_path / "resume.pt")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_in_parts_is_the_whole_run(tmp_path, optimizer):
    config = replace(PLAIN, optimizer=optimizer, weight_decay=0.1, warmup_steps=2)
    whole, first, second = Toy(), Toy(), Toy()
    train(whole, whole.loss, config, tmp_path / "whole.pt")
    train(first, first.loss, config, tmp_path / "parts.pt", stop_after=3)
    elsewhere = replace(config, checkpoint_every=1, compile=True)
    assert train(second, second.loss, elsewhere, tmp_path / "parts.pt")
    assert all(torch.equal(value, values(whole)[name]) for name, value in values(second).items())
    assert not any(torch.equal(value, values(whole)[name]) for name, value in values(Toy()).items())


def test_what_computes_something_else_is_another_run(tmp_path):
    model = Toy()
    train(model, model.loss, PLAIN, tmp_path / "resume.pt", stop_after=1, identity={"data": 1})
    for name, value in (
        ("seed", 1),
        ("steps", 7),
        ("learning_rate", 0.2),
        ("bf16", True),
        ("weight_decay", 1.0),
    ):
        with pytest.raises(
            ValueError, match=rf"resume\.pt is of a run with {name}=.*, not {value}; delete it"
        ):
            train(model, model.loss, replace(PLAIN, **{name: value}), tmp_path / "resume.pt")
    with pytest.raises(ValueError, match=r"resume\.pt is of a run with data=1, not 2"):
        train(model, model.loss, PLAIN, tmp_path / "resume.pt", identity={"data": 2})
    assert identity_of(PLAIN, data=1)["data"] == 1
    assert not {"device", "compile", "checkpoint_every"} & identity_of(PLAIN).keys()


def test_broken_states_are_named(tmp_path):
    path, model = tmp_path / "resume.pt", Toy()
    train(model, model.loss, PLAIN, path, stop_after=1)
    whole = path.read_bytes()
    good = read_state(path, identity_of(PLAIN))
    assert good["step"] == 1

    for content in (b"", b"nonsense", whole[: len(whole) // 2], whole[:-100]):
        path.write_bytes(content)
        for mapped in (False, True):
            with pytest.raises(ValueError, match=r"resume\.pt: is no saved state of this run; delete it"):
                read_state(path, identity_of(PLAIN), mapped=mapped)
    for content in (
        [1], {}, {"config": good["config"]}, {**good, "step": "1"}, {**good, "step": -1}, {**good, "step": 7},
        {**good, "model": {}}, {**good, "model": None}, {**good, "optimizers": []},
        {**good, "optimizers": [{}]}, {**good, "config": None}, {**good, "model": nn.Linear(1, 1)},
    ):  # fmt: skip
        torch.save(content, path)
        with pytest.raises(
            ValueError, match=r"resume\.pt: is no saved state of this run; delete it"
        ) as error:
            train(model, model.loss, PLAIN, path)
        assert len(str(error.value).splitlines()) == 1 and not str(error.value).endswith((": ", "\n"))


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_state_runs_no_code(tmp_path):
    path, model = tmp_path / "resume.pt", Toy()
    train(model, model.loss, PLAIN, path, stop_after=1)
    torch.save({**read_state(path, {}), "more": Touch(tmp_path / "made")}, path)
    with pytest.raises(ValueError, match=r"resume\.pt: is no saved state"):
        train(model, model.loss, PLAIN, path)
    assert not (tmp_path / "made").exists()


def test_a_save_that_fails_leaves_the_old_state(tmp_path, monkeypatch):
    path, model = tmp_path / "resume.pt", Toy()
    train(model, model.loss, PLAIN, path, stop_after=1)
    before = path.read_bytes()

    def half(content, file):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        train(model, model.loss, PLAIN, path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["resume.pt"]
