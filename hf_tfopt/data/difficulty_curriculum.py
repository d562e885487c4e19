"""Easy examples first: batches of those rows that the model is ready for."""

import hashlib
import logging
import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch.distributed as dist

from hf_tfopt.data.batch_plan import BatchPlan, TrainingRun, check_rows_stay, in_rounds
from hf_tfopt.data.difficulty import PACES, Floats, Score, easiest_first, scores_of
from hf_tfopt.data.keyed_bits import Integers, below, bits, mix, shuffled
from hf_tfopt.registry import check_name

logger = logging.getLogger(__name__)

_JOINING, _PASS, _EPOCH = 0x101, 0x9A5, 0xE90C  # streams of the seed


class DifficultyCurriculum(BatchPlan):
    """Every step draws from the easiest rows, a share of them that grows until it is all.

    The share is the competence: `c(t) = min(1, sqrt(t (1 - start^2) / num_steps + start^2))` before
    step t + 1, or in a straight line. A row is eligible from when its rank by difficulty, as a
    share of all rows, is at most c(t); never fewer rows are than a step needs.

    Eligible rows are drawn in passes. A step takes rows by chance from those eligible that the
    pass has not had yet; rows that become eligible join the pass; when none is left, the next pass
    begins with all that are eligible. So no row comes again while an eligible one waits, none is
    twice in a step, and hard rows are not drawn more often than others to make up for their late
    start. An epoch has as many rows as the dataset, so that easy ones come several times in it.
    The epoch in which the share becomes all goes on with its pass to its end; from the next one
    on, every epoch has every row once.

    The rows of every step are a function of the seed, the scores and how rows are cut into steps: a
    resumed run goes on exactly, and two processes see together what one does that accumulates two
    micro-batches, unless fewer rows than processes are left for an epoch's last round: then its
    last two steps are cut otherwise (`in_rounds`), and what follows is drawn otherwise too.

    A resumed run scores again. Scores of the model that is trained must therefore be computed
    before it is, and given as an array (or a column): later it has learned, and ranks the rows
    otherwise, of which a resumed run tells aloud.

    Args:
        score: how hard each row is, the easy ones low: "length" (tokens), "rarity" (of all tokens
            together), the name of a column of numbers, an array, or a function of the dataset
            (computed once for a dataset in each process; another, frozen model's losses:
            `tfo.example_losses`). Rows of the same score come in a random order.
        num_steps: optimizer steps until all rows are eligible; below 1 a share of the run. More
            than the run has are allowed, aloud: its hardest rows are then never trained on.
        start: the share at the beginning, in (0, 1].
        pace: "sqrt" or "linear".
        seed: of the order.

    Raises:
        ValueError: an option out of its range; before training, scores that are not one finite
            number for each row, or all the same, or a dataset whose rows change with the epoch.

    Paper: Platanios et al. 2019, "Competence-based Curriculum Learning for Neural Machine
    Translation" (https://arxiv.org/abs/1903.09848), algorithm 1. Differs: drawn in passes, where
    the paper draws every batch anew; ties have ranks of their own, so that the share is exact; and
    it ends at whole epochs.
    """

    def __init__(
        self,
        score: Score,
        num_steps: float,
        start: float = 0.01,
        pace: str = "sqrt",
        seed: int = 0,
    ):
        if not (isinstance(score, str) or callable(score) or np.ndim(score) == 1):
            raise ValueError(
                f"score is of type {type(score).__name__}; it must be a name, one number for each "
                "row, or a function of the dataset that gives these"
            )
        self.score = score
        self.num_steps = _checked_steps(num_steps)
        if not _is_number(start) or not 0 < start <= 1:
            raise ValueError(f"start is {start!r}; it must be in (0, 1], a share of the rows")
        self.start = float(start)
        self.pace = check_name("pace", pace, PACES)
        if not isinstance(seed, Integral):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"seed is {seed!r}; it must be a whole number")
        self.seed = int(seed)
        self._scored: tuple[Any, Floats] | None = None  # a dataset, and its scores
        self._drawing: tuple[int, _Drawing, Integers] | None = None  # the epoch drawn last

    def prepare(self, run: TrainingRun) -> None:
        """Score the dataset, and find how many steps the share grows for."""
        dataset = run.dataset
        if dataset is None or not len(dataset):
            raise ValueError("the training dataset has no rows")
        check_rows_stay(dataset)
        self._run = run
        self._num_rows = len(dataset)
        self._sizes = _step_sizes(self._num_rows, run)
        if self._scored is None or self._scored[0] is not dataset:
            self._scored = dataset, _of_first(scores_of(self.score, dataset), run.num_processes)
        self._easiest_first = easiest_first(self._scored[1], self.seed)
        self._drawing = None
        total = run.max_steps or math.ceil(run.num_epochs * len(self._sizes))
        steps = self.num_steps if self.num_steps >= 1 else self.num_steps * total
        self._growing_steps = max(1, round(steps))
        self._warn_if_too_long(total)

    def batches(self, epoch: int) -> Sequence[Integers]:
        """The epoch's rows in the order in which they are drawn, cut into rounds."""
        return in_rounds(self._rows(epoch), self._run)

    def digest(self) -> str:
        """Of the rows by their difficulty."""
        return hashlib.sha256(self._easiest_first.astype("<i8").tobytes()).hexdigest()

    def competence(self, steps: Integers) -> Floats:
        """The share that is eligible after these numbers of optimizer steps."""
        return PACES[self.pace](steps, self._growing_steps, self.start)

    def _num_eligible(self, epoch: int) -> Integers:
        """In each step of an epoch."""
        steps = np.arange(epoch * len(self._sizes), (epoch + 1) * len(self._sizes))
        # 1e-9: a competence that is whole but for rounding is whole
        share = np.floor(self.competence(steps) * self._num_rows + 1e-9).astype(np.int64)
        return np.clip(share, max(self._sizes), self._num_rows)

    def _rows(self, epoch: int) -> Integers:
        if self._num_eligible(epoch)[0] == self._num_rows:
            rows = shuffled(self._num_rows, self.seed, _EPOCH, epoch)
            return rows[: sum(self._sizes)]
        if self._drawing is None or self._drawing[0] > epoch:
            self._drawing = -1, _Drawing(self._easiest_first, self.seed), np.empty(0, np.int64)
        last, drawing, rows = self._drawing
        for number in range(last + 1, epoch + 1):
            rows = drawing.epoch(self._num_eligible(number).tolist(), self._sizes)
            self._drawing = number, drawing, rows
        return rows

    def _warn_if_too_long(self, total: int) -> None:
        reached = float(self.competence(np.array([max(0, total - 1)]))[0])
        if self._growing_steps > total:
            logger.warning(
                "The difficulty curriculum takes %d steps and the run has %d: its hardest rows "
                "(%.0f%%) are never trained on",
                self._growing_steps,
                total,
                100 * (1 - reached),
            )


