"""The compiled form of `choose_targets`: one pass over each example."""

import ctypes

import numpy as np

from hf_tfopt.data.keyed_bits import Flags, Integers, Words, to_lane
from hf_tfopt.data.masking_rule import MaskingRule, Targets, span_tables
from hf_tfopt.native.build import address, library


class _Rule(ctypes.Structure):
    """`Rule` of native/masking.cpp."""

    _fields_ = (
        ("maskable", ctypes.c_void_p),
        ("replacements", ctypes.c_void_p),
        ("num_replacements", ctypes.c_int64),
        ("mask_id", ctypes.c_int64),
        ("threshold", ctypes.c_uint32),
        ("mask_limit", ctypes.c_uint64),
        ("change_limit", ctypes.c_uint64),
        ("span_lengths", ctypes.c_void_p),
        ("span_residuals", ctypes.c_void_p),
    )


def choose_targets(
    ids: Integers,
    bounds: Integers,
    keys: Words,
    rule: MaskingRule,
    probability: float,
    word_starts: Flags | None,
) -> Targets | None:
    """The targets of `masking.choose_with_arrays`, ascending; None without the library."""
    compiled = library("masking")
    if compiled is None:
        return None
    found = np.empty((3, len(ids)), dtype=np.int64)
    place, row = found.ctypes.data, found.strides[0]
    count = compiled.tfopt_choose_targets(
        address(ids, "i8"),
        address(bounds, "i8"),
        ctypes.c_int64(len(bounds) - 1),
        address(keys, "u8"),
        None if word_starts is None else address(word_starts, "?"),
        ctypes.byref(_settings(rule, probability)),
        ctypes.c_void_p(place),
        ctypes.c_void_p(place + row),
        ctypes.c_void_p(place + 2 * row),
    )
    return Targets(*found[:, :count])


def _settings(rule: MaskingRule, probability: float) -> _Rule:
    spans = span_tables(probability) if rule.unit == "span" else None
    return _Rule(
        address(rule.maskable, "?"),
        address(rule.replacements, "i8"),
        len(rule.replacements),
        rule.mask_id,
        to_lane(probability) if spans is None else spans.start,
        *rule.limits,
        None if spans is None else address(spans.lengths, "u1"),
        None if spans is None else address(spans.residuals, "u1"),
    )
