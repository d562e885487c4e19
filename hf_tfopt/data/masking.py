"""Which tokens a masked language model must guess: a pure function of (seed, epoch, example).

All examples of a batch lie one after the other in one flat array, and there is no random generator:
the bits of an example are hashes of (seed, epoch, its own token ids, a counter). So a mask depends
neither on workers, ranks and restarts, nor on the batch, padding or packed row its example is in.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hf_tfopt.data.keyed_bits import (
    CHOICE,
    FALLBACK,
    FATES,
    REPLACEMENT,
    SPAN,
    Flags,
    Integers,
    Words,
    below,
    bits,
    lanes_below,
    lower_half,
    to_lane,
)
from hf_tfopt.data.masking_rule import MaskingRule, Targets, span_tables


def choose_targets(
    ids: Integers,
    bounds: Integers,
    keys: Words,
    rule: MaskingRule,
    probability: float,
    word_starts: Flags | None = None,
) -> Targets:
    """Choose units with `probability` each, and one more in an example that would have none.

    A unit is masked, replaced or kept as a whole; every token of a replaced one is drawn anew.

    Args:
        ids: the token ids of all examples, one after the other.
        bounds: where each example begins, and the end of the last.
        keys: `example_keys` of these examples.
        rule: the units and their fates.
        probability: the share of maskable tokens to choose, in (0, 1).
        word_starts: whether a word or a special token starts at each token, see `set_apart`; for
            words and spans. It is written into.

    Paper: Devlin et al. 2019, BERT (https://arxiv.org/abs/1810.04805), section 3.1; for spans
    Joshi et al. 2020, SpanBERT (https://arxiv.org/abs/1907.10529), section 3.1. Differs: units are
    drawn independently, so an example's number of targets varies around the rate; a span may be
    cut short by the next one, and the rate is exact at every position.
    """
    positions, fate = _chosen_tokens(ids, bounds, keys, rule, probability, word_starts)
    labels = ids[positions]
    inputs = np.full(len(labels), rule.mask_id)
    masked, changed = rule.limits
    others = np.flatnonzero(fate >= masked)
    inputs[others] = labels[others]
    replaced = others[fate[others] < changed]
    places = positions[replaced]
    rows = bounds.searchsorted(places, "right") - 1
    drawn = below(len(rule.replacements), bits(keys[REPLACEMENT], rows, places - bounds[rows]))
    inputs[replaced] = rule.replacements[drawn]
    return Targets(positions, labels, inputs)


class Units(NamedTuple):
    """What is chosen as a whole: tokens, or words with every special token one by itself.

    `first`: the flat position of each unit's first token; None where units are tokens. `bounds`:
    the index of each example's first unit, and the end.
    """

    first: Integers | None
    bounds: Integers


class Chosen(NamedTuple):
    """The chosen units, and the fate of each: uniform below 2^32, or as finely as lanes are."""

    units: Integers
    fate: Words


def _chosen_tokens(
    ids: Integers,
    bounds: Integers,
    keys: Words,
    rule: MaskingRule,
    probability: float,
    word_starts: Flags | None,
) -> Chosen:
    """The chosen units' tokens, by their flat positions, each with the fate of its unit."""
    assert (word_starts is None) == (rule.unit == "token")
    units = Units(None, bounds) if word_starts is None else find_words(bounds, word_starts)
    first = units.first

    def is_maskable(which: Integers) -> Flags:
        return rule.maskable[ids[which if first is None else first[which]]]

    if rule.unit == "span":
        assert first is not None
        chosen = _choose_spans(units, is_maskable(np.arange(len(first))), keys, probability)
    else:
        threshold = to_lane(probability)
        found, lanes = lanes_below(threshold, keys[CHOICE], units.bounds)
        chosen = Chosen(found, lanes * np.uint64(FATES // threshold))
    usual = np.flatnonzero(is_maskable(chosen.units))
    chosen = Chosen(chosen.units[usual], chosen.fate[usual])
    chosen = _one_in_each(chosen, units.bounds, keys, is_maskable)
    if first is None:
        return chosen
    begins = first[chosen.units]
    sizes = np.append(first, len(ids))[chosen.units + 1] - begins
    return Chosen(_ranges(begins, sizes), np.repeat(chosen.fate, sizes))


def set_apart(starts: Flags, special: Flags) -> Flags:
    """Where words start if a word ends before a special token; writes into `starts`."""
    starts |= special
    starts[1:] |= special[:-1]
    return starts


def find_words(bounds: Integers, word_starts: Flags) -> Units:
    """The words of a flat batch; a word ends with its example. Writes into `word_starts`."""
    word_starts[bounds[:-1][bounds[1:] > bounds[:-1]]] = True
    first = np.flatnonzero(word_starts)
    return Units(first, first.searchsorted(bounds))


def _choose_spans(words: Units, is_word: Flags, keys: Words, probability: float) -> Chosen:
    """The units inside spans, special tokens among them; all of a span share one fate."""
    tables = span_tables(probability)
    starts = np.zeros(len(is_word), dtype=np.bool_)
    starts[lanes_below(tables.start, keys[CHOICE], words.bounds)[0]] = True
    begins = starts | ~is_word  # a run of words begins with its example and after a special token
    begins[1:] |= ~is_word[:-1]
    begins[words.bounds[:-1][words.bounds[1:] > words.bounds[:-1]]] = True
    heads = np.flatnonzero(begins)
    rows = words.bounds.searchsorted(heads, "right") - 1
    drawn = bits(keys[SPAN], rows, heads - words.bounds[rows])
    lane = drawn >> np.uint64(48)
    lengths = np.where(starts[heads], tables.lengths[lane], tables.residuals[lane])
    sizes = np.minimum(lengths, np.diff(heads, append=len(is_word)))
    return Chosen(_ranges(heads, sizes), np.repeat(lower_half(drawn), sizes))


def _one_in_each(
    chosen: Chosen, bounds: Integers, keys: Words, is_maskable: Callable[[Integers], Flags]
) -> Chosen:
    """Add to each example without a target one of its units, by the example's own key."""
    edges = chosen.units.searchsorted(bounds)
    rows = np.flatnonzero(edges[1:] == edges[:-1])
    if not len(rows):
        return chosen
    sizes = bounds[rows + 1] - bounds[rows]
    units = _ranges(bounds[rows], sizes)
    usual = np.flatnonzero(is_maskable(units))
    counts = np.bincount(np.repeat(np.arange(len(rows)), sizes)[usual], minlength=len(rows))
    rows, firsts, counts = (a[counts > 0] for a in (rows, np.cumsum(counts) - counts, counts))
    drawn = keys[FALLBACK, rows]
    which = usual[firsts + below(counts, drawn)]
    return Chosen(
        np.concatenate([chosen.units, units[which]]),
        np.concatenate([chosen.fate, lower_half(drawn)]),
    )


def _ranges(begins: Integers, sizes: Integers) -> Integers:
    """`begins[i], begins[i] + 1, ...`, `sizes[i]` of them, for every i."""
    ends = np.cumsum(sizes)
    return np.repeat(begins - (ends - sizes), sizes) + np.arange(ends[-1] if len(ends) else 0)
