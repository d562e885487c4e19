"""What a Trainer is given is used, or refused before the first step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import Trainer
from transformers.trainer_utils import HPSearchBackend

import hf_tfopt as tfo
from hf_tfopt.slots import refuse_what_deepspeed_drops
from tests.invariants.splits import Rows
from tests.models import tiny
from tests.test_trainer import arguments


def searching(folder: Path, lr: float | None, **options: Any) -> tfo.TfoptTrainer:
    """A trainer in the middle of a search, whose trials are dicts of numbers."""
    trainer = tfo.TfoptTrainer(
        tiny("bert"),
        arguments(folder, lr_scheduler_type="constant"),
        train_dataset=Rows(12),
        optimizer_cls_and_kwargs=tfo.optimizer("adamw", lr=lr),
        **options,
    )
    trainer.hp_search_backend = HPSearchBackend.RAY
    return trainer


def test_the_searched_rate_is_the_one_trained_with(tmp_path: Path) -> None:
    trainer = searching(tmp_path, lr=None)
    for rate in (3e-4, 2e-3):
        trainer._hp_search_setup({"learning_rate": rate})
        trainer.optimizer = None
        assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {rate}


@pytest.mark.parametrize(
    ("lr", "trial", "options", "words"),
    [
        (1e-3, {"learning_rate": 3e-4}, {}, "the search over learning_rate would have no effect"),
        (None, {"weight_decay": 0.1}, {}, "the search over weight_decay"),
        (None, {"warmup_steps": 7}, {"schedule": "cosine"}, "the search over warmup_steps"),
    ],
)
def test_a_search_without_effect_is_refused(
    lr: float | None, trial: dict[str, Any], options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    trainer = searching(tmp_path, lr, **options)
    trainer._hp_search_setup(trial)
    with pytest.raises(ValueError, match=words):
        trainer.create_optimizer()


def test_a_fixed_rate_outside_a_search_is_kept(tmp_path: Path) -> None:
    trainer = searching(tmp_path, lr=1e-3)
    trainer._hp_search_setup(None)
    assert trainer.create_optimizer().param_groups[0]["lr"] == 1e-3


def test_a_stock_trainer_cannot_tell_its_rate(tmp_path: Path) -> None:
    trainer = Trainer(
        tiny("bert"),
        arguments(tmp_path),
        train_dataset=Rows(12),
        optimizer_cls_and_kwargs=tfo.optimizer("adamw", lr=None),
    )
    with pytest.raises(ValueError, match="a stock Trainer does not tell"):
        trainer.train()


@pytest.mark.parametrize("section", ["optimizer", "scheduler"])
def test_what_a_deepspeed_configuration_would_replace_is_refused(section: str) -> None:
    given = {"optimizer": "optimizer_cls_and_kwargs", "scheduler": "lr_scheduler"}
    names = ("optimizer", "optimizer_cls_and_kwargs", "lr_scheduler", "schedule")
    config: dict[str, Any] = {section: {"type": "Adam"}}
    trainer = SimpleNamespace(
        **dict.fromkeys(names),
        is_deepspeed_enabled=True,
        args=SimpleNamespace(hf_deepspeed_config=SimpleNamespace(config=config)),
    )
    refuse_what_deepspeed_drops(trainer)  # nothing is given, nothing dropped
    setattr(trainer, given[section], object())
    with pytest.raises(ValueError, match=f"has a section '{section}'"):
        refuse_what_deepspeed_drops(trainer)
    config.clear()
    refuse_what_deepspeed_drops(trainer)


@pytest.mark.parametrize("attached", [False, True])
def test_schedule_free_leaves_its_average(attached: bool, tmp_path: Path) -> None:
    """The weights after training are those that it evaluates, without anything to remember."""
    pytest.importorskip("schedulefree")
    kind = Trainer if attached else tfo.TfoptTrainer
    trainer = kind(
        tiny("bert"),
        arguments(tmp_path, lr_scheduler_type="constant"),
        train_dataset=Rows(12),
        optimizer_cls_and_kwargs=tfo.optimizer("schedule_free", lr=1e-3),
    )
    if attached:
        tfo.attach(trainer)
    trainer.train()
    assert not any(group["train_mode"] for group in trainer.optimizer.param_groups)
