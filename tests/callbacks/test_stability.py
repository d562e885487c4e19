"""StabilityGuard in short trainings with injected faults."""

import copy
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

import hf_tfopt as tfo
from tests.callbacks.faults import KINDS, PLACES, Fault
from tests.callbacks.runs import Reporter, history_of, trainer_with, weights_of
from tests.invariants.splits import Rows
from tests.models import tiny
from tests.test_trainer import arguments

ACTIONS = ("skip", "rollback", "lower_lr", "stop")


def faulty(tmp_path: Path, guards: list[Any], fault: Fault, how: str = "tfopt", **options: Any):
    torch.manual_seed(0)
    trainer = trainer_with(tmp_path, guards, how, **{"max_steps": 5, **options})
    fault.into(trainer)
    return trainer


def events_of(trainer: Any) -> list[dict[str, Any]]:
    return [event for entry in trainer.state.log_history for event in entry.get("events", [])]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("action", ACTIONS)
def test_no_weight_is_spoilt(action: str, place: str, kind: str, tmp_path: Path) -> None:
    how = "attach" if kind == "inf" else "tfopt"
    guard = tfo.StabilityGuard(action, snapshot_every=2)
    trainer = faulty(tmp_path, [guard], Fault(place, KINDS[kind]), how)
    trainer.train()
    assert weights_of(trainer.model).isfinite().all()
    (event,) = events_of(trainer)
    assert (event["step"], event["kind"]) == (3, f"non-finite {_seen_as(place)}")
    steps = 3 if action == "stop" else 5
    history = history_of(trainer)
    assert [entry["num_bad_steps"] for entry in history] == [0, 0, 1, 1, 1][:steps]
    losses = [entry["loss"] for entry in history]
    is_hidden = place != "gradient"  # whose loss is right
    assert [loss == "nan" for loss in losses] == [False, False, is_hidden, False, False][:steps]


def _seen_as(place: str) -> str:
    return "loss" if place == "activation" else place


@pytest.mark.parametrize("place", PLACES)
def test_without_a_guard_every_weight_is_spoilt(place: str, tmp_path: Path) -> None:
    """What it is for; else the tests above show nothing."""
    trainer = faulty(tmp_path, [], Fault(place, math.nan))
    trainer.train()
    assert not weights_of(trainer.model).isfinite().any()
    assert not any(entry["loss"] == "nan" for entry in history_of(trainer)), "the host hides it"


@pytest.mark.parametrize("place", PLACES)
def test_a_warning_changes_nothing(place: str, tmp_path: Path) -> None:
    trainer = faulty(tmp_path, [tfo.StabilityGuard("warn")], Fault(place, math.nan))
    trainer.train()
    assert [event["step"] for event in events_of(trainer)] == [3, 4, 5]
    assert not weights_of(trainer.model).isfinite().any()
    assert [entry["loss"] == "nan" for entry in history_of(trainer)][2:] == [
        place != "gradient",
        True,
        True,
    ]


@pytest.mark.invariant
@pytest.mark.parametrize("action", ["warn", *ACTIONS])
@pytest.mark.parametrize("how", ["tfopt", "attach"])
def test_a_clean_run_is_bit_equal_to_one_without(action: str, how: str, tmp_path: Path) -> None:
    found = []
    for guards in ([], [tfo.StabilityGuard(action, snapshot_every=2)]):
        torch.manual_seed(0)
        trainer = trainer_with(tmp_path, guards, how)
        trainer.train()
        losses = [(e["loss"], e["grad_norm"]) for e in trainer.state.log_history if "loss" in e]
        found.append((weights_of(trainer.model), losses, torch.get_rng_state()))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert torch.equal(found[0][2], found[1][2])


class Weights(TrainerCallback):
    """Notes weights and the optimizer's state after every step."""

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, Any]] = []

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs) -> None:
        saved = optimizer.optimizer.state_dict()
        self.seen.append((weights_of(model), json.dumps(plain(saved))))


def plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("optimizer", ["adamw", "lamb", "lion", "adafactor", "schedule_free"])
def test_a_step_left_out_changes_no_bit(optimizer: str, tmp_path: Path) -> None:
    trainer = faulty(tmp_path, [tfo.StabilityGuard()], Fault("loss", math.nan))
    trainer.optimizer_cls_and_kwargs = tfo.optimizer(optimizer, lr=1e-3)
    trainer.add_callback(noted := Weights())
    trainer.train()
    (before, state), (after, same), (later, other) = noted.seen[1:4]
    assert torch.equal(before, after) and state == same
    assert not torch.equal(after, later) and same != other


