import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

import hf_tfopt as tfo
from hf_tfopt.callbacks.base import Callback, Intervention
from hf_tfopt.callbacks.gradient_flow import to_weights, vanishing_blocks
from hf_tfopt.callbacks.training import Training
from tests.callbacks.runs import history_of, trainer_with
from tests.callbacks.test_gradients import logged, measured
from tests.models import tiny
from tests.references.gradients import block_of, gradients_of, norms_by


class Spy(Callback):
    """Copies gradients and weights before each update."""

    def __init__(self) -> None:
        super().__init__()
        self._gradients: dict[str, torch.Tensor] = {}
        self._weights: dict[str, torch.Tensor] = {}

    def gradients(self, training: Training) -> None:
        self._gradients = gradients_of(training.model)
        self._weights = {n: p.detach().clone() for n, p in training.model.named_parameters()}


class Damp(Intervention):
    """Makes the gradient of encoder.0 smaller, or takes it away, from a step on until another."""

    def __init__(self, factor: float | None, start: int = 0, stop: int = 99, block: int = 0):
        super().__init__()
        self.factor = factor
        self.start = start
        self.stop = stop
        self.block = block

    def before_step(self, training: Training) -> None:
        self._hooks: list[Any] = []
        if self.start <= training.state.global_step < self.stop:
            layer = training.model.bert.encoder.layer[self.block]
            for parameter in layer.parameters():
                if self.factor is None:
                    parameter.requires_grad_(True)
                    self._hooks.append(parameter.register_post_accumulate_grad_hook(_drop))
                else:
                    self._hooks.append(parameter.register_hook(lambda g: g * self.factor))

    def stepped(self, training: Training) -> None:
        for hook in self._hooks:
            hook.remove()


def _drop(parameter: torch.Tensor) -> None:
    parameter.grad = None


def events_of(trainer: Trainer) -> list[tuple[int, str, list[str]]]:
    return [
        (event["step"], event["kind"], event["blocks"])
        for entry in trainer.state.log_history
        for event in entry.get("events", [])
    ]


def test_ratios_are_those_of_copies(tmp_path: Path) -> None:
    spy = Spy()
    trainer = trainer_with(tmp_path, [spy, tfo.GradientFlow(every=1)], max_grad_norm=0.1)
    trainer.train()
    model, entry = trainer.model, len(history_of(trainer)) - 1
    now = {name: parameter.detach() for name, parameter in model.named_parameters()}
    moved = {name: now[name] - before for name, before in spy._weights.items()}
    blocks = block_of(model)
    weights = norms_by(blocks, spy._weights)
    for prefix, tensors in (("gradient_to_weight/", spy._gradients), ("update_to_weight/", moved)):
        norms = norms_by(blocks, tensors)
        expected = {block: norms[block] / weights[block] for block in weights}
        # fp32 sums of some 1e4 squares in another order
        assert logged(trainer, prefix, entry) == pytest.approx(expected, rel=1e-5)
    assert history_of(trainer)[entry]["num_dead"] == 0
    assert history_of(trainer)[entry]["num_vanishing"] == 0


@pytest.mark.parametrize("factor", [0.0, None])
def test_a_block_without_a_gradient_is_dead_after_some_steps_and_told_once(
    factor: float | None, tmp_path: Path, caplog: Any
) -> None:
    monitor, damp = tfo.GradientFlow(every=1, patience=2), Damp(factor, 1, 4)
    trainer = trainer_with(tmp_path, [monitor, damp], max_steps=6)
    trainer.train()
    assert [entry["num_dead"] for entry in history_of(trainer)] == [0, 0, 1, 1, 0, 0]
    assert events_of(trainer) == [(3, "dead gradient", ["encoder.0"])]
    assert caplog.text.count("encoder.0: no gradient in 2 measured steps") == 1


def test_a_vanishing_gradient_is_told_once(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, [tfo.GradientFlow(every=1), Damp(1e-6, 1, 3, block=1)])
    trainer.train()
    assert [entry["num_vanishing"] for entry in history_of(trainer)] == [0, 1, 1, 0]
    assert events_of(trainer) == [(2, "vanishing gradient", ["encoder.1"])]


def test_counting_goes_on_over_a_stop_and_between_logs(tmp_path: Path) -> None:
    options = {"max_steps": 6, "logging_steps": 6, "save_strategy": "steps", "save_steps": 3}

    def trainer(folder: Path) -> Trainer:
        callbacks = [tfo.GradientFlow(every=1, patience=4), Damp(0.0, 1, 5)]
        return trainer_with(folder, callbacks, **options)

    whole, again = trainer(tmp_path), trainer(tmp_path / "again")
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [kind for _, kind, _ in events_of(whole)] == ["dead gradient"]
    assert measured(again) == measured(whole)


def test_frozen_blocks_are_not_dead(tmp_path: Path) -> None:
    model = tiny("bert")
    model.bert.requires_grad_(False)
    trainer = trainer_with(tmp_path, [tfo.GradientFlow(every=1, patience=1)], model=model)
    trainer.train()
    assert history_of(trainer)[3]["num_dead"] == 0
    assert {*logged(trainer, "update_to_weight/", 3)} == {"head"}


def test_no_memory_is_held_between_steps(tmp_path: Path) -> None:
    monitor = tfo.GradientFlow(every=1)
    trainer_with(tmp_path, [monitor]).train()
    assert monitor._before == [] and monitor._vectors == {} and monitor._taken == []


def test_weights_of_zero_have_no_ratio() -> None:
    found = to_weights(["a", "b", "c"], [2.0, 3.0, 0.0], [4.0, 0.0, 0.0])
    assert found["a"] == 0.5 and found["b"] == math.inf and math.isnan(found["c"])
    assert vanishing_blocks({**found, "d": 1e-9, "e": 0.0}, 1e-4) == ["d"]
    assert vanishing_blocks({"a": math.nan}, 1e-4) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vanishing": 1.0}, "vanishing is 1.0"),
        ({"vanishing": -1e-3}, "vanishing is -0.001"),
        ({"patience": 0}, "patience is 0"),
        ({"every": 0}, "every is 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tfo.GradientFlow(**options)
