"""Which rows of a dataset are in a batch, told afterwards from the sampler."""

from collections.abc import Sequence
from copy import copy
from itertools import islice
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
from torch.utils.data import BatchSampler, SequentialSampler


def dataset_rows(data: Any, epoch: int, batches: Sequence[int]) -> list[list[int]] | None:
    """The rows of the dataset in some batches of an epoch, on this process.

    Equals `[list(data.batch_sampler)[batch] for batch in batches]` at the beginning of that epoch,
    but leaves the sampler as it is.

    Args:
        data: a dataloader as accelerate has prepared it.
        epoch: its number, from 0.
        batches: positions in the epoch, from 0.

    Returns:
        None where it cannot be known: a dataset without rows, or a sampler that does not draw the
        same order twice.
    """
    sampler = _of_epoch(getattr(data, "batch_sampler", None), epoch)
    if sampler is None or not batches:
        return None
    found = dict(enumerate(islice(sampler, max(batches) + 1)))
    if any(batch not in found for batch in batches):
        return None
    return [[int(row) for row in found[batch]] for batch in batches]


def _of_epoch(sampler: Any, epoch: int) -> Any:
    """A copy of a batch sampler that yields an epoch; None if its order is not known."""
    if isinstance(sampler, BatchSamplerShard):
        inner = _of_epoch(sampler.batch_sampler, epoch)
        shard = copy(sampler)
        shard.batch_sampler = inner
        return None if inner is None else shard
    if hasattr(sampler, "of_epoch"):
        return sampler.of_epoch(epoch)
    if type(sampler) is not BatchSampler:
        return None
    if isinstance(sampler.sampler, SequentialSampler):
        return sampler
    if not isinstance(sampler.sampler, SeedableRandomSampler):
        return None
    order = copy(sampler.sampler)
    order.generator = torch.Generator()
    order.set_epoch(epoch)
    return BatchSampler(order, sampler.batch_size, sampler.drop_last)
