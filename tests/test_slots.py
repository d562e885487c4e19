"""What a Trainer is given is used, or refused before the first step."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import DefaultFlowCallback, Trainer, TrainerCallback
from transformers.trainer_utils import HPSearchBackend

import hf_tfopt as tfo
from hf_tfopt.objective_slot import fitted_objective
from hf_tfopt.slots import refuse_what_deepspeed_drops
from tests.invariants.splits import Rows
from tests.models import batch_for, tiny
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
    refuse_what_deepspeed_drops(trainer, False)  # nothing is given, nothing dropped
    setattr(trainer, given[section], object())
    with pytest.raises(ValueError, match=f"has a section '{section}'"):
        refuse_what_deepspeed_drops(trainer, False)
    config.clear()
    refuse_what_deepspeed_drops(trainer, True)


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


class Search(TrainerCallback):
    """What the host's search does with a trainer: before a trial, and with its score."""

    trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.objective = None

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.objective = 0.5


@pytest.mark.invariant
def test_a_search_does_not_touch_the_loss(tmp_path: Path) -> None:
    losses = []
    for callbacks in ([], [Search()]):
        options = {"gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
        data = {"train_dataset": Rows(24), "eval_dataset": Rows(5)}
        args = arguments(tmp_path, **options)
        trainer = tfo.TfoptTrainer(tiny("bert"), args, callbacks=callbacks, **data)
        for callback in callbacks:
            callback.trainer = trainer
        trainer.train()
        losses.append([e["loss"] for e in trainer.state.log_history if "loss" in e])
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_an_attached_schedule_that_deepspeed_would_replace_is_refused(tmp_path: Path) -> None:
    trainer = Trainer(tiny("bert"), arguments(tmp_path), train_dataset=Rows(12))
    trainer.is_deepspeed_enabled = True
    trainer.args.hf_deepspeed_config = SimpleNamespace(config={"scheduler": {}})
    with pytest.raises(ValueError, match="has a section 'scheduler'"):
        tfo.attach(trainer, schedule="cosine")
    assert "create_scheduler" not in vars(trainer)


def test_a_second_schedule_is_refused(tmp_path: Path) -> None:
    ours = tfo.TfoptTrainer(
        tiny("bert"), arguments(tmp_path), train_dataset=Rows(12), schedule="cosine"
    )
    stock = tfo.attach(
        Trainer(tiny("bert"), arguments(tmp_path), train_dataset=Rows(12)), schedule="cosine"
    )
    for trainer in (ours, stock):
        with pytest.raises(ValueError, match="was given a scheduler already"):
            tfo.attach(trainer, schedule="linear")


def test_callbacks_are_attached_once_and_where_they_belong(tmp_path: Path) -> None:
    trainer = Trainer(tiny("bert"), arguments(tmp_path), train_dataset=Rows(12))
    given = [tfo.GroupRates(), tfo.EvaluationWeights()]
    for _ in range(2):
        tfo.attach(trainer, callbacks=given)
        trainer.compute_loss_func = None
    callbacks = trainer.callback_handler.callbacks
    assert [callbacks.count(callback) for callback in given] == [1, 1]
    flow = next(i for i, c in enumerate(callbacks) if isinstance(c, DefaultFlowCallback))
    assert callbacks[flow + 1] is given[0] and callbacks[-1] is given[1]


def test_a_subclass_may_override_create_optimizer_as_the_host_documents_it(tmp_path: Path) -> None:
    class Own(Trainer):
        def create_optimizer(self):
            return super().create_optimizer()

    class Both(tfo.TfoptMixin, Own):
        pass

    trainer = Both(tiny("bert"), arguments(tmp_path), train_dataset=Rows(12))
    trainer.train()
    assert trainer.state.global_step == 3


def test_a_search_over_the_schedule_is_refused_beside_the_hosts_optimizer(tmp_path: Path) -> None:
    trainer = tfo.TfoptTrainer(
        tiny("bert"), arguments(tmp_path), train_dataset=Rows(12), schedule="cosine"
    )
    trainer.hp_search_backend = HPSearchBackend.RAY
    trainer._hp_search_setup({"lr_scheduler_type": "linear"})
    with pytest.raises(ValueError, match="the search over lr_scheduler_type"):
        trainer.create_optimizer()


def test_several_gpus_in_one_process_leave_the_loss_to_the_host_aloud(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer: Any = SimpleNamespace(args=SimpleNamespace(n_gpu=2), is_deepspeed_enabled=False)
    model = tiny("bert")
    with caplog.at_level("WARNING"):
        assert fitted_objective(trainer, None, model, batch_for(model)) is None
    assert "start one process for each with torchrun" in caplog.text
    with pytest.raises(ValueError, match="2 GPUs in one process"):
        fitted_objective(trainer, tfo.LanguageModeling(), model, batch_for(model))
