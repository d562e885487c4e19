"""The compiled form of a masked batch: from Arrow's buffers to the tensors in one pass."""

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_tfopt.data.batch_form import Filled, Form, Size
from hf_tfopt.data.columns import ATTENTION_MASK, WORD_IDS, ColumnView
from hf_tfopt.data.flat_batch import RowLists
from hf_tfopt.data.keyed_bits import Integers, content_weights, moment, to_lane
from hf_tfopt.data.masking_rule import MaskingRule, SpanTables, span_tables
from hf_tfopt.data.words import WordTables
from hf_tfopt.native.build import address, library
from hf_tfopt.native.threads import num_threads

PER_THREAD = 2**14  # tokens; fewer are not worth a thread
NUM_KEPT = 8  # masking rates whose settings are kept: training's and evaluation's, mostly


class _Rule(ctypes.Structure):
    """`Rule` of native/masked_batch.cpp."""

    _fields_ = (
        ("maskable", ctypes.c_void_p),
        ("replacements", ctypes.c_void_p),
        ("num_replacements", ctypes.c_int64),
        ("mask_id", ctypes.c_int64),
        ("mask_limit", ctypes.c_uint64),
        ("change_limit", ctypes.c_uint64),
        ("threshold", ctypes.c_uint32),
        ("span_lengths", ctypes.c_void_p),
        ("span_residuals", ctypes.c_void_p),
    )


class _Words(ctypes.Structure):
    """`Words` of native/masked_batch.cpp."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("starts", "first", "last"))


class _Batch(ctypes.Structure):
    """`Batch` of native/masked_batch.cpp."""

    _fields_ = (
        ("rule", _Rule),
        ("words", _Words),
        ("weights", ctypes.c_void_p),
        ("moment", ctypes.c_uint64),
        ("num_ids", ctypes.c_uint64),
        ("pad_id", ctypes.c_int64),
        ("first_position", ctypes.c_int64),
        ("ids", ColumnView),
        ("token_types", ColumnView),
        ("word_ids", ColumnView),
        ("positions", ColumnView),
        ("seen", ColumnView),
        ("rows", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("total", ctypes.c_int64),
        ("input_ids", ctypes.c_void_p),
        ("labels", ctypes.c_void_p),
        ("attention_mask", ctypes.c_void_p),
        ("token_type_ids", ctypes.c_void_p),
        ("position_ids", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("ends", ctypes.c_void_p),
        ("num_examples", ctypes.c_int64),
        ("num_ends", ctypes.c_int64),
        ("num_tokens", ctypes.c_int64),
        ("longest", ctypes.c_int64),
    )


_FIELDS = {
    "input_ids": "ids",
    "token_type_ids": "token_types",
    WORD_IDS: "word_ids",
    "position_ids": "positions",
    ATTENTION_MASK: "seen",
}


class MaskingKernel:
    """Fills batches for one rule; it does nothing where nothing can be compiled.

    Args:
        rule: the units and their fates.
        words: tables that tell words, with special tokens set apart; None where units are tokens.
    """

    def __init__(self, rule: MaskingRule, words: WordTables | None):
        self.rule, self.words = rule, words
        # the tables beside the batch that has their addresses, and nothing else of them
        self._settings: dict[float, tuple[_Batch, SpanTables | None]] = {}

    def __reduce__(self) -> Any:
        """Without addresses, which another process cannot use."""
        return MaskingKernel, (self.rule, self.words)

    def batch(
        self, lists: RowLists, probability: float, seed: int, epoch: int
    ) -> "KernelBatch | None":
        """A batch of these rows to be filled; None where there is no library for it."""
        compiled = library("masked_batch")
        if compiled is None:
            return None
        setting, spans = self._for_rate(probability)
        batch = _Batch.from_buffer_copy(setting)
        for name, column in lists.columns.items():
            if column.view is None:
                return None
            setattr(batch, _FIELDS[name], column.view)
        batch.rows, batch.num_rows = lists.rows.buffer_info()
        batch.moment = moment(seed, epoch)
        return KernelBatch(compiled, batch, lists, spans)

    def _for_rate(self, probability: float) -> tuple[_Batch, SpanTables | None]:
        found = self._settings.get(probability)
        if found is None:
            if len(self._settings) == NUM_KEPT:
                self._settings.clear()
            spans = span_tables(probability) if self.rule.unit == "span" else None
            rule, words = _rule(self.rule, probability, spans), _words(self.words)
            batch = _Batch(rule=rule, words=words, num_ids=len(self.rule.maskable))
            found = self._settings[probability] = batch, spans
        return found


class KernelBatch:
    """A batch that the library fills: first the size of its rows is known, then their tensors."""

    def __init__(
        self, compiled: ctypes.CDLL, batch: _Batch, lists: RowLists, spans: SpanTables | None
    ):
        compiled.tfopt_measure_batch(ctypes.byref(batch))
        self.size = Size(batch.num_rows, batch.num_tokens, batch.longest)
        self._compiled, self._batch = compiled, batch
        self._lists, self._spans = lists, spans  # their buffers are read by address

    def fill(self, form: Form, wants_keys: bool) -> Filled | None:
        """The tensors; None if something is wrong with the rows, which `flat_lists` tells."""
        if not self.size.num_tokens:
            return None
        batch, most = self._batch, self.size.num_rows  # examples
        if self._lists.is_packed:
            most += self.size.num_tokens
        weights = content_weights(self.size.longest)
        batch.weights = weights.ctypes.data
        batch.pad_id, batch.first_position = form.pad_id, form.first_position
        batch.width, batch.total = 0 if form.is_joined else form.shape[1], form.num_places
        tensors = {name: _tensor(batch, name, form.shape) for name in form.names}
        keys = _array(batch, "keys", most) if wants_keys else None
        ends = _array(batch, "ends", most + form.shape[0]) if form.is_apart else None
        threads = num_threads(form.num_places, PER_THREAD)
        if self._compiled.tfopt_fill_batch(ctypes.byref(batch), threads):
            return None
        return Filled(
            tensors,
            None if ends is None else ends[: batch.num_ends],
            batch.longest,
            None if keys is None else keys[: batch.num_examples].view(np.uint64),
        )


def _tensor(batch: _Batch, name: str, shape: tuple[int, int]) -> Tensor:
    tensor = torch.empty(shape, dtype=torch.int64)
    setattr(batch, name, tensor.data_ptr())
    return tensor


def _array(batch: _Batch, name: str, size: int) -> Integers:
    values = np.empty(size, dtype=np.int64)
    setattr(batch, name, values.ctypes.data)
    return values


def _rule(rule: MaskingRule, probability: float, spans: SpanTables | None) -> _Rule:
    return _Rule(
        address(rule.maskable, "?"),
        address(rule.replacements, "i8"),
        len(rule.replacements),
        rule.mask_id,
        *rule.limits,
        to_lane(probability) if spans is None else spans.start,
        None if spans is None else address(spans.lengths, "u1"),
        None if spans is None else address(spans.residuals, "u1"),
    )


def _words(words: WordTables | None) -> _Words:
    if words is None:
        return _Words()
    tables = (words.starts, words.first, words.last)
    return _Words(*(None if table is None else address(table, "u1") for table in tables))
