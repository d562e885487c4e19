"""Small steps first: the number of rows of a step grows to the Trainer's full batch."""

import math
from typing import Literal, get_args

import numpy as np

from hf_tfopt.data.batch_plan import BatchPlan, TrainingRun, check_rows_stay
from hf_tfopt.data.keyed_bits import Integers, shuffled
from hf_tfopt.registry import check_name

Growth = Literal["linear", "exponential"]


class BatchSizeWarmup(BatchPlan):
    """The rows of a step grow from `start` to the Trainer's full batch within `num_steps` steps.

    `rows(step) = start + (full - start) * step / num_steps` (linear) or
    `start * (full / start) ** (step / num_steps)` (exponential), rounded down; `full` afterwards,
    where `full` is micro-batch x accumulation x processes. A step has as many micro-batches as
    ever; their rows are shared out evenly, so that the loss stays exact.

    The training is one stream of shuffled passes over the dataset, cut into steps: every row is
    trained on `num_train_epochs` times in all (of the last pass, where that is not whole, a part),
    and the number of steps follows; what it exceeds the fewest by makes the steps after the warm-up
    a little smaller. With `max_steps` the number of rows follows. What the host takes for an epoch,
    its evaluations and checkpoints, is an equal share of all steps: the first has fewer rows than a
    pass and the last ones more, so that some rows come twice in them (masked alike both times), and
    where one pass ends and the next begins perhaps twice in a step.

    Pure in (seed, step): a resumed run goes on exactly, and so does one with other processes and
    accumulation whose full batch is the same. Another number of epochs is another run.

    The learning rate stays what its schedule says. The noise of updates goes with lr / rows, so
    that growing batches calm training as a decay would (Smith et al.); to have about the same noise
    from the start, let the learning rate grow along: `warmup_steps=num_steps`.
    `NoiseScale` refuses it: it takes all steps to be full.

    Args:
        start: rows of the first step, of all processes; at least one for each micro-batch.
        num_steps: steps until the batch is full; below 1 a share of the run's steps.
        growth: "linear" or "exponential", by the same factor in each step.
        seed: of the order.

    Raises:
        ValueError: a number out of its range. Before training: a start that is no smaller than the
            full batch or leaves micro-batches empty, a run too short for the warm-up, a dataset
            smaller than a full batch or whose rows change with the epoch, `dataloader_drop_last`.

    Paper: Smith et al. 2018, "Don't Decay the Learning Rate, Increase the Batch Size"
    (https://arxiv.org/abs/1711.00489), grows the batch in jumps in the place of a decay; Brown et
    al. 2020 (https://arxiv.org/abs/2005.14165), appendix B, linearly at the start. Differs: their
    ramp is linear in tokens seen, this one in steps.
    """

    has_whole_batches = False

    def __init__(self, start: int, num_steps: float, *, growth: Growth = "linear", seed: int = 0):
        if start < 1 or start != int(start):
            raise ValueError(f"start is {start}, a number of rows; it must be whole, at least 1")
        if not num_steps > 0 or (num_steps >= 1 and num_steps != int(num_steps)):
            raise ValueError(
                f"num_steps is {num_steps}; it must be a whole number of steps, or a share of the "
                "run's between 0 and 1"
            )
        self.start = int(start)
        self.num_steps = num_steps
        check_name("growth", growth, get_args(Growth))
        self.growth: Growth = growth
        self.seed = seed

    def prepare(self, run: TrainingRun) -> None:
        """Lay out all steps of the training."""
        self._check(run)
        self._num_rows, self._full = len(run.dataset), run.rows_per_step
        self._num_batches = run.num_processes * run.num_parts  # of a step
        sizes, self._steps_per_epoch = self._layout(run)
        if sizes.min() < self._num_batches:
            raise ValueError(
                f"after a warm-up of num_steps={self.num_steps} the run has too few rows left for "
                f"the {self._num_batches} micro-batches of every step: warm up for fewer steps"
            )
        self._ends = sizes.cumsum()

    def batches(self, epoch: int) -> list[Integers]:
        """The batches of an equal share of all steps, which the host takes for an epoch."""
        steps = np.arange(epoch * self._steps_per_epoch, (epoch + 1) * self._steps_per_epoch)
        ends = self._rows_until(steps)
        first = int(self._rows_until(steps[:1] - 1)[0])
        sizes = np.diff(ends, prepend=first)
        # np.array_split of each step
        parts = np.arange(self._num_batches) < (sizes % self._num_batches)[:, None]
        parts = (sizes // self._num_batches)[:, None] + parts
        return np.split(self._stream(first, int(ends[-1])), parts.cumsum()[:-1])

    def _check(self, run: TrainingRun) -> None:
        check_rows_stay(run.dataset)
        full, num_batches = run.rows_per_step, run.num_processes * run.num_parts
        if run.drop_last:
            raise ValueError(
                "dataloader_drop_last has nothing to drop under BatchSizeWarmup, whose steps go on "
                "from one pass over the dataset to the next: leave it out"
            )
        if not num_batches <= self.start < full:
            raise ValueError(
                f"start is {self.start}; it must be at least {num_batches}, a row for each "
                f"micro-batch of a step, and less than the {full} rows of a full one"
            )
        if len(run.dataset) < full:
            raise ValueError(
                f"the training dataset has {len(run.dataset)} rows, fewer than the {full} of a "
                "full batch: make that smaller"
            )

    def _layout(self, run: TrainingRun) -> tuple[Integers, int]:
        """The rows of each step, and the steps of what the host takes for an epoch."""
        if run.max_steps is not None:
            sizes = self._sizes(run.max_steps)
            num_passes = max(1, round(int(sizes.sum()) / self._num_rows))
            return sizes, math.ceil(run.max_steps / num_passes)
        num_rows = round(run.num_epochs * self._num_rows)
        enough = math.ceil(num_rows / self.start / run.num_epochs)
        too_few = 0
        while enough - too_few > 1:
            middle = (too_few + enough) // 2
            if self._sizes(math.ceil(run.num_epochs * middle), False).sum() < num_rows:
                too_few = middle
            else:
                enough = middle
        sizes = self._sizes(math.ceil(run.num_epochs * enough))
        num_warm = self._num_warm(len(sizes))
        rest, num_after = num_rows - int(sizes[:num_warm].sum()), len(sizes) - num_warm
        sizes[num_warm:] = rest // num_after + (np.arange(num_after) < rest % num_after)
        return sizes, enough

    def _num_warm(self, num_steps: int) -> int:
        share = self.num_steps
        return math.ceil(share * num_steps) if share < 1 else int(share)

    def _sizes(self, num_steps: int, is_checked: bool = True) -> Integers:
        num_warm = self._num_warm(num_steps)
        if is_checked and num_warm >= num_steps:
            raise ValueError(
                f"the run ends after {num_steps} steps, before the batch is full: num_steps is "
                f"{self.num_steps}; make it smaller"
            )
        return warm_sizes(num_steps, num_warm, self.start, self._full, self.growth)

    def _rows_until(self, steps: Integers) -> Integers:
        """The rows of these steps and all before; after the run's last one they are full."""
        num_known = len(self._ends)
        known = np.concatenate([[0], self._ends])[np.clip(steps + 1, 0, num_known)]
        return known + self._full * np.maximum(0, steps + 1 - num_known)

    def _stream(self, first: int, end: int) -> Integers:
        """These rows of an endless row of shuffled passes."""
        size = self._num_rows
        passes = range(first // size, (end - 1) // size + 1)
        rows = np.concatenate([shuffled(size, self.seed, number) for number in passes])
        return rows[first - passes[0] * size : end - passes[0] * size]


def warm_sizes(
    num_steps: int, num_warm: int, start: int, full: int, growth: Growth = "linear"
) -> Integers:
    """The rows of each step: from `start` to `full` in `num_warm` steps, then `full`.

    Args:
        num_steps: of the run.
        num_warm: steps before the first full one; at least 1.
        start: rows of the first step.
        full: rows of a full one.
        growth: see `BatchSizeWarmup`.
    """
    steps = np.minimum(np.arange(num_steps), num_warm)
    if growth == "linear":
        return start + (full - start) * steps // num_warm
    # 1e-9: a number that is whole but for rounding is whole
    return np.floor(start * (full / start) ** (steps / num_warm) + 1e-9).astype(np.int64)
