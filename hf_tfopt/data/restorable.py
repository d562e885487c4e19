"""A stream whose rows come with where it stands, and that goes on from there."""

import json
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, MutableMapping, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from datasets.iterable_dataset import BufferShuffledExamplesIterable
from torch.utils.data import get_worker_info

logger = logging.getLogger(__name__)

POSITION = "stream_position"  # under which a batch has the position of its last row
_ROWS_PER_STATE = 16  # one state of the stream for so many rows; as many are read again


class Position(NamedTuple):
    """Where a stream stands behind a row, in one worker of a DataLoader.

    Args:
        worker: its number; 0 without workers.
        state: of the stream, as JSON, `num_since` rows before; None: the pass's begin.
        num_since: rows read since.
        num_read: rows read in the pass.
    """

    worker: int
    state: str | None
    num_since: int
    num_read: int


class GoingOn(NamedTuple):
    """Where a pass that was broken off goes on.

    Args:
        number: of the pass.
        first_worker: whose turn it is.
        positions: by worker, behind the row whose `digest` stands beside it.
    """

    number: int
    first_worker: int
    positions: Mapping[int, tuple[Position, str]]


class RestorableStream(torch.utils.data.IterableDataset[Any]):
    """The rows of a stream; while it is tracked, pairs of a row and the `Position` behind it.

    Args:
        stream: of `datasets`, or any other without a length. What is not of `datasets`, or goes
            through a shuffle buffer, cannot be restored: its rows are read again.
        is_strict: whether a stream without the row it was left at is an error; else it goes on
            behind as many rows, which is warned of.
    """

    def __init__(self, stream: torch.utils.data.IterableDataset[Any], is_strict: bool = True):
        self.stream = stream
        self.is_strict = is_strict
        self.is_tracked = False
        # persistent workers hear of a new pass through shared memory alone
        self._number = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._going_on: GoingOn | None = None
        self._seat: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """The host's word, who counts from 0 again when a run goes on; not if it is tracked."""
        if not self.is_tracked:
            self._tell(epoch)

    def begin(self, number: int, going_on: GoingOn | None = None) -> None:
        """Track; what is read next is this pass, from where it was broken off if it was."""
        self.is_tracked = True
        self._tell(number)
        if going_on is not None:
            self._going_on = going_on

    def let_go(self) -> None:
        """Give rows alone, from now on."""
        self.is_tracked = False
        self._going_on = None

    def __iter__(self) -> Iterator[Any]:
        number = int(self._number)
        if get_worker_info() is not None and not isinstance(self.stream, datasets.IterableDataset):
            self._tell(number)
        if not self.is_tracked:
            yield from self.stream
            return
        going_on = self._going_on
        if going_on is None or going_on.number != number:
            yield from self._rows(self._sit(0))
            return
        worker = self._sit(going_on.first_worker)
        if worker in going_on.positions:
            yield from self._rest(*going_on.positions[worker])
        else:
            yield from self._rows(worker)

    def _tell(self, number: int) -> None:
        """The pass, told once for all workers: those of `datasets` share it, and adding races."""
        self._number[0] = number
        stream: Any = self.stream
        if hasattr(stream, "set_epoch"):
            stream.set_epoch(number)

    def _sit(self, first: int) -> int:
        """Be the worker whose turn it is, as a DataLoader begins with its worker 0; its number.

        Streams ask for the number of their worker to know which shards are theirs.
        """
        info = get_worker_info()
        if info is None:
            return 0
        self._seat = info.id if self._seat is None else self._seat
        worker = (self._seat + first) % info.num_workers
        object.__setattr__(info, "id", worker)  # it is frozen, and this process's own
        return worker

    def _rows(
        self, worker: int, state: str | None = None, num_before: int = 0
    ) -> Generator[tuple[Any, Position]]:
        """The rows of a worker, from a state on, before which it had read so many."""
        stream: Any = self.stream
        if state is not None:
            stream = _restored(stream, state)
        has_states = is_restorable(stream)
        num_since = 0
        for num_read, row in enumerate(stream, num_before + 1):
            num_since += 1
            yield row, Position(worker, state, num_since, num_read)
            if has_states and num_since >= _ROWS_PER_STATE:
                state, num_since = json.dumps(stream.state_dict()), 0

    def _rest(self, at: Position, digest: str) -> Generator[tuple[Any, Position]]:
        """The rows behind a position, if the row before it is the same."""
        num_before = at.num_read - at.num_since
        attempts = [(at.state, num_before, at.num_since)] if at.state is not None else []
        for state, before, num_again in [*attempts, (None, 0, at.num_read)]:
            rows = self._rows(at.worker, state, before)
            try:
                again = deque(islice(rows, num_again), maxlen=1)
            except Exception:
                if state is None:
                    raise
                continue  # of a stream made otherwise, whose rows may be the same
            if again and digest_of(again[0][0]) == digest:
                yield from rows
                return
        told = (
            f"the stream does not have the row again that the run was trained on before it was "
            f"stopped (row {at.num_read} of pass {int(self._number)} in worker {at.worker}): it "
            "must be the same stream, in the same order, with the same dataloader_num_workers"
        )
        if self.is_strict:
            raise ValueError(told)
        logger.warning("%s; it goes on behind as many rows", told)
        rows = self._rows(at.worker)
        deque(islice(rows, at.num_read), maxlen=0)
        yield from rows


