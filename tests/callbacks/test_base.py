import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ProgressCallback, Trainer

from hf_tfopt.callbacks.base import Intervention, Monitor
from hf_tfopt.callbacks.console import QuietPrinter
from hf_tfopt.callbacks.training import Training, is_due
from tests.callbacks.runs import Reporter, history_of, trainer_with
from tests.invariants.splits import Rows
from tests.models import tiny
from tests.test_trainer import arguments


class Counter(Intervention):
    """Counts steps, beginning where it is told to."""

    def __init__(self, label: str, start: int = 0):
        super().__init__()
        self.label = label
        self.start = start

    def begin(self, training: Training) -> None:
        self.remembered.setdefault("count", self.start)

    def stepped(self, training: Training) -> None:
        self.remembered["count"] += 1

    def scalars(self, training: Training) -> dict[str, Any]:
        return {f"count/{self.label}": self.remembered["count"]}


class Watch(Monitor):
    """Notes the steps that it is shown, and what hooks there are."""

    def __init__(self, every: int | None = None):
        super().__init__(every)
        self._seen: list[int] = []

    def watch(self, training: Training) -> None:
        self._hooks.append(training.model.register_forward_hook(lambda *_: self._seen.append(0)))

    def measure(self, training: Training) -> None:
        self._seen.append(training.state.global_step)

    def scalars(self, training: Training) -> dict[str, Any]:
        return {"watch/number": torch.tensor(2.5), "watch/map": [[1.0, 2.0]]}


SAVES = {"save_strategy": "steps", "save_steps": 2}


def resumed(tmp_path: Path, callbacks: list[Any]) -> Trainer:
    trainer = trainer_with(tmp_path / "again", callbacks)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    return trainer