@pytest.mark.parametrize("optimizer", ["adamw", "schedule_free", "adamw_8bit_torchao"])
@pytest.mark.parametrize("step", [2, 5])
def test_a_rollback_restores_every_bit(optimizer: str, step: int, tmp_path: Path) -> None:
    """Snapshots after steps 0 and 3; the schedule goes on."""
    guard, fault = (
        tfo.StabilityGuard("rollback", snapshot_every=3),
        Fault("loss", math.nan, (step,)),
    )
    trainer = faulty(tmp_path, [guard], fault, max_steps=6, lr_scheduler_type="linear")
    try:
        trainer.optimizer_cls_and_kwargs = tfo.optimizer(optimizer, lr=1e-3)
        trainer.create_optimizer()
    except ImportError:
        pytest.skip("not installed")
    start = weights_of(trainer.model)
    trainer.add_callback(noted := Weights())
    trainer.train()
    target = noted.seen[2] if step == 5 else (start, None)
    assert torch.equal(noted.seen[step - 1][0], target[0])
    if step == 5 and optimizer != "adamw_8bit_torchao":  # whose state is no JSON
        ours, theirs = (json.loads(noted.seen[i][1]) for i in (4, 2))
        assert ours["state"] == theirs["state"]
    rates = [entry["learning_rate"] for entry in history_of(trainer)]
    assert rates == pytest.approx([1e-3 * (6 - i) / 6 for i in range(6)])


def test_the_rest_of_the_run_has_a_lower_rate(tmp_path: Path) -> None:
    guard = tfo.StabilityGuard("lower_lr", lr_factor=0.25)
    fault = Fault("loss", math.nan, (2, 3, 5))
    options = {"max_steps": 6, "lr_scheduler_type": "linear", "save_strategy": "steps"}
    whole = faulty(tmp_path / "whole", [guard], fault, save_steps=3, **options)
    whole.train()
    # the host logs the rate before the step: 2 and 3 follow each other, and count as one
    rates = [entry["learning_rate"] for entry in history_of(whole)]
    factors = [1, 0.25, 0.25, 0.25, 0.0625, 0.0625]
    assert rates == pytest.approx([f * 1e-3 * (6 - i) / 6 for i, f in enumerate(factors)])
    again = tfo.StabilityGuard("lower_lr", lr_factor=0.25)
    rest = faulty(
        tmp_path / "again", [again], Fault("loss", math.nan, (5,)), save_steps=3, **options
    )
    rest.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert [entry["learning_rate"] for entry in history_of(rest)] == rates
    assert torch.equal(weights_of(whole.model), weights_of(rest.model))


@pytest.mark.invariant
@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_resumed_before_and_after_an_event_equals_never_stopped(
    action: str, tmp_path: Path
) -> None:
    steps = (2, 5)
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "num_rows": 24}
    runs = []
    for name in ("whole", "again"):
        guard = tfo.StabilityGuard(action, snapshot_every=2)
        runs.append(faulty(tmp_path / name, [guard], Fault("loss", math.nan, steps), **options))
    whole, rest = runs
    whole.train()
    rest.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert torch.equal(weights_of(whole.model), weights_of(rest.model))
    assert history_of(whole) == history_of(rest)


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_a_stopped_run_writes_no_more(strategy: str, tmp_path: Path) -> None:
    guard, fault = tfo.StabilityGuard("stop"), Fault("gradient", math.inf, (4,))
    options = {"save_strategy": strategy, "save_steps": 1, "logging_steps": 100}
    trainer = faulty(tmp_path, [guard], fault, num_rows=24, **options)
    trainer.train()
    assert trainer.state.global_step == 4
    saved = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert saved == (
        ["checkpoint-3"] if strategy == "epoch" else [f"checkpoint-{i}" for i in (1, 2, 3)]
    )
    assert [event["step"] for event in events_of(trainer)] == [4]


def test_after_many_bad_steps_the_run_ends(tmp_path: Path, caplog: Any) -> None:
    guard = tfo.StabilityGuard(patience=3)
    trainer = faulty(tmp_path, [guard], Fault("loss", math.nan, (1, 2, 4, 5, 6, 7, 8)), max_steps=9)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 6
    assert "the run ends after 3 bad steps in a row" in caplog.text


class Spoil(TrainerCallback):
    """Makes a weight NaN after a step, behind the guard."""

    def __init__(self, *steps: int):
        self.steps = steps

    def on_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step + 1 in self.steps:
            with torch.no_grad():
                next(model.parameters())[90, 3] = math.nan


