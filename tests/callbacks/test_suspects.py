"""Which rows of the dataset a bad step had."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

import hf_tfopt as tfo
from hf_tfopt.callbacks.dataset_rows import dataset_rows
from tests.callbacks.faults import Fault
from tests.callbacks.runs import trainer_with
from tests.invariants.splits import Rows


class Drawn(torch.utils.data.Dataset):
    """Notes which rows are asked for."""

    def __init__(self, num_rows: int):
        self.rows = Rows(num_rows)
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        self.asked.append(row)
        return self.rows[row]


def events_of(trainer: Any) -> list[dict[str, Any]]:
    return [event for entry in trainer.state.log_history for event in entry.get("events", [])]


def trained(tmp_path: Path, fault: Fault, resume: str | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    trainer = trainer_with(tmp_path, [tfo.StabilityGuard()], **{"max_steps": 9, **options})
    trainer.train_dataset = Drawn(22)
    fault.into(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize("strategy", ["random", "sequential"])
def test_the_rows_are_those_that_were_drawn(strategy: str, tmp_path: Path) -> None:
    """Three steps of 2 x 4 rows an epoch, the last of it 4 and 2."""
    fault = Fault("loss", math.nan, (1, 3, 5, 9))
    trainer = trained(tmp_path, fault, train_sampling_strategy=strategy)
    asked = trainer.train_dataset.asked
    batches = [
        asked[epoch * 22 + first : epoch * 22 + min(first + 4, 22)]
        for epoch in range(3)
        for first in range(0, 22, 4)
    ]
    for event, number in zip(events_of(trainer), (1, 5, 9, 17), strict=True):
        (found,) = event["batches"]
        assert found == {
            "process": 0,
            "micro_batch": 1,
            "loss": "nan",
            "epoch": number // 6,
            "batch": number % 6,
            "rows": batches[number],
        }


def test_they_are_right_after_resuming_too(tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 4}
    whole = trained(tmp_path / "whole", Fault("loss", math.nan, (5, 6)), **options)
    rest = trained(
        tmp_path / "rest",
        Fault("loss", math.nan, (5, 6)),
        str(tmp_path / "whole" / "checkpoint-4"),
        **options,
    )
    assert events_of(whole) == events_of(rest)


def test_all_of_the_step_are_suspects_where_every_loss_is_finite(tmp_path: Path) -> None:
    trainer = trained(tmp_path, Fault("gradient", math.inf, (2,)))
    (event,) = events_of(trainer)
    assert [one["rows"] for one in event["batches"]] == [
        trainer.train_dataset.asked[8:12],
        trainer.train_dataset.asked[12:16],
    ]
    assert event["blocks"] == ["encoder.1"]
    assert event["loss"] == pytest.approx(sum(one["loss"] for one in event["batches"]))


def test_looking_leaves_the_order_of_the_rows_as_it_is(tmp_path: Path) -> None:
    asked = [
        trained(tmp_path, Fault("gradient", math.inf, steps)).train_dataset.asked
        for steps in ((), (2, 4, 6))
    ]
    assert asked[0] == asked[1]


def test_where_the_order_cannot_be_known_none_is_made_up() -> None:
    rows = list(range(10))
    shuffled = DataLoader(rows, batch_size=3, sampler=RandomSampler(rows))
    assert dataset_rows(shuffled, 0, [0]) is None
    assert dataset_rows(object(), 0, [0]) is None
    plain = DataLoader(rows, batch_size=3, sampler=SequentialSampler(rows))
    assert dataset_rows(plain, 5, [3, 1]) == [[9], [3, 4, 5]]
    assert dataset_rows(plain, 0, [4]) is None
    assert dataset_rows(plain, 0, []) is None