def _restored(stream: datasets.IterableDataset, state: str) -> datasets.IterableDataset:
    """A copy that goes on from a state; the other one still begins at the beginning."""
    # made by hand, as what `copy` makes of it shares all attributes (datasets 5.2, __getstate__)
    copied = object.__new__(type(stream))
    vars(copied).update(vars(stream))
    copied.load_state_dict(json.loads(state))
    return copied


class WithPosition:
    """A collator for the rows of a `RestorableStream` that is tracked.

    The batch has the last row's position under `POSITION`, as JSON; one that is no dictionary has
    none, unless `is_strict` makes it an error.
    """

    def __init__(self, collator: Callable[[list[Any]], Any], is_strict: bool = True):
        self.collator = collator
        self.is_strict = is_strict

    def __call__(self, rows: Sequence[tuple[Any, Position]]) -> Any:
        """The inner collator's batch of the rows, and where the stream stands behind them."""
        last, position = rows[-1]
        text = json.dumps([*position, digest_of(last)])
        batch = self.collator([row for row, _ in rows])
        if not isinstance(batch, MutableMapping):
            if not self.is_strict:
                return batch
            raise ValueError(
                f"the collator makes batches of type {type(batch).__name__}; StreamState needs "
                "dictionaries, to have the stream's position travel with them"
            )
        batch[POSITION] = text
        return batch


def read_position(text: str) -> tuple[Position, str]:
    """A batch's position, and the digest of the row before it."""
    *position, digest = json.loads(text)
    return Position(*position), digest


def is_restorable(stream: Any) -> bool:
    """Whether `datasets` can restore where a stream stood: without a shuffle buffer on the way."""
    if not isinstance(stream, datasets.IterableDataset):
        return False
    given: Any = stream  # what a stream is made of is not public
    made_of = [given._ex_iterable]
    while made_of:
        part = made_of.pop()
        if isinstance(part, BufferShuffledExamplesIterable) and part.buffer_size > 1:
            return False
        inside = [getattr(part, "ex_iterable", None), *getattr(part, "ex_iterables", ())]
        made_of += [each for each in inside if each is not None]
    return True


def digest_of(row: Any) -> str:
    """A few letters by which a row is known again, from what has a content to compare."""
    return blake2b(_content(row).encode(), digest_size=8).hexdigest()


def _content(value: Any) -> str:
    if isinstance(value, Mapping):
        return repr([(str(name), _content(part)) for name, part in value.items()])
    if isinstance(value, np.ndarray | torch.Tensor):
        return repr(value.tolist())
    if isinstance(value, list | tuple):
        return repr([_content(part) for part in value])
    if hasattr(value, "tobytes"):  # an image, or a number of numpy's
        return value.tobytes().hex()
    is_plain = value is None or isinstance(value, str | bytes | int | float)
    return repr(value) if is_plain else type(value).__name__  # others may show their address
