"""The epoch of a training run, as the workers of a DataLoader need to know it."""

import warnings
from collections.abc import Sized
from typing import Any

import numpy as np
import torch

from hf_tfopt.data.keyed_bits import Words

NUM_WATCHED = 16  # examples by which a second pass over the data is noticed


class EpochCount:
    """The number of each epoch of a training, as the host numbers them when it begins them.

    `state.epoch` is a share of what the host takes an epoch to be: of a stream, whose passes end
    before, it is no number of them, and in a checkpoint it is that of the run as it was, whose
    epochs may have had another number of steps.
    """

    def __init__(self) -> None:
        self._next = 0
        self._now = 0

    @property
    def now(self) -> int:
        """The epoch that was begun last."""
        return self._now

    def start(self, args: Any, state: Any, loader: Any) -> None:
        """Where a training begins, from its first step or from a checkpoint."""
        try:
            num_batches = len(loader) if isinstance(loader, Sized) else None
        except TypeError:  # of a stream nobody knows
            num_batches = None
        if num_batches is None:
            self._next = int(state.epoch or 0)
        else:
            steps = max(1, -(-num_batches // args.gradient_accumulation_steps))
            self._next = state.global_step // steps

    def begin_epoch(self) -> int:
        """The number of the epoch that begins."""
        self._now, self._next = self._next, self._next + 1
        return self._now


class EpochClock:
    """What a Trainer told a collator, in memory shared with the workers of its DataLoaders.

    Persistent workers are started once: only through shared memory do they hear of a new epoch.
    """

    def __init__(self) -> None:
        # epoch, whether one was set, whether a Trainer sets it, whether the warning was given
        self._told = torch.zeros(4, dtype=torch.int64).share_memory_()
        self._watched = torch.zeros(2, NUM_WATCHED, dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch last set; 0 at first."""
        return int(self._told.numpy()[0])

    @property
    def is_hosted(self) -> bool:
        """Whether a Trainer tells the epochs."""
        return bool(self._told.numpy()[2])

    @property
    def is_watching(self) -> bool:
        """Whether examples that come again would be warned of."""
        _, is_set, is_hosted, has_warned = self._told.numpy()
        return not (is_set or is_hosted or has_warned)

    def set_epoch(self, epoch: int) -> None:
        """Tell every process the epoch."""
        self._told[0], self._told[1] = epoch, 1

    def enter_trainer(self) -> None:
        """Know from now on that a Trainer tells the epochs."""
        self._told[2] = 1

    def watch(self, keys: Words) -> None:
        """Warn once if no epoch was ever set and the examples of the first batch come again."""
        if not self.is_watching:
            return
        known, seen = self._watched.numpy()
        if not known.any():
            known[:] = np.resize(keys.view(np.int64), NUM_WATCHED)
            return
        seen |= (known[:, None] == keys.view(np.int64)).any(axis=1)
        if seen.all():
            self._told[3] = 1
            warnings.warn(
                "MaskedLMCollator gives the same examples the same masks again, as it was never "
                "told an epoch: right for evaluation; for training pass callbacks=[collator] to "
                "the Trainer, use TfoptTrainer, or call set_epoch",
                stacklevel=2,
            )
