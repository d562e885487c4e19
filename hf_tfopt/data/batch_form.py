"""The form of a masked batch: how its rows lie in the tensors, and those that tokens alone fill."""

from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from hf_tfopt.data.flat_batch import FlatBatch
from hf_tfopt.data.keyed_bits import Integers, Words
from hf_tfopt.data.masking_rule import Targets

IGNORED = -100  # the label that every loss of the host leaves out


class Size(NamedTuple):
    """How many rows a batch has, all their tokens, and the tokens of the longest."""

    num_rows: int
    num_tokens: int
    longest: int

    @classmethod
    def of(cls, bounds: Integers) -> Self:
        """From where each row begins, and the end of the last."""
        return cls(len(bounds) - 1, int(bounds[-1]), int(np.diff(bounds).max()))


class Form(NamedTuple):
    """How rows lie in the tensors of a batch.

    Args:
        shape: of the tensors.
        is_joined: all rows one after the other in the tensors' one row; else each in its own.
        is_apart: examples are kept apart by position ids and the attention's own arguments; else
            by a 2-D attention mask.
        has_token_types: token types are wanted.
        pad_id: the token id in padding.
        first_position: the position id of an example's first token.
    """

    shape: tuple[int, int]
    is_joined: bool
    is_apart: bool
    has_token_types: bool
    pad_id: int
    first_position: int

    @property
    def names(self) -> list[str]:
        """Of the tensors."""
        types = ["token_type_ids"] if self.has_token_types else []
        apart = "position_ids" if self.is_apart else "attention_mask"
        return ["input_ids", "labels", *types, apart]

    @property
    def num_places(self) -> int:
        """Places in a tensor of the batch."""
        return self.shape[0] * self.shape[1]


class Filled(NamedTuple):
    """What tokens alone fill: the tensors, by the names that a model's forward has for them.

    `ends`: of every example with tokens and of every row's padding in the batch as one row, if
    examples are kept apart by them. `longest` example. `keys`: of each example, to know it again;
    None if that was not asked for.
    """

    tensors: dict[str, Tensor]
    ends: Integers | None
    longest: int
    keys: Words | None


def place(batch: FlatBatch, targets: Targets, keys: Words, form: Form) -> Filled:
    """The tensors of a flat batch; the model sees `targets.inputs` (written into `batch.ids`)."""
    where = _where(batch.rows, form)
    batch.ids[targets.positions] = targets.inputs
    at = targets.positions if where is None else where[targets.positions]
    tensors = {
        "input_ids": _placed(batch.ids, where, form, form.pad_id),
        "labels": _placed(targets.labels, at, form, IGNORED),
    }
    if form.has_token_types:
        tensors["token_type_ids"] = _placed(batch.token_types, where, form, 0)
    longest = int(np.diff(batch.examples).max(initial=0))
    if not form.is_apart:
        tensors["attention_mask"] = _placed(np.ones_like(batch.ids), where, form, 0)
        return Filled(tensors, None, longest, keys)
    ends = _ends(batch, form)
    sizes = np.diff(ends, prepend=0)
    positions = np.arange(form.num_places) - np.repeat(ends - sizes, sizes) + form.first_position
    tensors["position_ids"] = torch.from_numpy(positions.reshape(form.shape))
    return Filled(tensors, ends, longest, keys)


def _where(rows: Integers, form: Form) -> Integers | None:
    """The place of each flat token in the batch as one row; None: its own."""
    if form.is_joined or rows[-1] == form.num_places:
        return None if rows[-1] == form.num_places else np.arange(rows[-1])
    skipped = np.arange(form.shape[0]) * form.shape[1] - rows[:-1]
    return np.arange(rows[-1]) + np.repeat(skipped, np.diff(rows))


def _ends(batch: FlatBatch, form: Form) -> Integers:
    """Where each example with tokens, and each row's padding, ends in the batch as one row."""
    width = form.shape[1]
    rows = batch.rows[[0, -1]] if form.is_joined else batch.rows
    of_row = rows.searchsorted(batch.examples[1:], "left") - 1
    found = batch.examples[1:] + (np.arange(form.shape[0]) * width - rows[:-1])[of_row.clip(0)]
    return np.unique(np.concatenate([found[np.diff(batch.examples) > 0], _row_ends(form)]))


def _row_ends(form: Form) -> Integers:
    return np.arange(1, form.shape[0] + 1) * form.shape[1]


def _placed(values: Integers | None, where: Integers | None, form: Form, fill: int) -> Tensor:
    assert values is not None
    if where is None:
        return torch.from_numpy(values.reshape(form.shape))
    padded = np.full(form.num_places, fill)
    padded[where] = values
    return torch.from_numpy(padded.reshape(form.shape))