@pytest.mark.parametrize("how_the_host_restores", [False, True])
def test_each_of_a_class_gets_its_own_memory_back(
    how_the_host_restores: bool, tmp_path: Path
) -> None:
    trainer_with(tmp_path, [Counter("a"), Counter("b", 100)], **SAVES).train()
    one, other = Counter("b", 100), Counter("a")  # in another order
    options = {"restore_callback_states_from_checkpoint": how_the_host_restores}
    trainer = trainer_with(tmp_path / "again", [one, other], **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [one.remembered["count"], other.remembered["count"]] == [104, 4]


def test_one_of_two_taken_away_leaves_the_other_its_own(tmp_path: Path) -> None:
    trainer_with(tmp_path, [Counter("a"), Counter("b", 100)], **SAVES).train()
    only = Counter("b", 100)
    resumed(tmp_path, [only])
    assert only.remembered["count"] == 104


def test_a_changed_option_keeps_the_memory_and_an_added_callback_begins_anew(
    tmp_path: Path,
) -> None:
    trainer_with(tmp_path, [Counter("a", 100)], **SAVES).train()
    changed, added = Counter("a", 50), Counter("c", 7)
    trainer = resumed(tmp_path, [changed, added])
    assert [changed.remembered["count"], added.remembered["count"]] == [104, 9]
    assert [entry["count/a"] for entry in history_of(trainer)] == [101, 102, 103, 104]


def test_alike_ones_are_told_apart_by_their_order(tmp_path: Path) -> None:
    class Apart(Counter):
        """Alike in all options; one of them counts from elsewhere."""

        _first = 0

        def begin(self, training: Training) -> None:
            self.remembered.setdefault("count", self._first)

    def two() -> list[Apart]:
        first, second = Apart("a"), Apart("a")
        first._first = 1000
        return [first, second]

    trainer_with(tmp_path, two(), **SAVES).train()
    again = [Apart("a"), Apart("a")]
    resumed(tmp_path, again)
    assert [callback.remembered["count"] for callback in again] == [1004, 4]


def test_what_is_remembered_is_as_new_as_the_checkpoint(tmp_path: Path) -> None:
    trainer_with(tmp_path, [Counter("a")], **SAVES).train()
    saved = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert list(saved["stateful_callbacks"]["hf_tfopt"].values()) == [{"count": 2}]


def test_hooks_live_for_the_measured_step_alone(tmp_path: Path) -> None:
    monitor = Watch(every=2)
    trainer_with(tmp_path, [monitor], eval_strategy="steps", eval_steps=2).train()
    # two micro-batches of the second and the fourth step, and no evaluation
    assert monitor._seen == [0, 0, 2, 0, 0, 4]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"logging_steps": 2}, [2, 4]),
        ({"logging_steps": 3, "logging_first_step": True}, [1, 3]),
        ({"logging_strategy": "epoch", "max_steps": -1, "num_train_epochs": 1}, [4]),
        ({"logging_strategy": "epoch", "max_steps": 5, "num_train_epochs": 2}, [4, 5]),
        ({"logging_strategy": "no"}, []),
        ({"logging_steps": 0.5}, [2, 4]),
    ],
)
def test_by_default_the_logged_steps_are_measured(
    options: dict[str, Any], steps: list[int], tmp_path: Path
) -> None:
    monitor = Watch()
    trainer = trainer_with(tmp_path, [monitor], **options)
    trainer.train()
    assert [step for step in monitor._seen if step] == steps
    logged = [entry["step"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == steps


def test_what_costs_more_is_measured_less_often(tmp_path: Path) -> None:
    class Rare(Watch):
        gap = 5

    monitor = Rare()
    trainer_with(tmp_path, [monitor], max_steps=14, logging_steps=2, num_rows=128).train()
    # the first log, then the first of each five steps: 5, 10
    assert [step for step in monitor._seen if step] == [2, 6, 10]


def test_epochs_of_a_stream_have_no_number(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, logging_strategy="epoch", max_steps=4)
    stream = Training(trainer.args, trainer.state, trainer.control, data=iter(()))
    trainer.state.max_steps, trainer.state.num_train_epochs = 4, sys.maxsize
    due: list[int] = []
    for step in range(4):
        trainer.state.global_step = step
        due += [step + 1] if is_due(stream, None) else []
    assert due == [4]


def test_lists_go_to_history_alone(tmp_path: Path) -> None:
    trainer, reporter = trainer_with(tmp_path, [Watch()]), Reporter()
    trainer.add_callback(reporter)
    trainer.train()
    assert history_of(trainer)[0]["watch/map"] == [[1.0, 2.0]]
    assert reporter.seen[0]["watch/number"] == 2.5
    assert "watch/map" not in reporter.seen[0]


class Alarm(Intervention):
    """Tells of the first and the third step."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def stepped(self, training: Training) -> None:
        if training.state.global_step in (1, 3):
            self.tell(training, self.kind, f"it is {self.kind}", level=2.0)


def test_events_of_all_callbacks_are_in_the_next_log_and_survive_a_stop(
    tmp_path: Path, caplog: Any
) -> None:
    options = {"logging_steps": 4, "save_strategy": "steps", "save_steps": 2}
    alarms = [Alarm("late"), Alarm("early")]
    with caplog.at_level(logging.WARNING, "hf_tfopt.callbacks.base"):
        whole = trainer_with(tmp_path, alarms, **options)
        whole.train()
    events = history_of(whole)[0]["events"]
    assert [(event["step"], event["kind"], event["level"]) for event in events] == [
        (step, kind, 2.0) for kind in ("late", "early") for step in (1, 3)
    ]
    assert "step 3: it is early" in caplog.text
    again = trainer_with(tmp_path / "again", [Alarm("late"), Alarm("early")], **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert history_of(again)[0]["events"] == events


def test_the_console_shows_no_numbers_of_groups(tmp_path: Path, capsys: Any) -> None:
    trainer = trainer_with(tmp_path, [Watch()])
    assert any(isinstance(c, QuietPrinter) for c in trainer.callback_handler.callbacks)
    trainer.train()
    shown = capsys.readouterr().out
    assert "'loss'" in shown and "watch/" not in shown
    plain = trainer_with(tmp_path, [], disable_tqdm=False)
    assert any(type(c) is ProgressCallback for c in plain.callback_handler.callbacks)


def test_a_callback_added_later_is_put_in_its_place(tmp_path: Path) -> None:
    trainer, reporter, monitor = trainer_with(tmp_path), Reporter(), Watch()
    trainer.add_callback(reporter)
    trainer.add_callback(monitor)
    trainer.train()
    assert "watch/number" in reporter.seen[0]


def test_a_callback_of_another_trainer_joins_this_one_too(tmp_path: Path) -> None:
    monitor = Watch()
    for folder in ("first", "second"):
        trainer = trainer_with(tmp_path / folder, [monitor])
        assert monitor.trainer is trainer
        trainer.train()
        assert history_of(trainer)[0]["watch/number"] == 2.5


def test_a_stock_trainer_is_told_what_its_trackers_miss(tmp_path: Path, caplog: Any) -> None:
    args = arguments(tmp_path)
    trainer = Trainer(tiny("bert"), args, train_dataset=Rows(12), callbacks=[Watch()])
    args.report_to = ["tensorboard"]
    with caplog.at_level(logging.WARNING, "hf_tfopt.callbacks.base"):
        trainer.train()
    assert [record.message.count("tfo.attach") for record in caplog.records] == [1]
    assert history_of(trainer)[0]["watch/number"] == 2.5


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = tmp_path / "logs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORBOARD_LOGGING_DIR", str(logs))
        trainer_with(tmp_path, [Watch()], "attach", report_to="tensorboard").train()
    found = EventAccumulator(str(logs)).Reload()
    assert [event.value for event in found.Scalars("train/watch/number")] == [2.5] * 4


@pytest.mark.parametrize("every", [0, -3])
def test_an_interval_is_at_least_one_step(every: int) -> None:
    with pytest.raises(ValueError, match=f"every is {every}"):
        Watch(every=every)
