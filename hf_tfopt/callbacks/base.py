"""What all callbacks share: a memory that checkpoints keep, and numbers that reach every log.

A `Monitor` watches: a run with it is bit-equal to one without. An `Intervention` does one named
thing.
"""

import logging
import weakref
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_tfopt.callbacks.remembered import enter, settle
from hf_tfopt.callbacks.taps import Tap
from hf_tfopt.callbacks.training import (
    Place,
    Scalars,
    Training,
    as_numbers,
    check_gradients_are_seen,
    is_due,
    training_of,
)

logger = logging.getLogger(__name__)


class Callback(TrainerCallback):
    """A callback whose memory survives a stop, and whose numbers reach history and trackers.

    `remembered` is a dictionary of JSON values, the same on every process. It lies in the host's
    `TrainerState`, and so in every checkpoint; a resumed run has it back with the host's default
    flags, for several callbacks of a class too, and where others were added or taken away. What
    else a callback keeps begins with an underscore; its options are attributes without one, by
    which it is known again.

    A subclass overrides what it needs of `begin`, `collected`, `before_step`, `gradients`,
    `updated`, `stepped`, `kept`, `put_back`, `ended`, `release` and `scalars`.
    """

    needs_gradients = False  # whole tensors with gradients, which some engines hide
    place = Place.LAST

    def __init__(self) -> None:
        self._remembered: dict[str, Any] = {}
        self._has_begun = False
        self._joined: weakref.ref[Any] | None = None
        self._has_warned = False
        self._taps: list[Tap] = []

    @property
    def remembered(self) -> dict[str, Any]:
        """What checkpoints keep; change it in place."""
        return self._remembered

    def give_back(self, remembered: dict[str, Any]) -> None:
        """Remember this from now on."""
        self._remembered = remembered

    def join(self, trainer: Any) -> None:
        """Called by `attach` and `TfoptTrainer`: there is more to know than events tell."""
        self._joined = weakref.ref(trainer)

    @property
    def trainer(self) -> Any:
        """The Trainer that was joined last; None in a stock Trainer's `callbacks=`."""
        return None if self._joined is None else self._joined()

    def listen(self, owner: Any, name: str, **how: Any) -> None:
        """Put a `Tap` on a method of the trainer, until `release`."""
        self._taps.append(Tap(owner, name, **how))

    def begin(self, training: Training) -> None:
        """Before the first step of this process, with `remembered` as it was left."""

    def collected(self, training: Training, batches: list[Any]) -> list[Any]:
        """Before a step: the micro-batches to train on in the place of these, just as many.

        Their items are counted afterwards, so that the loss is that of a dataset which had them so.
        Called for callbacks that a Trainer of ours knows of (`trainer` is set) alone.
        """
        return batches

    def before_step(self, training: Training) -> None:
        """Before the first micro-batch of a step."""

    def gradients(self, training: Training) -> None:
        """Before an update: all gradients are there, unscaled and clipped by the host."""

    def updated(self, training: Training) -> None:
        """After an update, while the gradients are still there."""

    def stepped(self, training: Training) -> None:
        """After a step, which is counted; before the host logs, evaluates or saves."""

    def kept(self, training: Training) -> None:
        """A `StabilityGuard` has taken its snapshot: what is not in it may be kept beside it."""

    def put_back(self, training: Training) -> None:
        """Weights and optimizer are again as they were when `kept` was called last."""

    def ended(self, training: Training) -> None:
        """After training, if nothing has broken it off."""

    def release(self) -> None:
        """However training has ended, or before it begins anew: undo and drop what was for it.

        Called more than once.
        """
        while self._taps:
            self._taps.pop().remove()
        self._has_begun = False

    def scalars(self, training: Training) -> Scalars:
        """What to log beside the loss: all that is new since the last log."""
        return {}

    def tell(self, training: Training, kind: str, text: str, **facts: Any) -> None:
        """Say aloud that something happened, and have it in the log: an event of the run.

        The next log's `events` in `log_history` (after the last one, that one's) is a list of
        `{"step", "kind", "text", ...}`.

        Args:
            training: of the step in which it happened.
            kind: a word or two for the picture's axis ("skipped", "attention collapse").
            text: a sentence with the numbers.
            facts: more of it, JSON values.
        """
        event = {"step": training.state.global_step, "kind": kind, "text": text, **facts}
        self.remembered.setdefault("events", []).append(event)
        if training.state.is_world_process_zero:
            logger.warning("step %d: %s", event["step"], text)

    # The host's events, each with the promises above.

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for the others: what is remembered is given back when all have spoken."""
        self.release()
        enter(self, state)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """`begin`, in the first epoch of this process."""
        if self._has_begun:
            return
        settle(state)
        self._has_begun = True
        training = training_of(args, state, control, kwargs)
        if self.needs_gradients:
            check_gradients_are_seen(type(self).__name__, training)
        self.begin(training)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """`before_step`."""
        self.before_step(training_of(args, state, control, kwargs))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """`gradients`."""
        self.gradients(training_of(args, state, control, kwargs))

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """`updated`."""
        self.updated(training_of(args, state, control, kwargs))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """`stepped`."""
        self.stepped(training_of(args, state, control, kwargs))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """`ended`; what was told since the last log belongs to it."""
        self.ended(training_of(args, state, control, kwargs))
        self._note_events(state)
        self.release()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add `scalars` to what is logged of training, for `log_history` and for the trackers.

        The host has put its own numbers into `log_history` already; the trackers behind this
        callback in the list see what it adds.
        """
        if logs is None or not self._has_begun:
            return
        if "loss" not in logs:
            self._note_events(state)
            return
        found = as_numbers(self.scalars(training_of(args, state, control, kwargs)))
        self._note_events(state)
        logs |= {name: value for name, value in found.items() if isinstance(value, float)}
        entry: dict[str, Any] = state.log_history[-1]
        entry |= found
        if found and not (self.trainer is not None or self._has_warned) and args.report_to:
            self._has_warned = True
            logger.warning(
                "%s: its numbers are in log_history, but trackers (%s) may come before it and not "
                "see them; use tfo.attach(trainer, callbacks=[...])",
                type(self).__name__,
                ", ".join(args.report_to),
            )

    def _note_events(self, state: TrainerState) -> None:
        events = self.remembered.pop("events", None)
        if events and state.log_history:
            entry: dict[str, Any] = state.log_history[-1]
            entry["events"] = [*entry.get("events", []), *events]


