"""Several tasks' datasets as one: how much of each, and which of its rows, in every epoch."""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from hf_tfopt.data.epoch_clock import EpochClock
from hf_tfopt.data.keyed_bits import Integers, shuffled


def mix(
    datasets: Mapping[str, Any],
    temperature: float = 1.0,
    *,
    cap: int | None = None,
    num_rows: int | None = None,
    seed: int = 0,
) -> "Mixture":
    """One dataset of several tasks', whose rows say their task; `p_i ∝ min(n_i, cap)^(1 / T)`.

    With the defaults every row of every dataset is there once an epoch. Otherwise each epoch goes
    on in each task's rows where the last one ended, and no row comes again before all others of
    its task have; their order is new each time. All is a function of (seed, epoch), so that a run
    that resumes sees what it would have seen. The rows of an epoch lie task by task: shuffle them
    in training, as the host does unless told otherwise.

    Args:
        datasets: by task, of any kind that has a length and rows (dicts) by number.
        temperature: T, above 0: 1 is proportional to size, `math.inf` uniform.
        cap: a dataset counts as no larger than this; at least 1.
        num_rows: rows of an epoch; None: as many as the datasets have, none counted above `cap`.
        seed: of the order within each task.

    Raises:
        ValueError: no dataset, an empty one, a number out of its range, fewer rows than tasks.

    Paper: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified
    Text-to-Text Transformer" (https://arxiv.org/abs/1910.10683), section 3.5.2; the exponent is
    that of multilingual BERT. Differs: the shares are kept exactly in every epoch, not drawn.
    """
    return Mixture(datasets, temperature, cap=cap, num_rows=num_rows, seed=seed)


class Mixture(Dataset[dict[str, Any]]):
    """What `mix` makes. Who trains tells it the epoch (`set_epoch`), at first 0."""

    def __init__(
        self,
        datasets: Mapping[str, Any],
        temperature: float = 1.0,
        *,
        cap: int | None = None,
        num_rows: int | None = None,
        seed: int = 0,
    ):
        self.datasets = {name: datasets[name] for name in sorted(datasets)}
        sizes = {name: len(dataset) for name, dataset in self.datasets.items()}
        for name, size in sizes.items():
            if not size:
                raise ValueError(f"the dataset of task {name!r} is empty; leave the task out")
        self.shares = shares(list(sizes.values()), temperature, cap)
        total = sum(min(size, cap or size) for size in sizes.values())
        quotas = apportion(self.shares, total if num_rows is None else num_rows)
        self.quotas = dict(zip(sizes, quotas, strict=True))
        self.seed = seed
        self._ends = np.cumsum(quotas)
        self._clock = EpochClock()
        self._drawn: tuple[int, list[Integers]] | None = None  # the epoch, and each task's rows

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The rows of these numbers in this epoch, as a DataLoader asks for those of a batch."""
        places = [self._place(index) for index in indices]
        rows: list[dict[str, Any]] = [{} for _ in places]
        for name in {name for name, _ in places}:
            own = [order for order, (task, _) in enumerate(places) if task == name]
            fetched = _fetch(self.datasets[name], [places[order][1] for order in own])
            for order, row in zip(own, fetched, strict=True):
                rows[order] = {**row, "task": name}
        return rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def set_epoch(self, epoch: int) -> None:
        """Give the rows of this epoch from now on, also in workers that are running already."""
        self._clock.set_epoch(epoch)

    def _place(self, index: int) -> tuple[str, int]:
        """The task of a row of this epoch, and its number in the task's dataset."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        task = int(self._ends.searchsorted(index, "right"))
        own = self._rows_of_epoch()[task][index - self._ends[task]]  # counted from the end
        return list(self.datasets)[task], int(own)

    def _rows_of_epoch(self) -> list[Integers]:
        epoch = self._clock.epoch
        if self._drawn is None or self._drawn[0] != epoch:
            drawn = [
                draws(len(dataset), self.quotas[name], epoch, self.seed, name)
                for name, dataset in self.datasets.items()
            ]
            self._drawn = epoch, drawn
        return self._drawn[1]


def _fetch(dataset: Any, numbers: list[int]) -> Sequence[Mapping[str, Any]]:
    if hasattr(dataset, "__getitems__"):  # as those of `datasets`, all at once
        return dataset.__getitems__(numbers)
    return [dataset[number] for number in numbers]


def shares(sizes: Sequence[int], temperature: float, cap: int | None = None) -> list[float]:
    """Each task's share of an epoch: `min(n, cap)^(1 / T)`, divided by the sum over the tasks.

    Raises:
        ValueError: no task, a temperature that is not above 0, or a cap below 1.
    """
    if not sizes:
        raise ValueError("there is no dataset to mix")
    if not temperature > 0:
        raise ValueError(
            f"temperature is {temperature}; it must be above 0 (1: proportional, inf: uniform)"
        )
    if cap is not None and cap < 1:
        raise ValueError(f"cap is {cap}; it must be at least 1, or None")
    logs = np.log([min(size, cap or size) for size in sizes]) / temperature
    powers = np.exp(logs - logs.max())
    return (powers / powers.sum()).tolist()


def apportion(shares: Sequence[float], num_rows: int) -> list[int]:
    """Whole numbers with the sum `num_rows` nearest to `shares * num_rows`, each at least 1.

    Raises:
        ValueError: fewer rows than tasks.
    """
    if num_rows < len(shares):
        raise ValueError(f"num_rows is {num_rows}; the {len(shares)} tasks need one each at least")
    exact = [share * num_rows for share in shares]
    # 1e-9: a share that is whole but for rounding is whole
    whole = [max(math.floor(number + 1e-9), 1) for number in exact]
    while sum(whole) != num_rows:
        step = 1 if sum(whole) < num_rows else -1
        behind = [step * (number - own) for number, own in zip(exact, whole, strict=True)]
        able = [task for task, own in enumerate(whole) if own + step >= 1]
        whole[max(able, key=behind.__getitem__)] += step
    return whole


def draws(size: int, quota: int, epoch: int, seed: int, name: str) -> Integers:
    """The rows of one task in one epoch: `quota` of an endless row of permutations.

    Args:
        size: the number of rows that the task has.
        quota: how many are wanted in every epoch.
        epoch: counted from 0; it begins where the one before ended.
        seed: with the task's name and the number of the permutation, what orders it.
        name: of the task.
    """
    start, end = epoch * quota, (epoch + 1) * quota
    passes = range(start // size, (end - 1) // size + 1)
    task = zlib.crc32(name.encode())
    rows = np.concatenate([shuffled(size, seed, task, number) for number in passes])
    first = start - passes[0] * size
    return rows[first : first + quota]