@pytest.mark.parametrize("options", [{"save_strategy": "steps", "save_steps": 2}, {}])
def test_an_update_that_spoils_a_weight_is_neither_saved_nor_the_end(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """Of a token that no row has, so that no loss shows it."""
    trainer = trainer_with(tmp_path, [tfo.StabilityGuard(snapshot_every=50)], **options)
    trainer.add_callback(Spoil(4))
    trainer.train()
    assert weights_of(trainer.model).isfinite().all()
    assert [event["kind"] for event in events_of(trainer)] == ["non-finite weight"]
    for path in tmp_path.glob("checkpoint-*"):
        model = type(trainer.model).from_pretrained(path)
        assert weights_of(model).isfinite().all()


def test_without_a_snapshot_a_spoilt_weight_is_an_error(tmp_path: Path) -> None:
    guard = tfo.StabilityGuard(snapshot_every=None)
    trainer = faulty(
        tmp_path, [guard], Fault("weight", math.nan), save_strategy="steps", save_steps=4
    )
    with pytest.raises(FloatingPointError, match=r"encoder\.0 after step 2, and no snapshot"):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_a_frozen_weight_cannot_be_mended(tmp_path: Path) -> None:
    model = tiny("bert")
    model.base_model.encoder.layer[0].requires_grad_(False)
    trainer = faulty(tmp_path, [tfo.StabilityGuard()], Fault("weight", math.nan), model=model)
    with pytest.raises(FloatingPointError, match=r"encoder\.0 after step 2, .* not trained"):
        trainer.train()


def test_weights_that_are_bad_from_the_start_are_refused(tmp_path: Path) -> None:
    model = tiny("bert")
    model.base_model.encoder.layer[1].output.dense.bias.data[0] = math.inf
    trainer = trainer_with(tmp_path, [tfo.StabilityGuard()], model=model)
    with pytest.raises(ValueError, match=r"not finite before the first step: encoder\.1"):
        trainer.train()


@pytest.mark.parametrize("has_filter", [True, False])
def test_the_curve_and_the_trackers_show_it(has_filter: bool, tmp_path: Path) -> None:
    """Two steps a log: NaN where one was, the good one beside it, and all is well after it."""
    found = []
    for fault in (Fault("loss", math.nan, ()), Fault("loss", math.nan, (3,))):
        options = {"logging_steps": 1 if not fault.steps else 2, "max_steps": 6}
        options["logging_nan_inf_filter"] = has_filter
        trainer = faulty(tmp_path, [tfo.StabilityGuard()], fault, **options)
        trainer.add_callback(reporter := Reporter())
        trainer.train()
        found.append([entry for entry in trainer.state.log_history if "loss" in entry])
        seen = [logs for logs in reporter.seen if "loss" in logs]
        for logs, entry in zip(seen, found[-1], strict=True):
            assert logs["loss"] == entry["loss"] or math.isnan(logs["loss"] + entry["loss"])
            assert logs.get("good_loss") == entry.get("good_loss")
    clean, broken = found
    assert [math.isnan(entry["loss"]) for entry in broken] == [False, True, False]
    assert ["good_loss" in entry for entry in broken] == [False, True, False]
    mean = (clean[0]["loss"] + clean[1]["loss"]) / 2
    assert broken[0]["loss"] == pytest.approx(mean, rel=1e-6)  # fp32 sums
    assert 3 < broken[1]["good_loss"] < 6


def test_a_stock_trainer_is_guarded_by_its_gradients(tmp_path: Path, caplog: Any) -> None:
    guard = tfo.StabilityGuard()
    args = arguments(tmp_path, max_steps=5, gradient_accumulation_steps=2)
    trainer = Trainer(tiny("bert"), args, train_dataset=Rows(40), callbacks=[guard])
    Fault("loss", math.nan).into(trainer)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert weights_of(trainer.model).isfinite().all()
    assert "tfo.attach" in caplog.text
    (event,) = events_of(trainer)
    assert (event["step"], event["kind"]) == (3, "non-finite gradient")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action": "rolback"}, "rollback"),
        ({"action": "rollback", "snapshot_every": None}, "needs a snapshot"),
        ({"snapshot_every": 0}, "snapshot_every"),
        ({"lr_factor": 1.0}, "lr_factor"),
        ({"threshold": 0}, "threshold"),
        ({"ratio": 1}, "ratio"),
        ({"window": 0}, "window"),
        ({"patience": 2.5}, "patience"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, KeyError), match=message):
        tfo.StabilityGuard(**options)


@pytest.mark.parametrize(("place", "num_events"), [("loss", 1), ("gradient", 0)])
def test_an_overflow_is_the_loss_scalers_business(
    place: str, num_events: int, tmp_path: Path
) -> None:
    """The scaler leaves the step out by itself, and scales less from then on."""
    trainer = faulty(tmp_path, [tfo.StabilityGuard()], Fault(place, math.inf), "attach")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    accelerator = trainer.accelerator
    accelerator.scaler = scaler
    # accelerate makes a scaler on CUDA alone; what it does before clipping there
    accelerator.unscale_gradients = lambda: scaler.unscale_(trainer.optimizer.optimizer)
    trainer.train()
    assert weights_of(trainer.model).isfinite().all()
    assert scaler.get_scale() == 512
    assert len(events_of(trainer)) == num_events
    # unscaled: as large as without a scaler
    assert all(0 < value < 3 for value in guard_of(trainer).remembered["gradient"])


