"""Which tokens a masked language model must guess: a pure function of (seed, epoch, example).

All examples of a batch lie one after the other in one flat array, and there is no random generator:
the bits of an example are hashes of (seed, epoch, its own token ids, a counter). So a mask depends
neither on workers, ranks and restarts, nor on the batch, padding or packed row its example is in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_tfopt.data.keyed_bits import (
    CHOICE,
    FALLBACK,
    LANE,
    REPLACEMENT,
    SPAN,
    Flags,
    Integers,
    Words,
    below,
    bits,
    fraction,
    lanes_below,
    to_lane,
)
from hf_tfopt.registry import check_name

UNITS = ("token", "word", "span")
SPAN_SUCCESS, MAX_SPAN = 0.2, 10  # Joshi et al. 2020, section 3.1


def linear_rate(start: float, end: float, num_epochs: int) -> Callable[[int], float]:
    """A masking rate that goes from `start` in epoch 0 to `end` in epoch `num_epochs - 1`.

    `rate(epoch) = start + (end - start) * min(epoch / (num_epochs - 1), 1)`

    Args:
        start: the rate of epoch 0, in (0, 1).
        end: the rate of the last epoch and all later ones, in (0, 1).
        num_epochs: at least 2.
    """
    if num_epochs < 2:
        raise ValueError(f"num_epochs is {num_epochs}: a rate that changes needs at least 2")
    check_rate(start)
    check_rate(end)
    return partial(_linear, start, end, num_epochs)


def _linear(start: float, end: float, num_epochs: int, epoch: int) -> float:
    return start + (end - start) * min(epoch / (num_epochs - 1), 1.0)


def check_rate(probability: Any) -> float:
    """Return `probability` as a float; raises ValueError unless it lies in (0, 1)."""
    if not (isinstance(probability, (int, float)) and 0.0 < probability < 1.0):
        raise ValueError(
            f"probability is {probability!r}: allowed is a number in (0, 1), usually 0.15 to 0.4, "
            "or a function of the epoch that returns one"
        )
    return float(probability)


class SpanTables(NamedTuple):
    """The span process of one masking rate, as tables over one 16-bit lane.

    `start` of 65536 words begin a span; a span's length is `lengths[lane]`. A run's first word, if
    it begins none, has `residuals[lane]` words of an imagined earlier one left (0: in none).
    """

    start: int
    lengths: NDArray[np.uint8]
    residuals: NDArray[np.uint8]


@lru_cache(maxsize=16)
def span_tables(probability: float) -> SpanTables:
    """Tables with which every word is covered with exactly `probability`, at the edges too.

    A word starts a span with probability q; the latest start owns a word if that is still inside
    its length L. So `P(covered) = sum_k q (1-q)^k P(L > k)`, k >= 0, is solved for q; a run whose
    first word starts none begins as in the middle of a long one: `P(r words left) =
    sum_k q (1-q)^(k-1) P(L = r + k)`, k >= 1.
    """
    steps = np.arange(MAX_SPAN)
    length = SPAN_SUCCESS * (1 - SPAN_SUCCESS) ** steps
    length /= length.sum()  # P(L = k + 1)
    longer = 1 - np.concatenate([[0.0], np.cumsum(length)[:-1]])  # P(L > k)
    low, high = 0.0, 1.0
    for _ in range(60):
        q = (low + high) / 2
        covered = float((q * (1 - q) ** steps * longer).sum())
        low, high = (q, high) if covered < probability else (low, q)
    start = max(to_lane((low + high) / 2), 1)
    q = start / LANE
    left = [float((q * (1 - q) ** steps[: MAX_SPAN - r] * length[r:]).sum()) for r in steps[1:]]
    return SpanTables(start, _lookup(length, 1), _lookup(np.array([1 - sum(left), *left]), 0))


def _lookup(weights: NDArray[np.float64], first: int) -> NDArray[np.uint8]:
    """The inverse distribution function on the 65536 lane values."""
    edges = np.rint(np.cumsum(weights) * LANE).astype(np.int64)
    edges[-1] = LANE
    values = np.arange(first, first + len(weights), dtype=np.uint8)
    return np.repeat(values, np.diff(edges, prepend=0))


@dataclass(frozen=True)
class MaskingRule:
    """What may be masked, in which units, and what stands in the place of a target.

    Args:
        unit: "token", "word" or "span" (of words).
        maskable: by token id, False for special tokens.
        replacements: the ids that random replacements are drawn from.
        mask_id: the id of the mask token.
        mask_fraction: the share of chosen units that become the mask token.
        random_fraction: the share that become random tokens; the rest stay as they are.
    """

    unit: str
    maskable: Flags
    replacements: Integers
    mask_id: int
    mask_fraction: float = 0.8
    random_fraction: float = 0.1

    def __post_init__(self) -> None:
        check_name("unit", self.unit, UNITS)
        fractions = (self.mask_fraction, self.random_fraction)
        if min(fractions) < 0 or sum(fractions) > 1 + 1e-9:
            raise ValueError(
                f"mask_fraction={self.mask_fraction} and random_fraction={self.random_fraction}: "
                "both must be at least 0 and their sum at most 1 (the rest is kept as it is)"
            )
        if not len(self.replacements):
            raise ValueError("the vocabulary has special tokens only: there is nothing to mask")


class Targets(NamedTuple):
    """What is to be guessed: flat positions, in any order; the ids there; what the model sees."""

    positions: Integers
    labels: Integers
    inputs: Integers


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
    others = np.flatnonzero(fate >= rule.mask_fraction)
    inputs[others] = labels[others]
    replaced = others[fate[others] < rule.mask_fraction + rule.random_fraction]
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
    """The chosen units, ascending, and the fate of each: uniform in [0, 1)."""

    units: Integers
    fate: NDArray[np.float64]


def _chosen_tokens(
    ids: Integers,
    bounds: Integers,
    keys: Words,
    rule: MaskingRule,
    probability: float,
    word_starts: Flags | None,
) -> tuple[Integers, NDArray[np.float64]]:
    """The flat positions of all tokens of the chosen units, and the fate of each."""
    assert (word_starts is None) == (rule.unit == "token")
    units = Units(None, bounds) if word_starts is None else find_words(bounds, word_starts)
    first = units.first

    def is_maskable(which: Integers) -> Flags:
        return rule.maskable[ids[which if first is None else first[which]]]

    if rule.unit == "span":
        assert first is not None
        chosen = _choose_spans(units, is_maskable(np.arange(len(first))), keys, probability)
    else:
        chosen = Chosen(*lanes_below(to_lane(probability), keys[CHOICE], units.bounds))
    usual = np.flatnonzero(is_maskable(chosen.units))
    chosen = Chosen(chosen.units[usual], chosen.fate[usual])
    found, fate = _one_in_each(chosen, units.bounds, keys, is_maskable)
    if first is None:
        return found, fate
    begins = first[found]
    sizes = np.append(first, len(ids))[found + 1] - begins
    return _ranges(begins, sizes), np.repeat(fate, sizes)


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
    return Chosen(_ranges(heads, sizes), np.repeat(fraction(drawn), sizes))


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
    which = usual[firsts + below(counts, drawn).view(np.int64)]
    return Chosen(
        np.concatenate([chosen.units, units[which]]),
        np.concatenate([chosen.fate, fraction(drawn)]),
    )


def _ranges(begins: Integers, sizes: Integers) -> Integers:
    """`begins[i], begins[i] + 1, ...`, `sizes[i]` of them, for every i."""
    ends = np.cumsum(sizes)
    return np.repeat(begins - (ends - sizes), sizes) + np.arange(ends[-1] if len(ends) else 0)
