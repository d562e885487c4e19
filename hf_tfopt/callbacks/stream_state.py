"""A run on a stream goes on where it was stopped, without reading again what it has trained on."""

import logging
from collections.abc import MutableMapping, Sized
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_tfopt.callbacks.base import Intervention
from hf_tfopt.callbacks.checkpoint_folders import checkpoint_folders
from hf_tfopt.callbacks.training import Place, Training
from hf_tfopt.data.restorable import (
    POSITION,
    GoingOn,
    RestorableStream,
    WithPosition,
    is_restorable,
    read_position,
)
from hf_tfopt.data.training_view import loader_inside

logger = logging.getLogger(__name__)


class StreamState(Intervention):
    """Keeps in each checkpoint where the stream stood behind the last batch trained on.

    A resumed run goes on there, in any pass over the stream, bit-equal to a run that was never
    stopped. The host (5.23) reads everything again that was read in the run, all of it as one pass:
    right in the first pass alone. It also tells no callback of a second pass, so that masks would
    be the same in all of them; with this one `state.epoch` is the number of finished passes and a
    fraction (the share of `max_steps`).

    Of what was consumed, each worker of the DataLoader reads again at most 16 rows, and what the
    stream needs to make them: the current buffer of `pack_stream` or of a batched `map`, the
    current shard of a generator. A stream that `datasets` cannot restore (one with a shuffle
    buffer, or not of `datasets`) is read again from the begin of the pass, which is said once.

    A `TfoptTrainer`, and a Trainer given to `attach`, add it by themselves to a run of one process
    on a stream. What it cannot do is then warned of and left to the host; where it was asked for
    (`callbacks=[tfo.StreamState()]`) it is an error. Nothing is done to a dataset with a length.

    Raises:
        ValueError: at the begin: a Trainer not ours, several processes; on resuming: another
            number of workers, another stream.

    Paper: none.
    """

    place = Place.MONITOR  # before a callback that makes other batches of those

    def __init__(self) -> None:
        super().__init__()
        self._is_strict = True
        self._stream: RestorableStream | None = None
        self._is_pass_read = False  # to its end, be it that some of it waits for the next step
        self._has_given = True  # something, since the stream was gone on with
        self._noise: Path | None = None  # the checkpoint whose noise is to be restored
        self._told_to_skip_nothing: TrainingArguments | None = None

    @classmethod
    def where_possible(cls) -> "StreamState":
        """One that nobody asked for: where it would refuse it warns, and the host's way is gone."""
        made = cls()
        made._is_strict = False
        return made

    def begin(self, training: Training) -> None:
        """Track the stream, and have the host skip nothing if it goes on."""
        loader = loader_inside(training.data)
        found: Any = getattr(loader, "dataset", None)
        if not is_stream(found):
            return
        self._check(training.args)
        is_resumed = training.state.global_step > 0 and not training.args.ignore_data_skip
        if is_resumed and not self._can_go_on(training.args):
            self.remembered.clear()
        self._stream = RestorableStream(found, self._is_strict)
        if (is_resumed or self._is_strict) and not is_restorable(found):
            logger.warning(
                "StreamState: this stream (%s) cannot be restored, as it is not of datasets or has "
                "a shuffle buffer: a resumed run reads the current pass again from its begin",
                type(found).__name__,
            )
        # torch forbids this by name; `train_dataset` stays what the user gave
        vars(loader)["dataset"] = self._stream
        loader.collate_fn = WithPosition(loader.collate_fn, self._is_strict)
        memory = self.remembered
        if memory and not training.args.ignore_data_skip:
            self._skip_nothing(training)
        else:
            num_workers = training.args.dataloader_num_workers
            memory |= {"pass": 0, "num_workers": num_workers, **_nothing_read()}

    def _check(self, args: TrainingArguments) -> None:
        if self.trainer is None:
            raise ValueError(
                "StreamState sees no batches in a stock Trainer: give it to a TfoptTrainer or "
                "tfo.attach(trainer, callbacks=[...])"
            )
        if args.world_size > 1:
            raise ValueError(
                f"StreamState keeps the stream of one process, but there are {args.world_size}; "
                "leave it out: the host then reads again on resuming"
            )

    def _can_go_on(self, args: TrainingArguments) -> bool:
        """Whether the checkpoint tells where; else the host skips as many batches, and it is said.

        Raises:
            ValueError: another number of workers, if this callback was asked for.
        """
        memory, num_workers = self.remembered, args.dataloader_num_workers
        if not memory or (memory["num_batches"] and memory["last_worker"] is None):
            why = "the checkpoint does not tell where the stream stood"
        elif memory["num_workers"] != num_workers:
            why = (
                f"the run was stopped with dataloader_num_workers={memory['num_workers']} and "
                f"resumed with {num_workers}, which read the stream in another order: resume "
                f"with {memory['num_workers']}"
            )
            if self._is_strict:
                raise ValueError(why)
        else:
            return True
        logger.warning(
            "StreamState: %s. The host goes on behind as many batches as there were: where it was "
            "in the first pass, but not in a later one",
            why,
        )
        return False

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the stream which pass begins, or goes on where."""
        super().on_epoch_begin(args, state, control, **kwargs)
        if self._stream is None:
            return
        memory = self.remembered
        if memory["is_over"] or self._is_pass_read:
            self._is_pass_read = False
            memory |= {"pass": memory["pass"] + 1, **_nothing_read()}
            if not args.dataloader_persistent_workers:  # which are seeded in the first pass alone
                self._restore_noise()  # the others when a pass begins, behind the checkpoint
        going_on = None
        if memory["last_worker"] is not None:
            first = (memory["last_worker"] + 1) % max(1, memory["num_workers"])
            positions = [read_position(text) for text in memory["positions"].values()]
            by_worker = {position.worker: (position, digest) for position, digest in positions}
            going_on = GoingOn(memory["pass"], first, by_worker)
        self._has_given = going_on is None
        self._stream.begin(memory["pass"], going_on)

    def collected(self, training: Training, batches: list[Any]) -> list[Any]:
        """Take the stream's positions out of the batches of a step."""
        if self._stream is None:
            return batches
        memory = self.remembered
        num_carried = self.trainer.num_carried  # which are of the pass before
        for number, batch in enumerate(batches):
            text = batch.pop(POSITION, None) if isinstance(batch, MutableMapping) else None
            if text is None or number < num_carried:
                continue
            worker = read_position(text)[0].worker
            memory["positions"][str(worker)] = text
            memory["last_worker"] = worker
        memory["num_batches"] += len(batches) - num_carried
        memory["is_over"] = bool(training.data.end_of_dataloader)
        self._has_given = True
        self._restore_noise()  # where the host does it when it has skipped batches
        self._allow_skips()
        return batches

    def stepped(self, training: Training) -> None:
        """Say in which pass the run is; the host counts from 0 again when it goes on."""
        if self._stream is not None:
            self._tell_epoch(training.state, training.args)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The pass is over; but not in a checkpoint where its last batches wait for a step."""
        if self._stream is None:
            return
        is_waiting = self.trainer.has_left_over
        if state.global_step < state.max_steps and (is_waiting or not self._has_given):
            control.should_training_stop = False  # the host saw no step and takes it for the end
            if not self._has_given:
                self._restore_noise()  # of a checkpoint that may be made now
        self._is_pass_read = not control.should_training_stop
        self.remembered["is_over"] |= self._is_pass_read and not is_waiting
        self._tell_epoch(state, args)

    def _tell_epoch(self, state: TrainerState, args: TrainingArguments) -> None:
        memory = self.remembered
        total = state.max_steps * args.gradient_accumulation_steps
        # the run's last step is no pass's end, if more steps are asked for later
        share = min(memory["num_batches"] / total, 1 - 0.5 / total)
        state.epoch = float(memory["pass"] + (1 if memory["is_over"] else share))

    def release(self) -> None:
        """Let go of the stream."""
        super().release()
        self._allow_skips()
        self._noise = None
        if self._stream is not None:
            self._stream.let_go()
            self._stream = None
        self._is_pass_read = False

    def _skip_nothing(self, training: Training) -> None:
        """Have the host skip no batches; it leaves the checkpoint's noise to us then."""
        folders = checkpoint_folders(self.trainer, training)
        self._noise = next((folder for folder in folders if folder.is_dir()), None)
        assert self._noise is not None, "the run goes on from a checkpoint"
        self._told_to_skip_nothing = training.args
        training.args.ignore_data_skip = True

    def _allow_skips(self) -> None:
        if self._told_to_skip_nothing is not None:
            self._told_to_skip_nothing.ignore_data_skip = False
            self._told_to_skip_nothing = None

    def _restore_noise(self) -> None:
        if self._noise is not None:
            self.trainer._load_rng_state(str(self._noise))  # private in the host, trainer.py:1855
            self._noise = None


def _nothing_read() -> dict[str, Any]:
    return {"positions": {}, "last_worker": None, "num_batches": 0, "is_over": False}


def is_stream(dataset: Any) -> bool:
    """Whether it can only be read from its begin to its end, which nobody knows."""
    return isinstance(dataset, IterableDataset) and not isinstance(dataset, Sized)
