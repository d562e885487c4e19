"""Callbacks beside each other: behind a guard that leaves steps out and goes back."""

import gc
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

import hf_tfopt as tfo
from tests.callbacks.examples import EXAMPLES
from tests.callbacks.faults import Fault
from tests.callbacks.runs import history_of, trainer_with, weights_of
from tests.models import tiny
from tests.references.averaging import tail_average


class Spoil(TrainerCallback):
    """Makes a weight NaN after some updates; None: after every one. No row has its token."""

    def __init__(self, *steps: int | None):
        self.steps = steps

    def on_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        weight = next(model.parameters())
        is_due = state.global_step + 1 in self.steps or None in self.steps
        if is_due and weight.grad is not None:
            with torch.no_grad():
                weight[90, 3] = math.nan


class Trail(TrainerCallback):
    """The weights that are trained, after every step."""

    def __init__(self) -> None:
        self.weights: list[list[torch.Tensor]] = []

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        self.weights.append([p.detach().clone() for p in model.parameters()])


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("is_adapted", [False, True], ids=["whole", "lora-bf16"])
def test_every_callback_goes_on_behind_a_guard_with_a_fault(
    name: str, is_adapted: bool, tmp_path: Path
) -> None:
    """Given in the wrong order; the first step but one is left out."""
    model: Any = tiny("bert")
    if is_adapted:
        model = get_peft_model(model, LoraConfig(target_modules=["query", "dense"]))
    callbacks = [EXAMPLES[name](), tfo.StabilityGuard("rollback")]
    trainer = trainer_with(tmp_path, callbacks, model=model, bf16=is_adapted)
    Fault("loss", math.nan, (2,)).into(trainer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    trainer.train()
    assert trainer.state.global_step == 4
    assert weights_of(model).isfinite().all()
    kept = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert frozen <= kept < before.keys()
    for entry in history_of(trainer)[2:]:
        numbers = [value for value in entry.values() if isinstance(value, float)]
        assert all(map(math.isfinite, numbers)), entry


AVERAGES = {
    "exponential": lambda: tfo.ExponentialAverage(0.9),
    "tail": lambda: tfo.StochasticWeightAverage(0),
    "latest": lambda: tfo.LatestWeightAverage(3, every=1),
}


@pytest.mark.parametrize("name", AVERAGES)
@pytest.mark.parametrize("step", [3, 4])
def test_a_spoilt_weight_is_in_no_average(name: str, step: int, tmp_path: Path) -> None:
    guards = [tfo.StabilityGuard(snapshot_every=50), AVERAGES[name]()]
    options = {"eval_strategy": "steps", "eval_steps": 6, "max_steps": 6}
    trainer = trainer_with(tmp_path, guards, **options)
    trainer.add_callback(Spoil(step))
    trainer.train()
    assert weights_of(trainer.model).isfinite().all()
    losses = [e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e]
    assert len(losses) == 1 and math.isfinite(losses[0])


def test_what_a_rollback_gives_up_is_in_no_average(tmp_path: Path) -> None:
    """Snapshots after steps 0 and 3; step 4 is given up with step 5."""
    for make in (AVERAGES["tail"], lambda: tfo.LatestWeightAverage(9, every=1)):
        callbacks = [tfo.StabilityGuard("rollback", snapshot_every=3), make()]
        torch.manual_seed(0)
        trainer = trainer_with(tmp_path, callbacks, max_steps=6)
        Fault("loss", math.nan, (5,)).into(trainer)
        trainer.add_callback(trail := Trail())
        trainer.train()
        assert [e["num_averaged"] for e in history_of(trainer)] == [1, 2, 3, 4, 3, 4]
        expected = tail_average([trail.weights[i] for i in (0, 1, 2, 5)], 0)
        for found, one in zip(trainer.model.parameters(), expected, strict=True):
            # fp32 averages of a few weights against fp64
            torch.testing.assert_close(found.double(), one.double(), rtol=1e-6, atol=1e-6)


def test_a_rollback_before_the_first_average_leaves_none(tmp_path: Path) -> None:
    callbacks = [tfo.StabilityGuard("rollback"), tfo.ExponentialAverage(0.9)]
    trainer = trainer_with(tmp_path, callbacks)
    Fault("loss", math.nan, (2,)).into(trainer)
    trainer.train()
    assert [entry["num_averaged"] for entry in history_of(trainer)] == [1, 0, 1, 2]


def test_steps_that_are_left_out_are_not_averaged(tmp_path: Path) -> None:
    callbacks = [tfo.StabilityGuard(patience=9), tfo.StochasticWeightAverage(0)]
    trainer = trainer_with(tmp_path, callbacks, max_steps=6)
    Fault("loss", math.nan, (3, 4, 5)).into(trainer)
    trainer.train()
    assert [entry["num_averaged"] for entry in history_of(trainer)] == [1, 2, 2, 2, 2, 3]


@pytest.mark.invariant
@pytest.mark.parametrize("name", AVERAGES)
def test_resumed_before_a_rollback_equals_never_stopped(name: str, tmp_path: Path) -> None:
    runs = []
    for folder, resume in (("whole", None), ("again", str(tmp_path / "whole" / "checkpoint-3"))):
        callbacks = [tfo.StabilityGuard("rollback", snapshot_every=50), AVERAGES[name]()]
        torch.manual_seed(0)
        options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
        trainer = trainer_with(tmp_path / folder, callbacks, **options)
        Fault("loss", math.nan, (5,)).into(trainer)
        trainer.train(resume_from_checkpoint=resume)
        runs.append(trainer)
    assert torch.equal(*(weights_of(trainer.model) for trainer in runs))
    assert history_of(runs[0]) == history_of(runs[1])


def test_a_run_that_is_stopped_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    callbacks = [tfo.ExponentialAverage(), tfo.StabilityGuard("stop")]
    trainer = trainer_with(tmp_path, callbacks, save_strategy="steps", save_steps=3)
    Fault("loss", math.nan, (3,)).into(trainer)
    trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_nothing_of_a_training_is_held_after_it(tmp_path: Path) -> None:
    callbacks: list[Any] = [tfo.StabilityGuard(), tfo.ExponentialAverage()]
    trainer = trainer_with(tmp_path, callbacks)
    trainer.train()
    weights = [weakref.ref(parameter) for parameter in trainer.model.parameters()]
    del trainer
    gc.collect()
    assert not any(weight() is not None for weight in weights)
