"""The trainer's log on disk while the run is under way, for `hf-tfopt watch` and after a crash."""

import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_tfopt.callbacks.base import Callback
from hf_tfopt.callbacks.training import Training
from hf_tfopt.run.folder import write_text
from hf_tfopt.run.unfinished import LIVE_LOG, entries

logger = logging.getLogger(__name__)


class LiveLog(Callback):
    """Append each entry of the log to `log.jsonl` in the output folder, one line of JSON each.

    The host writes its log with checkpoints only. A line has also "time", in Unix seconds; NaN and
    infinity, which JSON does not know, are null. A run begins with a line of "begun" and
    "max_steps" and ends with one of "ended"; where it goes on from a checkpoint, lines of later
    steps are dropped. An entry is written when the next step, an evaluation or a checkpoint begins,
    so that it holds what every callback adds to it. Only the main process writes; a file that
    cannot be written is said once and does not stop the run.

    Cost: one line of text for each log; nothing in a step without one.

    Paper: none.
    """

    def __init__(self) -> None:
        super().__init__()
        self._path: Path | None = None
        self._num_written = 0

    def begin(self, training: Training) -> None:
        """Open the log: what is left of it where a run goes on, else a new one."""
        self._path = None
        state = training.state
        if not state.is_world_process_zero:
            return
        path = Path(training.args.output_dir or ".") / LIVE_LOG
        first = {"begun": _now(), "step": state.global_step, "max_steps": state.max_steps}
        is_going_on = state.global_step > 0
        lines = _kept(path, state) if is_going_on else []
        self._num_written = len(state.log_history) if is_going_on else 0
        text = "".join(f"{line}\n" for line in (*lines, json.dumps(first)))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
        except OSError as error:
            logger.warning("LiveLog: %s cannot be written: %s", path, error)
            return
        self._path = path

    def before_step(self, training: Training) -> None:
        """Write what the step before was logged with."""
        self._write(training.state)

    def ended(self, training: Training) -> None:
        """Write the rest, and that it is all."""
        last = {"ended": _now(), "step": training.state.global_step}
        self._write(training.state, last)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """An evaluation may take long: write what was logged before it."""
        self._write(state)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what was found; after the training too."""
        self._write(state)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A checkpoint may take long."""
        self._write(state)

    def _write(self, state: TrainerState, *more: Mapping[str, Any]) -> None:
        new = state.log_history[self._num_written :]
        if self._path is None or not (new or more):
            return
        self._num_written += len(new)
        lines = [line_of(entry | {"time": _now()}) for entry in new]
        lines += [json.dumps(entry) for entry in more]
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))
        except OSError as error:
            logger.warning("LiveLog: %s cannot be written any more: %s", self._path, error)
            self._path = None


def line_of(entry: Mapping[str, Any]) -> str:
    """An entry of the log as one line of JSON."""
    return json.dumps(_finite(entry), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    try:  # a number of numpy's or torch's, which the host logs as it is
        return _finite(float(value))
    except (TypeError, ValueError):
        return str(value)


def _kept(path: Path, state: TrainerState) -> list[str]:
    """The lines until the step at which a run goes on; without a log, those of the checkpoint."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return [line_of(entry) for entry in state.log_history]
    found = [entry for entry in entries(lines) if "ended" not in entry]
    return [line_of(entry) for entry in found if _is_before(entry, state.global_step)]


def _is_before(entry: Mapping[str, Any], step: int) -> bool:
    value = entry.get("step")
    return isinstance(value, int | float) and value <= step


def _now() -> float:
    return round(time.time(), 3)
