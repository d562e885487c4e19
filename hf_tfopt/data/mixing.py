"""Several tasks' datasets as one: how much of each, and which of its rows, in every epoch."""

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from hf_tfopt.data.columns import Column
from hf_tfopt.data.epoch_clock import EpochClock
from hf_tfopt.data.keyed_bits import Integers, shuffled
from hf_tfopt.data.rows import Row

TASK = "task"  # the column of a mixture's rows that says where they come from


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
        datasets: by task, of any kind that has a length and rows (dicts, or of `ArrowRows`) by
            number. A column "task" of their own gives way.
        temperature: T, above 0: 1 is proportional to size, `math.inf` uniform.
        cap: a dataset counts as no larger than this; at least 1.
        num_rows: rows of an epoch; None: as many as the datasets have, none counted above `cap`.
        seed: of the order within each task.

    Raises:
        ValueError: no dataset, one that is empty or read in its own order only, a number out of its
            range, fewer rows than tasks.

    Paper: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified
    Text-to-Text Transformer" (https://arxiv.org/abs/1910.10683), section 3.5.2; the exponent is
    that of multilingual BERT. Differs: the shares are kept exactly in every epoch, not drawn.
    """
    return Mixture(datasets, temperature, cap=cap, num_rows=num_rows, seed=seed)


class Mixture(Dataset[Mapping[str, Any]]):
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
        sizes = _sizes(datasets)
        for name, number in {"cap": cap, "num_rows": num_rows}.items():
            if number is not None and number != int(number):
                raise ValueError(f"{name} is {number}; it must be a whole number, or None")
        self.datasets = {name: datasets[name] for name in sizes}
        self.shares = shares(list(sizes.values()), temperature, cap)
        total = sum(min(size, cap or size) for size in sizes.values())
        quotas = apportion(self.shares, int(total if num_rows is None else num_rows))
        self.quotas = dict(zip(sizes, quotas, strict=True))
        self.seed = seed
        self._names = list(sizes)
        self._ends = np.cumsum(quotas)
        self._clock = EpochClock()
        self._drawn: tuple[int, list[Integers]] | None = None  # the epoch, and each task's rows
        self._columns: dict[str, _TaskColumns] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        """The rows of these numbers in this epoch, as a DataLoader asks for those of a batch."""
        places, size = np.asarray(indices, dtype=np.int64), len(self)
        wrong = places[(places < -size) | (places >= size)]
        if len(wrong):
            raise IndexError(f"row {wrong[0]} of {size}")
        places = places % size
        tasks = self._ends.searchsorted(places, "right")
        rows: list[Mapping[str, Any]] = [{}] * len(places)
        for task in np.unique(tasks).tolist():
            own = np.flatnonzero(tasks == task)
            numbers = self._rows_of_epoch()[task][places[own] - self._ends[task]]  # from the end
            fetched = _fetch(self.datasets[self._names[task]], numbers.tolist())
            for order, row in zip(own.tolist(), fetched, strict=True):
                rows[order] = self._with_task(row, self._names[task])
        return rows

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        """Without the columns of `ArrowRows`, which a worker opens again."""
        return {**self.__dict__, "_columns": {}}

    def set_epoch(self, epoch: int) -> None:
        """Give the rows of this epoch from now on, also in workers that are running already."""
        self._clock.set_epoch(epoch)
        for dataset in self.datasets.values():
            if hasattr(dataset, "set_epoch"):  # a mixture, too
                dataset.set_epoch(epoch)

    def _with_task(self, row: Mapping[str, Any], task: str) -> Mapping[str, Any]:
        """The row and its task; one of `ArrowRows` is still read when it is asked for."""
        if not isinstance(row, Row):
            return {**row, TASK: task}
        known = self._columns.get(task)
        if known is None or known.own is not row.columns:
            known = _TaskColumns(row.columns, {**row.columns, TASK: _Name(task)})
            self._columns[task] = known
        return Row(known.with_task, row.index)

    def _rows_of_epoch(self) -> list[Integers]:
        epoch = self._clock.epoch
        if self._drawn is None or self._drawn[0] != epoch:
            drawn = [
                draws(len(dataset), self.quotas[name], epoch, self.seed, name)
                for name, dataset in self.datasets.items()
            ]
            self._drawn = epoch, drawn
        return self._drawn[1]


class _Name(Column):
    """The task of all rows of one dataset."""

    def __init__(self, task: str):
        self.task = task

    def __getitem__(self, row: int) -> str:
        return self.task


class _TaskColumns(NamedTuple):
    """The columns of a task's `ArrowRows`, as they are and with one more."""

    own: Mapping[str, Column]
    with_task: Mapping[str, Column]


def _sizes(datasets: Any) -> dict[str, int]:
    """The rows of each task's dataset, by sorted names."""
    if not isinstance(datasets, Mapping) or not all(isinstance(name, str) for name in datasets):
        raise ValueError(
            f"datasets is {type(datasets).__name__}; it must be datasets by the names of their "
            "tasks, such as {'news': ..., 'code': ...}"
        )
    sizes: dict[str, int] = {}
    for name in sorted(datasets):
        dataset: Any = datasets[name]
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise ValueError(
                f"the dataset of task {name!r} ({type(dataset).__name__}) can only be read in its "
                "own order; a mixture takes rows by number"
            )
        if isinstance(dataset, Mapping):  # a DatasetDict, most often
            raise ValueError(
                f"the dataset of task {name!r} is a {type(dataset).__name__} of "
                f"{', '.join(map(str, dataset))}: take one of them"
            )
        sizes[name] = len(dataset)
        if not sizes[name]:
            raise ValueError(f"the dataset of task {name!r} is empty; leave the task out")
    return sizes


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
