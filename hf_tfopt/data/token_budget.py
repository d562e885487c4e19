"""Batches of as many rows as fit into a number of tokens after padding."""

import heapq

import numpy as np
from numpy.typing import ArrayLike

from hf_tfopt.data.batch_plan import BatchPlan, TrainingRun
from hf_tfopt.data.keyed_bits import Integers, shuffled
from hf_tfopt.data.length_buckets import LengthBuckets, cut, length_buckets
from hf_tfopt.data.row_lengths import padded_rows, row_lengths

_ROWS, _FIRST, _STEPS = range(3)  # what is drawn anew in every epoch


class TokenBudget(BatchPlan):
    """As many rows in each batch as fit into `max_tokens` after padding, of similar length.

    `len(batch) * max(lengths[batch]) <= max_tokens`, lengths rounded up to `multiple`.

    Rows come in buckets of similar length, as large as `max_padding` permits. In every epoch the
    rows of a bucket are shuffled and cut into batches, at places of their own, what is left goes
    with rows of the next longer bucket, and the batches are shuffled. So an example meets others
    of about its length alone; a step of several micro-batches or processes mixes lengths.

    Every row is trained on once an epoch and none twice. The number of batches, the same in every
    epoch, is a multiple of the micro-batches of a step (processes times accumulation), for which
    all are a little smaller; with as many of them, other processes and accumulation give the same
    steps. Processes that work at the same time have batches of about as many positions. The loss of
    `TfoptTrainer` is divided by what the whole step holds: exact, however unequal its batches.

    A step of short rows has more of them than one of long rows. Where each token is a target, steps
    weigh alike; where each row is one, as in classification, rows of long batches weigh more in
    their mean, the less so the more micro-batches a step has and the lower `max_rows` is.

    `per_device_train_batch_size` has no say, nor `auto_find_batch_size`, which would change it.
    `NoiseScale` refuses it: it takes all micro-batches to be of that size. A dataset of less than
    about 30 batches has buckets of hardly more than one: much the same rows meet in every epoch.

    Args:
        max_tokens: of a batch of one process, padding included.
        lengths: see `row_lengths`; of encoder-decoders give the longer side of each row.
        seed: of the order.
        multiple: the collator's `pad_to_multiple_of`.
        max_rows: of a batch; None: as many as fit.
        max_padding: the share of all positions that may hold padding, in [0, 1), where rows of one
            length are padded to `multiple` anyway. Less makes batches more alike in length. Where
            even buckets of one batch need more, each length is a bucket, which needs least.

    Raises:
        ValueError: a number out of its range. Before training: lengths that `row_lengths` refuses,
            rows that are padded already, empty or longer than `max_tokens`, too few rows for the
            processes, `dataloader_drop_last`.

    Paper: none.
    """

    has_whole_batches = False

    def __init__(
        self,
        max_tokens: int,
        lengths: str | ArrayLike | None = None,
        *,
        seed: int = 0,
        multiple: int = 1,
        max_rows: int | None = None,
        max_padding: float = 0.02,
    ):
        counts = {"max_tokens": max_tokens, "multiple": multiple, "max_rows": max_rows}
        for name, value in counts.items():
            if value is not None and (value < 1 or value != int(value)):
                raise ValueError(f"{name} is {value}; it must be a whole number, at least 1")
        if not 0 <= max_padding < 1:
            raise ValueError(f"max_padding is {max_padding}, a share; it must be in [0, 1)")
        self.max_tokens = int(max_tokens)
        self.lengths = lengths
        self.seed = seed
        self.multiple = int(multiple)
        self.max_rows = None if max_rows is None else int(max_rows)
        self.max_padding = max_padding

    def prepare(self, run: TrainingRun) -> None:
        """Measure the rows and find the buckets."""
        if run.drop_last:
            raise ValueError(
                "dataloader_drop_last has nothing to drop under TokenBudget, whose batches are "
                "all of the size they should be: leave it out"
            )
        lengths = row_lengths(run.dataset, self.lengths)
        full = padded_rows(run.dataset)
        if len(full):
            raise ValueError(
                f"{len(full)} of {len(lengths)} rows are padded already (zeros in attention_mask; "
                f"the first is row {full[0]}): tokenize with padding=False"
            )
        padded = -(-lengths // self.multiple) * self.multiple
        check_lengths(lengths, padded, self.max_tokens)
        self._buckets = length_buckets(
            padded, self.max_tokens, max_padding=self.max_padding, max_rows=self.max_rows
        )
        fitting = self._buckets.fitting(self.max_tokens, self.max_rows)
        fewest, per_step = (
            len(cut(self._buckets.ends, fitting)),
            run.rows_per_step // run.batch_size,
        )
        has_room = fewest + per_step <= len(lengths)
        self._share = per_step if has_room else run.num_processes
        self._num_batches = in_shares(fewest, len(lengths), self._share)
        self._fitting = evened(self._buckets, self.max_tokens, self.max_rows, self._num_batches)

    def batches(self, epoch: int) -> list[Integers]:
        """Rounds of one batch for each process, anew in every epoch."""
        return draw_batches(
            self._buckets,
            self._fitting,
            self._num_batches,
            epoch=epoch,
            seed=self.seed,
            share=self._share,
        )


def check_lengths(lengths: Integers, padded: Integers, max_tokens: int) -> None:
    """Raise ValueError for rows of which there can be no batch."""
    if not len(lengths):
        raise ValueError("the training dataset has no rows")
    empty, too_long = np.flatnonzero(lengths < 1), np.flatnonzero(padded > max_tokens)
    if len(empty):
        raise ValueError(
            f"{len(empty)} of {len(lengths)} rows have no tokens (the first is row {empty[0]}): "
            "leave them out"
        )
    if len(too_long):
        row = too_long[0]
        raise ValueError(
            f"{len(too_long)} of {len(lengths)} rows are longer than max_tokens={max_tokens} (the "
            f"first is row {row} with {lengths[row]} tokens, the longest has {lengths.max()}): "
            f"use max_tokens={padded.max()} or more, or shorten the rows"
        )


def in_shares(fewest: int, num_rows: int, share: int) -> int:
    """The number of batches: one more than the fewest, or as many, in whole shares.

    Raises:
        ValueError: the rows cannot be divided so.
    """
    num_batches = -(-(fewest + 1) // share) * share
    if num_batches > num_rows:
        num_batches = num_rows // share * share
    if num_batches < fewest or not num_batches:
        raise ValueError(
            f"the training dataset's {num_rows} rows make {fewest} batches at least, which cannot "
            f"be divided among {share} processes: use fewer of them, or a larger max_tokens"
        )
    return num_batches


def evened(
    buckets: LengthBuckets, max_tokens: int, max_rows: int | None, num_batches: int
) -> Integers:
    """How many rows of each bucket fit a batch, for the smallest budget that needs no more batches.

    Batches of about one size, where all that fit would leave some that are small.
    """
    low, high = int(buckets.widths[-1]), max_tokens
    while low < high:
        middle = (low + high) // 2
        if len(cut(buckets.ends, buckets.fitting(middle, max_rows))) < num_batches:
            high = middle
        else:
            low = middle + 1
    return buckets.fitting(high, max_rows)


def draw_batches(
    buckets: LengthBuckets,
    fitting: Integers,
    num_batches: int,
    *,
    epoch: int = 0,
    seed: int = 0,
    share: int = 1,
) -> list[Integers]:
    """The batches of an epoch: every row in one.

    Args:
        buckets: of the rows.
        fitting: how many rows of each bucket fit into a batch.
        num_batches: a multiple of `share`, not more than rows nor less than `cut` finds.
        epoch: of the order.
        seed: of the order.
        share: of so many batches that follow one another, the largest come first.
    """
    order = shuffled(len(buckets.bucket_of_row), seed, epoch, _ROWS)
    order = order[buckets.bucket_of_row[order].argsort(kind="stable")]
    fewest = cut(buckets.ends, fitting)
    # A first batch of any size moves the ends of all that follow, so that rows meet others.
    first = 1 + int(shuffled(int(fewest[0]), seed, epoch, _FIRST)[0])
    moved = cut(buckets.ends, fitting, first)
    ends = halved(fewest if len(moved) > num_batches else moved, buckets, num_batches)
    positions = _positions(ends, buckets)
    steps = shuffled(num_batches, seed, epoch, _STEPS).reshape(-1, share)
    by_size = np.argsort(-positions[steps], axis=1, kind="stable")
    batches = np.split(order, ends[:-1])
    return [batches[number] for number in np.take_along_axis(steps, by_size, axis=1).ravel()]


def _positions(ends: Integers, buckets: LengthBuckets) -> Integers:
    """Of each batch, as wide as the bucket that it ends in."""
    widths = buckets.widths[buckets.ends.searchsorted(ends, "left")]
    return np.diff(ends, prepend=0) * widths


def halved(ends: Integers, buckets: LengthBuckets, num_batches: int) -> Integers:
    """Halve the batch with the most positions, again and again, until there are so many.

    Args:
        ends: of the batches, in the order of the buckets.
        buckets: say how wide a batch is.
        num_batches: wanted; not more than rows.
    """
    num_missing, sizes = num_batches - len(ends), np.diff(ends, prepend=0)
    positions = _positions(ends, buckets)
    several = np.flatnonzero(sizes > 1)
    largest = several[np.argsort(-positions[several], kind="stable")[:num_missing]]
    columns = (-positions[largest], ends[largest], sizes[largest])
    heap = list(zip(*(column.tolist() for column in columns), strict=True))
    heapq.heapify(heap)
    found = list[int]()
    while len(found) < num_missing:
        cost, end, size = heapq.heappop(heap)
        found.append(end - size // 2)
        for half_end, half in ((found[-1], size - size // 2), (end, size // 2)):
            if half > 1:
                heapq.heappush(heap, (cost * half / size, half_end, half))
    return np.sort(np.concatenate([ends, np.array(found, dtype=np.int64)]))
