"""A run on a stream goes on where it was stopped, without reading again what it has trained on."""

import logging
from collections.abc import Sized
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

    Batches in one row without padding get through, too: accelerate's way with streams
    (`dispatch_batches`, here turned off unless it was asked for) would cut their `cu_seq_lens`.

    For a stream as the training dataset of a `TfoptTrainer`, or of a Trainer given to `attach`, on
    one process; nothing is done to a dataset with a length.

    Raises:
        ValueError: at the begin: a Trainer not ours, several processes; on resuming: another
            number of workers, another stream.

    Paper: none.
    """

    place = Place.MONITOR  # before a callback that makes other batches of those

    def __init__(self) -> None:
        super().__init__()
        self._stream: RestorableStream | None = None
        self._noise: Path | None = None  # the checkpoint whose noise is to be restored
        self._told_to_skip_nothing: TrainingArguments | None = None

    def join(self, trainer: Any) -> None:
        """Put a `RestorableStream` around the training dataset, if it is a stream."""
        super().join(trainer)
        dataset = trainer.train_dataset
        if not _is_stream(dataset) or isinstance(dataset, RestorableStream):
            return
        if trainer.args.world_size > 1:
            raise ValueError(
                f"StreamState keeps the stream of one process, but there are "
                f"{trainer.args.world_size}; leave it out: the host then reads again on resuming"
            )
        if not is_restorable(dataset):
            logger.warning(
                "StreamState: this stream (%s) cannot be restored, as it is not of datasets or has "
                "a shuffle buffer: a resumed run reads the current pass again from its begin",
                type(dataset).__name__,
            )
        trainer.train_dataset = RestorableStream(dataset)
        loading = trainer.accelerator.dataloader_config
        if loading.dispatch_batches is None:  # accelerate (1.15) would cut every tensor of a batch
            loading.dispatch_batches = False  # to its rows, and so where its examples end

    def begin(self, training: Training) -> None:
        """Track the stream, and have the host skip nothing if it goes on."""
        found = getattr(training.data, "dataset", None)
        if not isinstance(found, RestorableStream):
            if _is_stream(found):
                raise ValueError(
                    "StreamState was not told of the stream: give it to a TfoptTrainer or "
                    "tfo.attach(trainer, callbacks=[...]), and do not set train_dataset afterwards"
                )
            return
        loader = getattr(training.data, "base_dataloader", training.data)
        loader.collate_fn = WithPosition(loader.collate_fn)
        self._stream = found
        num_workers = training.args.dataloader_num_workers
        memory = self.remembered
        if memory and not training.args.ignore_data_skip:
            if memory["num_workers"] != num_workers:
                raise ValueError(
                    f"the run was stopped with dataloader_num_workers={memory['num_workers']} and "
                    f"resumed with {num_workers}, which read the stream in another order: resume "
                    f"with {memory['num_workers']}"
                )
            self._skip_nothing(training)
        else:
            memory |= {"pass": 0, "num_workers": num_workers, **_nothing_read()}

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the stream which pass begins, or goes on where."""
        super().on_epoch_begin(args, state, control, **kwargs)
        if self._stream is None:
            return
        memory = self.remembered
        if memory["is_over"]:
            memory |= {"pass": memory["pass"] + 1, **_nothing_read()}
            if not args.dataloader_persistent_workers:  # which are seeded in the first pass alone
                self._restore_noise()  # the others when a pass begins, behind the checkpoint
        going_on = None
        if memory["last_worker"] is not None:
            first = (memory["last_worker"] + 1) % max(1, memory["num_workers"])
            positions = [read_position(text) for text in memory["positions"].values()]
            by_worker = {position.worker: (position, digest) for position, digest in positions}
            going_on = GoingOn(memory["pass"], first, by_worker)
        self._stream.begin(memory["pass"], going_on)

    def collected(self, training: Training, batches: list[Any]) -> list[Any]:
        """Take the stream's positions out of the batches of a step."""
        if self._stream is None:
            return batches
        memory = self.remembered
        for batch in batches:
            text = batch.pop(POSITION)
            worker = read_position(text)[0].worker
            memory["positions"][str(worker)] = text
            memory["last_worker"] = worker
        memory["num_batches"] += len(batches)
        memory["is_over"] = bool(training.data.end_of_dataloader)
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
        """The pass is over, also where its last batches were too few for a step."""
        if self._stream is not None:
            self.remembered["is_over"] |= not control.should_training_stop
            self._tell_epoch(state, args)

    def _tell_epoch(self, state: TrainerState, args: TrainingArguments) -> None:
        memory = self.remembered
        share = memory["num_batches"] / (state.max_steps * args.gradient_accumulation_steps)
        state.epoch = float(memory["pass"] + (1 if memory["is_over"] else share))

    def release(self) -> None:
        """Let go of the stream."""
        super().release()
        self._allow_skips()
        self._noise = None
        if self._stream is not None:
            self._stream.let_go()
            self._stream = None

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


def _is_stream(dataset: Any) -> bool:
    return isinstance(dataset, IterableDataset) and not isinstance(dataset, Sized)
