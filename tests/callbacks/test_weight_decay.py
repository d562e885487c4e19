import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer

import hf_tfopt as tfo
from hf_tfopt.callbacks.training import Training
from hf_tfopt.callbacks.weight_decay import adaptive_decay
from tests.invariants.splits import Rows
from tests.models import tiny
from tests.test_trainer import arguments


def test_follows_the_papers_equation_over_ten_steps() -> None:
    print("seed 0")
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))]
    naive, ours = 0.0, 0.0
    for _ in range(10):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        squares = [0.0, 0.0]
        for weight in weights:
            for g, w in zip(weight.grad.flatten().tolist(), weight.flatten().tolist(), strict=True):
                squares[0] += g * g
                squares[1] += w * w
        naive = 0.1 * naive + 0.9 * 0.02 * math.sqrt(squares[0] / squares[1])
        ours = adaptive_decay(weights, ours, 0.02)
        assert ours == pytest.approx(naive, rel=1e-5)  # fp32 norms


def test_what_cannot_be_told_leaves_the_decay_as_it_was() -> None:
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), math.nan)
    assert adaptive_decay([weight], 0.5, 0.02) == 0.5
    weight.grad = torch.full((3,), math.inf)
    assert adaptive_decay([weight], 0.5, 0.02) == 0.5
    with pytest.raises(ValueError, match="no weight that decays has a gradient"):
        adaptive_decay([nn.Parameter(torch.ones(3))], 0.5, 0.02)


def trainer_with(folder: Path, callbacks: list[Any], decay: float = 0.1, **options: Any) -> Trainer:
    return Trainer(
        tiny("bert"),
        arguments(folder, **options),
        train_dataset=Rows(40),
        callbacks=callbacks,
        optimizer_cls_and_kwargs=tfo.optimizer("sgd", lr=0.1, weight_decay=decay),
    )


def test_writes_the_decay_of_the_groups_that_decay(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, [tfo.AdaptiveWeightDecay(0.02)])
    trainer.train()
    decays = {group["name"]: group["weight_decay"] for group in trainer.optimizer.param_groups}
    assert decays.pop("vectors") == 0
    assert len(set(decays.values())) == 1
    assert 0 < next(iter(decays.values())) != 0.1


@pytest.mark.invariant
def test_stop_and_resume_equals_never_stopped(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "seed": 3}
    whole = trainer_with(tmp_path, [tfo.AdaptiveWeightDecay(0.02)], **options)
    whole.train()
    again = trainer_with(tmp_path, [tfo.AdaptiveWeightDecay(0.02)], **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for found, expected in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert found.equal(expected)
    plain = trainer_with(tmp_path / "plain", [], **options)
    plain.train()
    weights = [model.get_input_embeddings().weight for model in (plain.model, whole.model)]
    assert not weights[0].equal(weights[1])


def training(optimizer: torch.optim.Optimizer) -> Training:
    state = SimpleNamespace(global_step=0, is_world_process_zero=True)
    return Training(SimpleNamespace(), state, SimpleNamespace(), None, optimizer)


def test_a_decay_of_nought_for_a_step_does_not_end_it() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, weight_decay=0.1)
    callback = tfo.AdaptiveWeightDecay(0.02)
    callback.begin(training(optimizer))
    decays = []
    for gradient in (0.0, 1.0):
        weight.grad = torch.full((3,), gradient)
        callback.gradients(training(optimizer))
        decays.append(optimizer.param_groups[0]["weight_decay"])
    assert decays == [0, pytest.approx(0.9 * 0.02)]


def test_a_step_without_gradients_keeps_the_decay() -> None:
    """As a guard leaves it, be it the first."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, weight_decay=0.5)
    callback = tfo.AdaptiveWeightDecay(0.02)
    callback.begin(training(optimizer))
    decays = []
    for gradient in (None, torch.ones(3), None, torch.ones(3)):
        weight.grad = gradient
        callback.gradients(training(optimizer))
        decays.append(optimizer.param_groups[0]["weight_decay"])
    once = 0.9 * 0.02
    assert decays == pytest.approx([0.5, once, once, 0.1 * once + once])
    callback.ended(training(optimizer))
    assert "events" not in callback.remembered


def test_a_run_without_a_gradient_is_told_of() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, weight_decay=0.5)
    callback = tfo.AdaptiveWeightDecay(0.02)
    callback.begin(training(optimizer))
    callback.gradients(training(optimizer))
    callback.ended(training(optimizer))
    (event,) = callback.remembered["events"]
    assert event["kind"] == "no weight decay"


def test_refuses_what_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="strength must be a number above 0, got 0"):
        tfo.AdaptiveWeightDecay(0)
    with pytest.raises(ValueError, match="no group has a weight_decay above 0"):
        trainer_with(tmp_path, [tfo.AdaptiveWeightDecay(0.02)], decay=0.0).train()


def test_an_optimizer_that_compiles_its_step_is_refused() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=torch.tensor(0.1), weight_decay=0.1)
    with pytest.raises(ValueError, match="would compile its step anew"):
        tfo.AdaptiveWeightDecay(0.02).begin(training(optimizer))
