"""A schedule in the three places where a Trainer takes one."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

import hf_tfopt as tfo
from tests.invariants.splits import Rows
from tests.models import tiny
from tests.test_trainer import arguments

PEAK = 1e-3
WAYS = ("TfoptTrainer", "attach", "attach to TfoptTrainer")


def trainer_with(folder: Path, way: str, schedule: Any, **options: Any) -> Trainer:
    options = {"learning_rate": PEAK, "max_steps": 6, **options}
    parts = (tiny("bert"), arguments(folder, **options))
    if way == "TfoptTrainer":
        return tfo.TfoptTrainer(*parts, train_dataset=Rows(24), schedule=schedule)
    kind = Trainer if way == "attach" else tfo.TfoptTrainer
    return tfo.attach(kind(*parts, train_dataset=Rows(24)), schedule=schedule)


def rates(trainer: Trainer) -> list[float]:
    return [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]


@pytest.mark.parametrize("way", WAYS)
def test_the_run_has_the_schedules_rates(tmp_path: Path, way: str) -> None:
    trainer = trainer_with(tmp_path, way, tfo.schedule("linear", warmup_steps=2))
    trainer.train()
    expected = [PEAK * share for share in (1 / 2, 1, 1, 3 / 4, 2 / 4, 1 / 4)]
    assert rates(trainer) == pytest.approx(expected)
    trainer.train()  # a second time: a new schedule
    assert rates(trainer) == pytest.approx(expected)


@pytest.mark.parametrize("way", WAYS)
def test_a_name_is_enough(tmp_path: Path, way: str) -> None:
    trainer = trainer_with(tmp_path, way, "constant")
    trainer.train()
    assert rates(trainer) == [PEAK] * 6


@pytest.mark.invariant
@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_run_goes_on_and_may_become_longer(tmp_path: Path, way: str) -> None:
    def run(num_steps: int, folder: str, checkpoint: str | None = None) -> Trainer:
        schedule = tfo.schedule("linear", warmup_steps=2)
        saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": num_steps}
        trainer = trainer_with(tmp_path / folder, way, schedule, **saving)
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    whole = run(6, "whole")
    checkpoint = str(tmp_path / "whole" / "checkpoint-3")
    resumed = run(6, "resumed", checkpoint)
    assert rates(resumed) == rates(whole)
    for found, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(found, expected)
    longer = run(8, "longer", checkpoint)
    assert rates(longer)[3:] == pytest.approx(
        [PEAK * share for share in (5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6)]
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "option", [{"warmup_steps": 3}, {"lr_scheduler_kwargs": {"num_cycles": 1}}]
)
def test_a_second_schedule_is_refused(tmp_path: Path, way: str, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"args.{next(iter(option))}=.* silently be ignored"):
        trainer_with(tmp_path, way, "cosine", **option)


@pytest.mark.parametrize("way", WAYS)
def test_what_does_not_fit_stops_before_the_first_step(tmp_path: Path, way: str) -> None:
    trainer = trainer_with(tmp_path, way, tfo.schedule("linear", warmup_steps=7))
    with pytest.raises(ValueError, match="warmup_steps is 7, the whole run has 6 updates"):
        trainer.train()
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_scheduler_of_the_users_own_is_not_replaced(tmp_path: Path, way: str) -> None:
    model = tiny("bert")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    own = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with pytest.raises(ValueError, match="given a scheduler already"):
        if way == "TfoptTrainer":
            tfo.TfoptTrainer(
                model, arguments(tmp_path), optimizers=(optimizer, own), schedule="cosine"
            )
        else:
            kind = Trainer if way == "attach" else tfo.TfoptTrainer
            trainer = kind(model, arguments(tmp_path), optimizers=(optimizer, own))
            tfo.attach(trainer, schedule="cosine")


@pytest.mark.parametrize("way", WAYS)
def test_deepspeed_may_ask_a_copy_for_another_optimizer(tmp_path: Path, way: str) -> None:
    """As the host does (5.23, integrations/deepspeed.py:597-606)."""
    trainer = trainer_with(tmp_path, way, "cosine")
    other = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    asked = copy.copy(trainer)
    asked.lr_scheduler = None
    scheduler = asked.create_scheduler(num_training_steps=10, optimizer=other)
    assert scheduler.optimizer is other
    assert trainer.lr_scheduler is None


def test_groups_with_rates_of_their_own_keep_their_ratio(tmp_path: Path) -> None:
    trainer = tfo.TfoptTrainer(
        tiny("bert"),
        arguments(tmp_path, max_steps=2),
        train_dataset=Rows(24),
        optimizer_cls_and_kwargs=tfo.optimizer("muon", lr=0.02, adamw_lr=1e-3),
        schedule=tfo.schedule("cosine", floor={"matrices": 0.5}),
    )
    trainer.train()
    found = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert found["matrices"] == pytest.approx(0.01)
    assert found["vectors"] == pytest.approx(0, abs=1e-12)
