"""The perplexity of training, which TfoptTrainer logs: of tokens, not of batches."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_tfopt as tfo
from tests.callbacks.runs import history_of, trainer_with
from tests.models import tiny


def perplexities(trainer: Any) -> list[float | None]:
    return [e.get("perplexity") for e in trainer.state.log_history if "loss" in e]


def test_it_is_exact_over_all_tokens_since_the_last_log(tmp_path: Path) -> None:
    """Of steps with different numbers of labels; the model does not move."""
    model = tiny("bert")
    trainer = trainer_with(tmp_path, model=model, logging_steps=2, lr=1e-30, num_rows=22)
    trainer.train()
    rows = trainer.train_dataset
    total, count = 0.0, 0
    with torch.no_grad():
        for number in range(len(rows)):  # three steps are an epoch
            row = {name: value.unsqueeze(0) for name, value in rows[number].items()}
            num_labels = int((row["labels"] != -100).sum())
            total += num_labels * model(**row).loss.item()
            count += num_labels
    first, second = perplexities(trainer)
    assert first is not None and second is not None and first != second
    losses = [e["loss"] for e in trainer.state.log_history if "loss" in e]
    assert first != pytest.approx(math.exp(losses[0]), rel=1e-6), "the loss is a mean of steps'"
    whole = trainer_with(tmp_path, model=model, logging_steps=3, max_steps=3, lr=1e-30, num_rows=22)
    whole.train()
    assert perplexities(whole)[0] == pytest.approx(math.exp(total / count), rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "is_told"),
    [
        (tfo.LanguageModeling(), True),
        (tfo.LanguageModeling(label_smoothing=0.1), False),
        (tfo.LanguageModeling(z_loss=1e-4), False),
        (tfo.LanguageModeling(focal_gamma=1.0), False),
        (tfo.LanguageModeling(class_weights=[2.0] * 97), False),
        (tfo.FGM(tfo.LanguageModeling()), False),
    ],
    ids=["plain", "smoothed", "z-loss", "focal", "weighted", "perturbed"],
)
def test_it_is_told_of_the_plain_loss_alone(objective: Any, is_told: bool, tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, max_steps=1)
    trainer.adopt_objective(objective)
    trainer.train()
    (found,) = perplexities(trainer)
    assert (found is not None) == is_told


def test_nothing_counted_has_none() -> None:
    assert tfo.LanguageModeling().trained({"cross_entropy": math.nan}) == {}
    assert tfo.LanguageModeling().trained({}) == {}


def test_a_second_training_does_not_count_the_first(tmp_path: Path) -> None:
    """Which ended between two logs, so that its last steps were never told."""
    trainer = trainer_with(tmp_path, logging_steps=3)
    trainer.train()
    trainer.train()
    log = history_of(trainer)[0]
    # the mean of three steps with almost as many tokens, for the mean over all tokens
    assert log["perplexity"] == pytest.approx(math.exp(log["loss"]), rel=0.01)
