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
    by_row,
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
    word_starts: Callable[[Integers], Flags] | None = None,
) -> Targets:
    """Choose units with `probability` each, and one more in an example that would have none.

    A unit is masked, replaced or kept as a whole; every token of a replaced one is drawn anew.

    Args:
        ids: the token ids of all examples, one after the other.
        bounds: where each example begins, and the end of the last.
        keys: `example_keys` of these examples.
        rule: the units and their fates.
        probability: the share of maskable tokens to choose, in (0, 1).
        word_starts: positions of maskable tokens -> whether a word starts there; for words, spans.

    Paper: Devlin et al. 2019, BERT (https://arxiv.org/abs/1810.04805), section 3.1; for spans
    Joshi et al. 2020, SpanBERT (https://arxiv.org/abs/1907.10529), section 3.1. Differs: units are
    drawn independently, so an example's number of targets varies around the rate; a span may be
    cut short by the next one, and the rate is exact at every position.
    """
    if rule.unit == "token":
        positions, rows, fate = _choose_tokens(ids, bounds, keys, rule, probability)
    else:
        assert word_starts is not None
        words = find_words(ids, bounds, rule, word_starts)
        chosen, rows, fate = _choose_words(words, keys, rule, probability)
        sizes = np.diff(words.first, append=len(words.tokens))[chosen]
        positions = words.tokens[_ranges(words.first[chosen], sizes)]
        rows, fate = np.repeat(rows, sizes), np.repeat(fate, sizes)
    labels = ids[positions]
    inputs = np.full(len(labels), rule.mask_id)
    others = np.flatnonzero(fate >= rule.mask_fraction)
    inputs[others] = labels[others]
    replaced = others[fate[others] < rule.mask_fraction + rule.random_fraction]
    counters = positions[replaced] - bounds[rows[replaced]]
    drawn = below(len(rule.replacements), bits(keys[REPLACEMENT], rows[replaced], counters))
    inputs[replaced] = rule.replacements[drawn]
    return Targets(positions, labels, inputs)


class Chosen(NamedTuple):
    """The chosen units (flat indices), the example of each, and its fate: uniform in [0, 1)."""

    units: Integers
    rows: Integers
    fate: NDArray[np.float64]


def _choose_tokens(
    ids: Integers, bounds: Integers, keys: Words, rule: MaskingRule, probability: float
) -> Chosen:
    rows, counters, fate = lanes_below(to_lane(probability), keys[CHOICE], bounds[1:] - bounds[:-1])
    tokens = bounds[rows] + counters
    usual = np.flatnonzero(rule.maskable[ids[tokens]])

    def candidates(row: int) -> Integers:
        begin, end = bounds[row : row + 2]
        return begin + np.flatnonzero(rule.maskable[ids[begin:end]])

    return _one_in_each(Chosen(tokens[usual], rows[usual], fate[usual]), keys, candidates)


class WordsOfBatch(NamedTuple):
    """The words of a flat batch, each of one or more tokens that may be masked.

    `tokens`: flat positions of all maskable tokens. `first`: index into `tokens` of each word's
    first. `bounds`: index into `first` of each example's first word, and the end. `joined`: the
    word follows the one before it with nothing special between them.
    """

    tokens: Integers
    first: Integers
    bounds: Integers
    joined: Flags


def find_words(
    ids: Integers, bounds: Integers, rule: MaskingRule, word_starts: Callable[[Integers], Flags]
) -> WordsOfBatch:
    """The words of a flat batch; a word ends before a special token and with its example."""
    tokens = np.flatnonzero(rule.maskable[ids])
    bounds = np.searchsorted(tokens, bounds)
    apart = np.ones(len(tokens), dtype=np.bool_)
    np.not_equal(np.diff(tokens), 1, out=apart[1:])
    apart[bounds[:-1][np.diff(bounds) > 0]] = True
    first = np.flatnonzero(apart | word_starts(tokens))
    return WordsOfBatch(tokens, first, np.searchsorted(first, bounds), ~apart[first])


def _choose_words(
    words: WordsOfBatch, keys: Words, rule: MaskingRule, probability: float
) -> Chosen:
    if rule.unit == "span":
        chosen = _choose_spans(words, keys, span_tables(probability))
    else:
        lane = to_lane(probability)
        rows, counters, fate = lanes_below(lane, keys[CHOICE], np.diff(words.bounds))
        chosen = Chosen(words.bounds[rows] + counters, rows, fate)
    return _one_in_each(chosen, keys, lambda row: np.arange(*words.bounds[row : row + 2]))


def _choose_spans(words: WordsOfBatch, keys: Words, tables: SpanTables) -> Chosen:
    """The words inside spans; a span's words share the fate of the word it began at."""
    rows, counters, _ = lanes_below(tables.start, keys[CHOICE], np.diff(words.bounds))
    starts = np.zeros(len(words.first), dtype=np.bool_)
    starts[words.bounds[rows] + counters] = True
    begins = np.flatnonzero(starts | ~words.joined)
    rows, counters = by_row(begins, words.bounds)
    drawn = bits(keys[SPAN], rows, counters)
    lane = drawn >> np.uint64(48)
    lengths = np.where(starts[begins], tables.lengths[lane], tables.residuals[lane])
    sizes = np.minimum(lengths, np.diff(begins, append=len(starts)))
    return Chosen(_ranges(begins, sizes), np.repeat(rows, sizes), np.repeat(fraction(drawn), sizes))


def _one_in_each(chosen: Chosen, keys: Words, candidates: Callable[[int], Integers]) -> Chosen:
    """Add to each example without a target one of its candidates, by the example's own key."""
    extra: list[tuple[int, int]] = []
    edges = chosen.rows.searchsorted(np.arange(keys.shape[1] + 1))
    for row in np.flatnonzero(edges[1:] == edges[:-1]).tolist():
        units = candidates(row)
        if len(units):
            extra.append((units[int(below(len(units), keys[FALLBACK, row]))], row))
    if not extra:
        return chosen
    units, rows = np.array(extra).T
    return Chosen(
        np.concatenate([chosen.units, units]),
        np.concatenate([chosen.rows, rows]),
        np.concatenate([chosen.fate, fraction(keys[FALLBACK, rows])]),
    )


def _ranges(begins: Integers, sizes: Integers) -> Integers:
    """`begins[i], begins[i] + 1, ...`, `sizes[i]` of them, for every i."""
    ends = np.cumsum(sizes)
    return np.repeat(begins - (ends - sizes), sizes) + np.arange(ends[-1] if len(ends) else 0)