def guard_of(trainer: Any) -> Any:
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, tfo.StabilityGuard))


class Unclipped(TrainerCallback):
    """Behind the host's clipping, which never acts: the true norm."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        squares = [p.grad.square().sum() for p in model.parameters() if p.grad is not None]
        self.seen.append(math.log(math.sqrt(float(sum(squares)))))


@pytest.mark.parametrize("is_joined", [False, True])
def test_a_gradient_is_judged_without_the_loss_scale(is_joined: bool, tmp_path: Path) -> None:
    """Whose scale moves on the way."""
    guard, noted = tfo.StabilityGuard("warn"), Unclipped()
    args = arguments(tmp_path, max_steps=8, max_grad_norm=100.0)
    given = [] if is_joined else [guard]
    trainer = Trainer(tiny("bert"), args, train_dataset=Rows(80), callbacks=[*given, noted])
    if is_joined:
        tfo.attach(trainer, callbacks=[guard])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    trainer.accelerator.scaler = scaler
    trainer.accelerator.unscale_gradients = lambda: scaler.unscale_(trainer.optimizer.optimizer)
    trainer.train()
    assert scaler.get_scale() == 4096
    # scaled by powers of two: the rest is the five digits that are remembered
    assert guard.remembered["gradient"] == pytest.approx(noted.seen, abs=1e-4)


class SpoilAll(TrainerCallback):
    """Every real update spoils a weight."""

    def on_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        weight = model.base_model.encoder.layer[0].output.dense.weight
        if weight.grad is not None:
            with torch.no_grad():
                weight[1, 2] = math.nan


def test_a_run_whose_every_update_is_spoilt_ends(tmp_path: Path) -> None:
    guard = tfo.StabilityGuard(snapshot_every=100, patience=3)
    trainer = trainer_with(tmp_path, [guard], max_steps=40, num_rows=320)
    trainer.add_callback(SpoilAll())
    before = weights_of(trainer.model)
    trainer.train()
    assert trainer.state.global_step == 6
    assert "the run ends" in events_of(trainer)[-1]["text"]
    assert torch.equal(before, weights_of(trainer.model))


def test_mendings_far_from_each_other_do_not_end_a_run(tmp_path: Path) -> None:
    guard = tfo.StabilityGuard(snapshot_every=1, patience=2)
    trainer = trainer_with(tmp_path, [guard], max_steps=12, num_rows=96)
    trainer.add_callback(Spoil(2, 5, 8, 11))
    trainer.train()
    assert trainer.state.global_step == 12
    assert len(events_of(trainer)) == 4


@pytest.mark.parametrize("action", ["rollback", "skip"])
def test_schedule_free_goes_back_to_a_snapshot_of_its_average(action: Any, tmp_path: Path) -> None:
    """Kept after an evaluation in an epoch's last step; and the checkpoint has the average."""
    options = {"max_steps": 8, "num_rows": 16, "save_strategy": "epoch"}
    options |= {"eval_strategy": "steps", "eval_steps": 2}
    fault = Fault("loss" if action == "rollback" else "weight", math.nan, (5,))
    found = []
    for guards in ([], [tfo.StabilityGuard(action, snapshot_every=2)]):
        trainer = faulty(tmp_path / f"{len(guards)}", guards, fault, **options)
        trainer.optimizer_cls_and_kwargs = tfo.optimizer("schedule_free", lr=1e-3)
        trainer.train()
        saved = tmp_path / f"{len(guards)}" / "checkpoint-4"
        found.append(weights_of(type(trainer.model).from_pretrained(saved)))
    assert torch.equal(*found)
    assert trainer.state.global_step == 8
    assert weights_of(trainer.model).isfinite().all()
    assert [event["step"] for event in events_of(trainer)] == [5]


def test_a_copy_of_a_trainer_is_guarded_and_the_first_is_left_alone(tmp_path: Path) -> None:
    first = trainer_with(tmp_path, [tfo.StabilityGuard(), tfo.ExponentialAverage()])
    before = weights_of(first.model)
    second = copy.deepcopy(first)
    second.train()
    assert torch.equal(before, weights_of(first.model))
    assert not torch.equal(before, weights_of(second.model))
    assert guard_of(second).remembered["loss"]
    assert guard_of(second).trainer is second


def test_a_guard_taken_away_listens_no_more(tmp_path: Path) -> None:
    guard = tfo.StabilityGuard()
    trainer = trainer_with(tmp_path, [guard])
    trainer.train()
    assert "training_step" not in vars(trainer)
    trainer.remove_callback(guard)
    trainer.train()
    assert not guard._losses
