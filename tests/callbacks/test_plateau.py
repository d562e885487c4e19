"""Stops where a number no longer becomes better, and says why."""

import math
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import hf_tfopt as tfo
from hf_tfopt.callbacks.plateau import is_better, median
from tests.callbacks.runs import history_of, trainer_with

NAN = math.nan


class Says(TrainerCallback):
    """Puts numbers into the logs of training, or of evaluations."""

    def __init__(self, values: list[float], name: str = "number"):
        self.values, self.name = iter(values), name

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        kind = "eval_loss" if self.name.startswith("eval_") else "loss"
        if kind in logs:
            logs[self.name] = next(self.values)


def run(folder: Path, values: list[float], resume: Any = None, **options: Any) -> Any:
    name = options.pop("metric", "number")
    trainer = trainer_with(
        folder,
        [tfo.StopOnPlateau(name, **options)],
        max_steps=12,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps" if name.startswith("eval_") else "no",
        eval_steps=1,
    )
    trainer.callback_handler.callbacks.insert(0, Says(values, name))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_what_is_better() -> None:
    assert is_better(1.0, None, "min", 0.5, False)
    assert is_better(0.4, 1.0, "min", 0.5, False) and not is_better(0.5, 1.0, "min", 0.5, False)
    assert is_better(1.6, 1.0, "max", 0.5, False) and not is_better(1.5, 1.0, "max", 0.5, False)
    assert is_better(98.9, 100.0, "min", 0.01, True)
    assert not is_better(99.0, 100.0, "min", 0.01, True)
    assert is_better(-102.0, -100.0, "min", 0.01, True)  # of a loss below 0, too
    for value in (NAN, math.inf, -math.inf):
        assert not is_better(value, None, "min", 0.0, False)
    assert median([3.0, 1.0, 2.0]) == 2.0 and median([None, 1.0, 3.0]) == 2.0
    assert math.isnan(median([None, None, 1.0])) and math.isnan(median([None, 1.0]))


@pytest.mark.parametrize("metric", ["number", "eval_number"])
@pytest.mark.parametrize(
    ("values", "options", "last_step"),
    [
        ([5, 4, 3, 3, 3.5, 3, 1], {"patience": 3}, 6),
        ([5, 4, 3, 3, 3.5, 2.9, 3, 3, 3, 0], {"patience": 3}, 9),
        ([5, NAN, NAN, 1], {"patience": 2}, 3),
        ([NAN, NAN, 1], {"patience": 2}, 2),
        ([1, 2, 3, 3, 3, 4], {"patience": 2, "mode": "max"}, 5),
        ([10, 9.5, 9.2, 8.9, 8.5, 0], {"patience": 2, "min_delta": 0.1, "is_relative": True}, 3),
        ([5, 4, 0.1, 3.5, 3, 2.8, 2.9, 3, 3, 0], {"patience": 2, "num_smoothed": 3}, 9),
    ],
)
def test_when_it_stops(
    values: list[float], options: dict[str, Any], last_step: int, metric: str, tmp_path: Path
) -> None:
    trainer = run(tmp_path, values, metric=metric, **options)
    assert trainer.state.global_step == last_step
    events = [event for entry in trainer.state.log_history for event in entry.get("events", [])]
    assert [(event["step"], event["kind"]) for event in events] == [(last_step, "plateau")]


def test_patience_survives_a_stop(tmp_path: Path) -> None:
    values = [5, 4, 3, 3, 3.5, 3, 1]
    whole = run(tmp_path, values, patience=3)
    for step in (2, 4, 5):
        again = run(
            tmp_path / "again",
            values[step:],
            str(tmp_path / f"checkpoint-{step}"),
            patience=3,
        )
        assert again.state.global_step == whole.state.global_step == 6
    assert history_of(whole)[-1]["num_without_gain"] == 3


def test_a_second_training_begins_anew(tmp_path: Path) -> None:
    trainer = run(tmp_path, [5, 6, 6, 5, 6, 6, 6], patience=2)
    assert trainer.state.global_step == 3
    trainer.train()
    assert trainer.state.global_step == 3


def test_an_evaluation_after_training_is_none_of_it(tmp_path: Path) -> None:
    trainer = run(tmp_path, [5, 6, 6, 6, 6], metric="eval_number", patience=2)
    told = str(trainer.state.log_history).count("'plateau'")
    trainer.evaluate()
    assert told == str(trainer.state.log_history).count("'plateau'") == 1
    assert "events" not in trainer.state.log_history[-1]


@pytest.mark.parametrize(
    ("metric", "values", "match", "step"),
    [
        ("eval_los", [], "did you mean 'eval_loss'", 1),
        ("eval_perplexty", [], "did you mean 'eval_perplexity'", 1),
        ("grad_nrom", [], "did you mean 'grad_norm'", 3),
    ],
)
def test_a_metric_that_is_not_logged(
    metric: str, values: list[float], match: str, step: int, tmp_path: Path
) -> None:
    trainer = trainer_with(
        tmp_path,
        [tfo.StopOnPlateau(metric)],
        max_steps=12,
        eval_strategy="steps",
        eval_steps=1 if step == 1 else 100,
    )
    with pytest.raises(ValueError, match=match):
        trainer.train()
    assert trainer.state.global_step == step


@pytest.mark.parametrize(
    ("metric", "options", "match"),
    [("eval_loss", {}, "eval_strategy"), ("loss", {"logging_strategy": "no"}, "logging_strategy")],
)
def test_a_metric_that_cannot_be_logged(
    metric: str, options: dict[str, Any], match: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=match):
        trainer_with(tmp_path, [tfo.StopOnPlateau(metric)], **options).train()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"patience": 0}, "patience"),
        ({"min_delta": -1}, "min_delta"),
        ({"mode": "mni"}, "did you mean 'min'"),
        ({"num_smoothed": 0}, "num_smoothed"),
        ({"metric": "time/step"}, "of the machine"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        tfo.StopOnPlateau(**options)
