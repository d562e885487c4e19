import math
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

import hf_tfopt as tfo
from hf_tfopt.callbacks.base import Intervention
from hf_tfopt.callbacks.training import Training
from tests.callbacks.runs import history_of, trainer_with
from tests.callbacks.test_gradients import measured


class Overflow(Intervention):
    """Gradients of the first and the third step of a run that are no numbers, before unscaling."""

    def before_step(self, training: Training) -> None:
        self._hook: Any = None
        if training.state.global_step in (0, 2):
            head = training.model.cls.predictions.bias
            self._hook = head.register_hook(lambda gradient: gradient * math.inf)

    def stepped(self, training: Training) -> None:
        if self._hook is not None:
            self._hook.remove()


def scaled_trainer(folder: Path, **options: Any) -> Trainer:
    """A CPU with fp16's scaler, which halves at an overflow and doubles after two steps without."""
    callbacks = [tfo.LossScaleMonitor(), Overflow()]
    trainer = trainer_with(folder, callbacks, "attach", fp16=True, **options)
    trainer.accelerator.native_amp = True
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    return trainer


def test_the_scale_and_the_updates_it_cost(tmp_path: Path) -> None:
    trainer = scaled_trainer(tmp_path, max_steps=5)
    trainer.train()
    found = [(entry["loss_scale"], entry["num_skipped_updates"]) for entry in history_of(trainer)]
    # halved in steps 1 and 3, doubled after steps 4 and 5
    assert found == [(512.0, 1), (512.0, 0), (256.0, 1), (256.0, 0), (512.0, 0)]


def test_skipped_updates_are_counted_since_the_last_log_also_over_a_stop(tmp_path: Path) -> None:
    options = {"logging_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = scaled_trainer(tmp_path, **options)
    whole.train()
    assert [entry["num_skipped_updates"] for entry in history_of(whole)] == [2]
    again = scaled_trainer(tmp_path / "again", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    ours, theirs = measured(again)[0], measured(whole)[0]
    assert ours["num_skipped_updates"] == theirs["num_skipped_updates"]


def test_without_a_scaler_nothing_is_logged(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, [tfo.LossScaleMonitor()], bf16=True)
    trainer.train()
    assert "loss_scale" not in history_of(trainer)[0]


def test_a_scaler_that_is_switched_off_is_none(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, [tfo.LossScaleMonitor()], "attach")
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", enabled=False)
    trainer.train()
    assert "loss_scale" not in history_of(trainer)[0]
