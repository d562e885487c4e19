"""Dropout rates follow the step, and come back."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, TrainerCallback

import hf_tfopt as tfo
from hf_tfopt.callbacks.ramp import ramp
from hf_tfopt.surgery.dropout import dropout_sites
from tests.callbacks.runs import history_of, trainer_with, weights_of
from tests.models import SIZES


def bert(hidden: float = 0.2, attention: float = 0.1) -> BertForMaskedLM:
    rates = {"hidden_dropout_prob": hidden, "attention_probs_dropout_prob": attention}
    return BertForMaskedLM(BertConfig(**SIZES, **rates))


class Rates(TrainerCallback):
    """The rates of each step, of hidden states and of attention."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        sites = dropout_sites(model).values()
        hidden = {site.rate for site in sites if not site.is_attention}
        attention = {site.rate for site in sites if site.is_attention}
        self.seen.append((*hidden, *attention))


def test_the_multiplier() -> None:
    def values(*numbers: float, shape: str = "linear") -> list[float]:
        return [ramp(share / 4, *numbers, shape) for share in range(5)]

    assert values(1, 0, 0, 1) == [1, 0.75, 0.5, 0.25, 0]
    assert values(1, 0, 0.25, 0.75) == [1, 1, 0.5, 0, 0]
    assert values(0, 1, 0.5, 0.5) == [0, 0, 1, 1, 1]
    assert values(0.5, 2, 0, 0.5) == [0.5, 1.25, 2, 2, 2]
    cosine = [(1 + math.cos(math.pi * share / 4)) / 2 for share in range(5)]
    assert values(1, 0, 0, 1, shape="cosine") == pytest.approx(cosine, abs=1e-15)


def test_early_dropout_falls_to_none_and_comes_back(tmp_path: Path) -> None:
    model, rates = bert(), Rates()
    trainer = trainer_with(tmp_path, [tfo.DropoutSchedule()], model=model, save_strategy="steps")
    trainer.add_callback(rates)
    trainer.train()
    assert rates.seen == [(0.2, 0.1), (0.1, 0.05), (0.0, 0.0), (0.0, 0.0)]
    assert [entry["dropout"] for entry in history_of(trainer)] == [0.2, 0.1, 0.0, 0.0]
    assert {(s.rate, s.is_attention) for s in dropout_sites(model).values()} == {
        (0.2, False),
        (0.1, True),
    }
    saved = BertConfig.from_pretrained(next(tmp_path.glob("checkpoint-*")))
    assert saved.hidden_dropout_prob == 0.2 and saved.attention_probs_dropout_prob == 0.1


def test_late_dropout_with_a_rate_of_its_own(tmp_path: Path) -> None:
    rates = Rates()
    schedule = tfo.DropoutSchedule(first=0, last=1, start=0.5, end=0.5, rate=0.3)
    trainer = trainer_with(tmp_path, [schedule], model=bert(0.0, 0.0))
    trainer.add_callback(rates)
    trainer.train()
    assert rates.seen == [(0.0, 0.0), (0.0, 0.0), (0.3, 0.3), (0.3, 0.3)]
    assert {site.rate for site in dropout_sites(trainer.model).values()} == {0.0}


def test_a_resumed_run_has_the_rates_of_its_steps(tmp_path: Path) -> None:
    def run(folder: Path) -> tuple[Any, Rates]:
        rates = Rates()
        trainer = trainer_with(
            folder,
            [tfo.DropoutSchedule(end=1.0)],
            model=bert(),
            save_strategy="steps",
            save_steps=2,
        )
        trainer.add_callback(rates)
        return trainer, rates

    whole, expected = run(tmp_path)
    whole.train()
    again, found = run(tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert found.seen == expected.seen[2:]
    assert torch.equal(weights_of(again.model), weights_of(whole.model))


def test_a_training_that_was_broken_off_leaves_the_rates_alone(tmp_path: Path) -> None:
    class Breaks(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            if state.global_step == 2:
                raise KeyboardInterrupt

    model = bert()
    before = {name: site.rate for name, site in dropout_sites(model).items()}
    trainer = trainer_with(tmp_path, [tfo.DropoutSchedule()], model=model)
    trainer.add_callback(Breaks)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert {name: site.rate for name, site in dropout_sites(model).items()} == before


def test_a_stock_trainer_broken_off_has_its_rates_back_with_the_next_training(
    tmp_path: Path,
) -> None:
    """Which nothing tells of the end; the callback's next beginning gives them back."""
    schedule, rates = tfo.DropoutSchedule(), Rates()
    trainer = trainer_with(tmp_path, [], "attach", model=bert())
    trainer.callback_handler.callbacks += [schedule, rates]
    for event in (schedule.on_train_begin, schedule.on_epoch_begin, schedule.on_step_begin):
        trainer.state.max_steps, trainer.state.global_step = 4, 1
        event(trainer.args, trainer.state, trainer.control, model=trainer.model)
    trainer.train()
    assert rates.seen[0] == (0.2, 0.1)


def test_models_it_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rates of BertForMaskedLM are 0"):
        trainer_with(tmp_path, [tfo.DropoutSchedule()], model=bert(0.0, 0.0)).train()
    schedule = tfo.DropoutSchedule(first=1, last=5)
    with pytest.raises(ValueError, match="is no rate below 1"):
        trainer_with(tmp_path, [schedule], model=bert()).train()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"start": 0.5, "end": 0.2}, "shares of the run"),
        ({"end": 1.5}, "shares of the run"),
        ({"last": -1}, "last"),
        ({"first": 1, "last": 1}, "set_dropout"),
        ({"shape": "linaer"}, "did you mean 'linear'"),
        ({"rate": 1.0}, "rate"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        tfo.DropoutSchedule(**options)
