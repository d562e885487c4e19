import json
import math

import numpy as np
import pytest
import torch

import hf_tfopt as tfo
from hf_tfopt.callbacks.base import Intervention
from hf_tfopt.callbacks.live_log import line_of
from hf_tfopt.run.unfinished import LIVE_LOG, progress_of
from tests.callbacks.runs import trainer_with


class Odd(Intervention):
    """Stands behind LiveLog, and logs what JSON does not know."""

    def scalars(self, training):
        return {"odd": math.nan, "late/b": 1.0}

    def stepped(self, training):
        if training.state.global_step == 2:
            self.tell(training, "oddity", "it is odd")


def lines_of(folder):
    return [json.loads(line) for line in (folder / LIVE_LOG).read_text().splitlines()]


def test_every_entry_is_a_line_with_what_all_callbacks_added(tmp_path):
    trainer = trainer_with(
        tmp_path, [tfo.LiveLog(), Odd()], eval_strategy="steps", eval_steps=2, logging_steps=1
    )
    trainer.train()
    trainer.evaluate()
    first, *between = lines_of(tmp_path)
    assert first["max_steps"] == 4 and first["step"] == 0 and first["begun"] > 1e9
    (ended,) = [line for line in between if "ended" in line]
    assert ended["step"] == 4
    between.remove(ended)
    logged = [{k: v for k, v in line.items() if k != "time"} for line in between]
    assert all(line["time"] >= first["begun"] for line in between)
    expected = json.loads(json.dumps(trainer.state.log_history).replace("NaN", "null"))
    assert logged == expected
    steps = [line for line in logged if "loss" in line]
    assert all(line["odd"] is None and line["late/b"] == 1 for line in steps)
    assert [line["step"] for line in steps if "events" in line] == [2]


def test_a_step_is_written_before_its_evaluation(tmp_path):
    seen = []

    class Looks(Intervention):
        def on_prediction_step(self, args, state, control, **kwargs):
            seen.append(lines_of(tmp_path)[-1].get("step"))

    options = {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 1}
    trainer_with(tmp_path, [tfo.LiveLog(), Looks()], **options).train()
    assert set(seen) == {2, 4}


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_going_on_drops_later_lines_and_a_torn_one(is_elsewhere, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
    trainer_with(tmp_path, [tfo.LiveLog()], **options).train()
    with (tmp_path / LIVE_LOG).open("a") as file:
        file.write('{"step": 9, "lo')
    folder = tmp_path / "elsewhere" if is_elsewhere else tmp_path
    trainer = trainer_with(folder, [tfo.LiveLog()], max_steps=6, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    lines = lines_of(folder)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "begun" in line] == ([2] if is_elsewhere else [0, 2])
    progress = progress_of(folder)
    assert progress is not None
    assert (progress.step, progress.max_steps, progress.first_step) == (6, 6, 2)
    assert progress.is_ended and progress.source == LIVE_LOG


def test_what_json_does_not_know_does_not_end_the_run():
    line = line_of({"kl": np.float32(1.5), "t": torch.tensor(2.0), "x": np.array([1, 2]), "s": "a"})
    assert json.loads(line) == {"kl": 1.5, "t": 2.0, "x": "[1 2]", "s": "a"}


def test_a_new_run_begins_a_new_log(tmp_path):
    trainer = trainer_with(tmp_path, [tfo.LiveLog()], logging_steps=1)
    trainer.train()
    trainer.train()
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


def test_a_log_that_cannot_be_written_does_not_stop_the_run(tmp_path, caplog):
    (tmp_path / LIVE_LOG).mkdir()
    trainer = trainer_with(tmp_path, [tfo.LiveLog()])
    trainer.train()
    assert trainer.state.global_step == 4
    assert sum("LiveLog" in record.message for record in caplog.records) == 1


def test_other_processes_write_nothing(tmp_path):
    trainer = trainer_with(tmp_path, [tfo.LiveLog()])
    callback = next(c for c in trainer.callback_handler.callbacks if type(c) is tfo.LiveLog)
    trainer.state.is_world_process_zero = False
    callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    callback.on_epoch_begin(trainer.args, trainer.state, trainer.control)
    trainer.state.log_history.append({"step": 1, "loss": 1.0})
    callback.on_step_begin(trainer.args, trainer.state, trainer.control)
    assert not (tmp_path / LIVE_LOG).exists()
