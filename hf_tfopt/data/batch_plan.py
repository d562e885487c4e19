"""Which rows make up the batches of an epoch: the same on every process, a function of the epoch.

A plan says it for all processes at once; each takes its share of every round. So the order does not
depend on workers, a run that resumes sees what it would have seen, and no row is there twice to
fill up the last batch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hf_tfopt.data.keyed_bits import Integers


class TrainingRun(NamedTuple):
    """What a plan has to know of the training that it is for.

    Args:
        dataset: the training dataset as it was given to the Trainer, with all its columns.
        batch_size: rows of a micro-batch of one process.
        num_processes: that see different data.
        num_parts: micro-batches of a step (gradient accumulation).
        num_epochs: as asked for; not whole, perhaps.
        max_steps: as asked for; None: `num_epochs` decides.
        drop_last: leave out what does not fill a round of whole batches.
    """

    dataset: Any
    batch_size: int
    num_processes: int = 1
    num_parts: int = 1
    num_epochs: float = 1.0
    max_steps: int | None = None
    drop_last: bool = False

    @property
    def rows_per_step(self) -> int:
        """Of a whole step of all processes."""
        return self.batch_size * self.num_processes * self.num_parts


class BatchPlan:
    """The batches of every epoch; for `TfoptTrainer(sampler=...)` and `attach(sampler=...)`.

    A subclass gives `prepare` and `batches`. Batches come in rounds of one for each process: batch
    `r` of a round is process `r`'s. Their number, the same in every epoch, is what the host makes
    the number of steps of.
    """

    has_whole_batches = True  # of `batch_size` rows, but the last ones of an epoch

    def prepare(self, run: TrainingRun) -> None:
        """Before a training: look at its dataset; raises ValueError for one that does not fit."""
        raise NotImplementedError

    def batches(self, epoch: int) -> Sequence[Integers]:
        """The rows of each batch; as many as processes or a multiple, the same in every epoch."""
        raise NotImplementedError

    def digest(self) -> str | None:
        """What `prepare` has made of the dataset, for a resumed run to find the same; None: any."""
        return None


def check_rows_stay(dataset: Any) -> None:
    """Raise ValueError for a dataset whose rows are others in every epoch, as of `tfo.mix`."""
    if hasattr(dataset, "set_epoch"):
        raise ValueError(
            f"the rows of the dataset ({type(dataset).__name__}) are others in every epoch, so "
            "nothing can be planned by their numbers; give one dataset that stays as it is "
            "(datasets.concatenate_datasets joins several)"
        )


def in_rounds(order: Integers, run: TrainingRun) -> list[Integers]:
    """Cut an order of rows into batches; what is left in the end is shared by all processes.

    Batch i of the result holds the rows `order[i * batch_size : (i + 1) * batch_size]`, but the
    last ones: where the rows do not fill a round, its batches are as even as can be, none is empty
    and no row is in two (`drop_last`: these rows are left out). Where fewer rows than processes are
    left, the round before gives some of its own: of the step before, perhaps, so that the last two
    steps of an epoch are cut otherwise than on another number of processes.

    Raises:
        ValueError: fewer rows than processes, none fills a round with `drop_last`, or single rows
            that the processes cannot share.
    """
    size, num_processes = run.batch_size, run.num_processes
    per_round = size * num_processes
    num_rounds, num_left = divmod(len(order), per_round)
    if len(order) < num_processes or (run.drop_last and not num_rounds):
        needed = per_round if run.drop_last else num_processes
        raise ValueError(
            f"the training dataset has {len(order)} rows, and one round of batches needs {needed} "
            f"({num_processes} processes, batches of {size}, drop_last={run.drop_last})"
        )
    if run.drop_last or not num_left:
        return list(order[: num_rounds * per_round].reshape(-1, size))
    if size == 1:
        raise ValueError(
            f"{len(order)} rows in batches of 1 cannot be shared by {num_processes} processes, "
            "which need as many batches each: use dataloader_drop_last=True (what is left out is "
            "other rows in every epoch), or per_device_train_batch_size=2"
        )
    if num_left < num_processes:  # the round before gives some of its own
        num_rounds, num_left = num_rounds - 1, num_left + per_round
    whole = list(order[: num_rounds * per_round].reshape(-1, size))
    rest = order[num_rounds * per_round :]
    num_batches = -(-num_left // per_round) * num_processes
    return [*whole, *np.array_split(rest, num_batches)]