class Monitor(Callback):
    """Watches some of the steps; changes nothing.

    Args:
        every: the number of steps from one measured step to the next; None: the steps whose loss
            the host logs, at least `gap` steps apart.

    Raises:
        ValueError: `every` below 1.
    """

    place = Place.MONITOR
    gap = 1  # more for what costs more

    def __init__(self, every: int | None = None):
        super().__init__()
        if every is not None and every < 1:
            raise ValueError(f"every is {every}, a number of steps; it must be at least 1")
        self.every = every
        self._is_due = False
        self._hooks: list[Any] = []

    def watch(self, training: Training) -> None:
        """Before a step that is measured: put hooks into `self._hooks`, which go when it ends."""

    def measure_gradients(self, training: Training) -> None:
        """`gradients`, of a step that is measured."""

    def measure_update(self, training: Training) -> None:
        """`updated`, of a step that is measured."""

    def measure(self, training: Training) -> None:
        """`stepped`, of a step that is measured."""

    def before_step(self, training: Training) -> None:
        """Attach hooks, if the step is to be measured."""
        self._is_due = is_due(training, self.every, self.gap)
        if self._is_due:
            self.watch(training)

    def gradients(self, training: Training) -> None:
        """Only in a step that is measured."""
        if self._is_due:
            self.measure_gradients(training)

    def updated(self, training: Training) -> None:
        """Only in a step that is measured."""
        if self._is_due:
            self.measure_update(training)

    def stepped(self, training: Training) -> None:
        """Only in a step that is measured; then its hooks go."""
        if self._is_due:
            self.measure(training)
        self.unhook()
        self._is_due = False

    def release(self) -> None:
        """Remove taps and hooks."""
        super().release()
        self.unhook()
        self._is_due = False

    def unhook(self) -> None:
        """Remove every hook."""
        while self._hooks:
            self._hooks.pop().remove()


class Intervention(Callback):
    """Does one named thing to the run."""