class _Drawing:
    """Passes over growing numbers of eligible rows; see `DifficultyCurriculum`.

    `_waiting` holds the eligible rows that the pass has not had, in a random order, of which the
    next are taken from the end. A row that joins goes to a random place, and what was there to the
    end: all orders stay equally likely.
    """

    def __init__(self, easiest_first: Integers, seed: int):
        self._easiest_first = easiest_first
        self._seed = seed
        self._waiting: list[int] = []
        self._num_joined = self._num_passes = 0
        key = mix(np.array([(seed + 1) * _JOINING % (1 << 64)], dtype=np.uint64))
        counters = np.arange(len(easiest_first))
        self._words = bits(key, np.zeros_like(counters), counters)

    def epoch(self, num_eligible: Sequence[int], sizes: Sequence[int]) -> Integers:
        """The rows of every step of an epoch, one step after the other."""
        rows: list[int] = []
        for eligible, size in zip(num_eligible, sizes, strict=True):
            self._join(eligible)
            rows += self._step(size)
        return np.array(rows, dtype=np.int64)

    def _join(self, num_eligible: int) -> None:
        waiting, before = self._waiting, self._num_joined
        if num_eligible <= before:
            return
        joining = self._easiest_first[before:num_eligible]
        sizes = len(waiting) + 1 + np.arange(len(joining))
        places = below(sizes, self._words[before:num_eligible])
        for row, place in zip(joining.tolist(), places.tolist(), strict=True):
            waiting.append(row)
            waiting[-1], waiting[place] = waiting[place], row
        self._num_joined = num_eligible

    def _step(self, size: int) -> list[int]:
        drawn = self._take(size)
        if len(drawn) < size:
            self._begin_pass(drawn)
            drawn += self._take(size - len(drawn))
        assert len(drawn) == size, "as many rows are eligible as a step needs"
        return drawn

    def _take(self, size: int) -> list[int]:
        start = max(0, len(self._waiting) - size)
        taken = self._waiting[start:]
        del self._waiting[start:]
        return taken

    def _begin_pass(self, drawn: list[int]) -> None:
        """All eligible rows wait again, those that the step has had already behind the others."""
        self._num_passes += 1
        order = shuffled(self._num_joined, self._seed, _PASS, self._num_passes)
        rows = self._easiest_first[order]
        is_drawn = np.isin(rows, drawn)
        self._waiting = np.concatenate([rows[is_drawn], rows[~is_drawn]]).tolist()


def _step_sizes(num_rows: int, run: TrainingRun) -> list[int]:
    """The rows of each step of an epoch."""
    batches = [len(batch) for batch in in_rounds(np.arange(num_rows), run)]
    per_step = run.num_processes * run.num_parts
    return [sum(batches[i : i + per_step]) for i in range(0, len(batches), per_step)]


def _of_first(scores: Floats, num_processes: int) -> Floats:
    """The first process's: losses computed on several devices may differ in their last digits."""
    if num_processes > 1 and dist.is_available() and dist.is_initialized():
        told = [scores]
        dist.broadcast_object_list(told, src=0)
        return told[0]
    return scores


def _checked_steps(num_steps: float) -> float:
    given: Any = num_steps
    is_right = _is_number(given) and 0 < given < math.inf and (given < 1 or given == int(given))
    if not is_right:
        raise ValueError(
            f"num_steps is {given!r}; it must be a whole number of optimizer steps, at least 1, or "
            "a share of the run in (0, 1)"
        )
    return float(num_steps)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and value is not True and value is not False
