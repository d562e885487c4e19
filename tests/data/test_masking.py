"""Masks: what is chosen, how often, with what in its place, and by what bits."""

from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from hf_tfopt.data.batch_form import IGNORED, Form
from hf_tfopt.data.columns import Lists
from hf_tfopt.data.flat_batch import RowLists
from hf_tfopt.data.keyed_bits import (
    CHOICE,
    FALLBACK,
    Integers,
    bits,
    example_keys,
    lanes_below,
    mix,
)
from hf_tfopt.data.masking import choose_targets, set_apart
from hf_tfopt.data.masking_kernel import MaskingKernel
from hf_tfopt.data.masking_rule import (
    MAX_SPAN,
    UNITS,
    MaskingRule,
    Targets,
    check_rate,
    linear_rate,
    span_tables,
)
from hf_tfopt.data.words import WordTables
from hf_tfopt.native.build import SWITCH, find_compiler, library
from tests.data.test_masked_batch import with_threads
from tests.references import masking as plain

NUM_IDS, MASK, SPECIAL = 100, 4, (0, 1, 2, 3, 4)
STARTING = tuple(i for i in range(NUM_IDS) if i % 3)  # two ids in three begin a word
Z = 3.29  # normal bound that 999 draws of 1000 stay within


@pytest.fixture(params=["arrays", "compiled"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every test here runs with and without the compiled form."""
    if request.param == "compiled" and find_compiler() is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setenv(SWITCH, "0" if request.param == "arrays" else "1")
    library.cache_clear()
    assert (library("masked_batch") is None) == (request.param == "arrays")
    yield request.param
    library.cache_clear()


def make_rule(unit: str, **options: Any) -> MaskingRule:
    maskable = np.ones(NUM_IDS, dtype=bool)
    maskable[list(SPECIAL)] = False
    return MaskingRule(unit, maskable, np.flatnonzero(maskable), MASK, **options)


def flat(examples: list[list[int]]) -> tuple[Integers, Integers]:
    bounds = np.cumsum([0, *map(len, examples)])
    return np.array([t for row in examples for t in row], dtype=np.int64), bounds


def mask(
    examples: list[list[int]],
    rule: MaskingRule,
    probability: float = 0.15,
    seed: int = 0,
    epoch: int = 0,
    starting: tuple[int, ...] = STARTING,
) -> Targets:
    ids, bounds = flat(examples)
    table = np.zeros(NUM_IDS, dtype=bool)
    table[list(starting)] = True

    if library("masked_batch") is not None:
        words = None if rule.unit == "token" else WordTables(table).set_apart(~rule.maskable)
        return compiled_targets(ids, bounds, MaskingKernel(rule, words), probability, seed, epoch)
    keys = example_keys(ids, bounds, seed, epoch)
    starts = None if rule.unit == "token" else set_apart(table[ids], ~rule.maskable[ids])
    return choose_targets(ids, bounds, keys, rule, probability, starts)


def compiled_targets(ids: Integers, bounds: Integers, kernel: MaskingKernel, *key: Any) -> Targets:
    """What the kernel wrote into a batch of one row."""
    lists = RowLists({"input_ids": Lists([ids], [bounds])}, array("q", range(len(bounds) - 1)))
    batch = kernel.batch(lists, *key)
    assert batch is not None
    if not len(ids):
        return Targets(ids, ids, ids)
    form = Form((1, len(ids)), True, True, False, 0, 0)
    filled = batch.fill(form, wants_keys=True)
    assert filled is not None and filled.keys is not None and filled.ends is not None
    with pytest.MonkeyPatch.context() as patched:
        with_threads(patched, 3)
        again = batch.fill(form, wants_keys=True)
    assert again is not None and again.keys is not None and again.ends is not None
    assert all(torch.equal(again.tensors[name], filled.tensors[name]) for name in filled.tensors)
    assert np.array_equal(again.keys, filled.keys) and np.array_equal(again.ends, filled.ends)
    assert filled.keys.tolist() == example_keys(ids, bounds, *key[1:])[CHOICE].tolist()
    assert filled.ends.tolist() == np.unique(bounds[1:][np.diff(bounds) > 0]).tolist()
    labels, inputs = (filled.tensors[name].numpy()[0] for name in ("labels", "input_ids"))
    positions = np.flatnonzero(labels != IGNORED)
    assert np.array_equal(np.where(labels == IGNORED, inputs, labels), ids)
    return Targets(positions, labels[positions], inputs[positions])


def by_example(targets: Targets, examples: list[list[int]]) -> list[dict[int, tuple[int, int]]]:
    """For each example: position -> (label, what the model sees)."""
    found: list[dict[int, tuple[int, int]]] = [{} for _ in examples]
    _, bounds = flat(examples)
    for position, *values in zip(*(part.tolist() for part in targets), strict=True):
        row = int(np.searchsorted(bounds, position, "right")) - 1
        assert position - bounds[row] not in found[row]  # no target twice
        found[row][int(position - bounds[row])] = tuple(values)
    return found


def documents(num: int, length: int, seed: int = 0) -> list[list[int]]:
    print("seed", seed)
    body = np.random.default_rng(seed).integers(5, NUM_IDS, (num, length))
    return [[2, *row, 3] for row in body.tolist()]


def odd_examples(seed: int) -> list[list[int]]:
    """Short and long ones, pairs, special tokens anywhere, some with nothing else, one empty."""
    print("seed", seed)
    rng = np.random.default_rng(seed)
    lengths = [0, 1, 2, 3, 4, 5, 7, 8, 40, 200, *rng.integers(1, 60, 40)]
    rows = [rng.integers(0, NUM_IDS, n).tolist() for n in lengths]
    return [*rows, [2, 3], [2], [50], [2, 51, 3]]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("probability", [1e-9, 0.02, 0.15, 0.4, 0.9])
def test_equals_the_plain_loop(unit: str, probability: float) -> None:
    for seed, epoch in ((0, 0), (-5, 1), (2**70, 12)):
        examples = odd_examples(abs(seed) % 1000)
        rule = make_rule(unit, mask_fraction=0.5, random_fraction=0.3)
        ours = by_example(mask(examples, rule, probability, seed, epoch), examples)
        replacements = rule.replacements.tolist()
        for example, found in zip(examples, ours, strict=True):
            assert found == plain.mask_example(
                example,
                set(SPECIAL),
                replacements,
                MASK,
                unit,
                set(STARTING),
                probability,
                seed,
                epoch,
                mask_fraction=0.5,
                random_fraction=0.3,
            )


def test_mix_is_splitmix64() -> None:
    # The first outputs of the reference implementation for state 0 (Vigna, splitmix64.c).
    states = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(x) for x in mix(states)] == [
        "0xe220a8397b1dcdaf",
        "0x6e789e6aa1b965f4",
        "0x6c45d188009454f",
    ]


def test_bits_are_even_and_independent_of_their_neighbours() -> None:
    keys = example_keys(*flat(documents(200, 30)), 0, 0)[FALLBACK]
    rows, counters = np.repeat(np.arange(200), 100), np.tile(np.arange(100), 200)
    drawn = bits(keys, rows, counters)
    ones = np.unpackbits(drawn.view(np.uint8).reshape(-1, 8), axis=1)
    bound = Z * 0.5 / np.sqrt(len(drawn)) * 1.5  # 64 means at once: a little wider
    assert np.abs(ones.mean(axis=0) - 0.5).max() < bound
    assert np.abs((ones[1:] == ones[:-1]).mean(axis=0) - 0.5).max() < bound


@pytest.mark.parametrize("counts", [[8] * 5, [5, 8, 7, 6, 8], [0, 1, 4, 9, 3], [1, 0, 400, 2, 7]])
def test_lanes_below_counts_every_lane_once(counts: list[int]) -> None:
    keys = example_keys(*flat(documents(5, 4)), 0, 0)[0]
    indices, drawn = lanes_below(1 << 16, keys, np.cumsum([0, *counts]))
    assert indices.tolist() == list(range(sum(counts)))
    lanes = [plain.lane(int(keys[row]), j) for row, n in enumerate(counts) for j in range(n)]
    assert drawn.tolist() == lanes


@pytest.mark.parametrize("unit", UNITS)
def test_the_rate_is_kept_over_a_million_tokens(unit: str) -> None:
    """Normal 99.9% bound; tokens of a word or span come together, which widens it.

    For n independent tokens the variance is n p (1 - p). A word of s tokens counts s^2 for s. The
    words of spans are a Markov chain of "words left": their variance is n p (1 - p) times
    1 + 2 sum_k corr(k), computed from the chain's own transition matrix.
    """
    examples, probability = documents(2000, 510), 0.15
    starting = tuple(range(NUM_IDS)) if unit == "span" else STARTING  # one token is one word
    num_chosen = len(mask(examples, make_rule(unit), probability, starting=starting).positions)
    total = 2000 * 510
    inflation = 1.0
    if unit == "word":
        words = [plain.units_of(e, set(SPECIAL), set(STARTING))[1:-1] for e in examples]
        inflation = sum(len(w) ** 2 for row in words for w in row) / total
    if unit == "span":
        inflation = span_inflation(probability)
    bound = Z * np.sqrt(total * probability * (1 - probability) * inflation)
    print("chosen", num_chosen, "of", total, "bound", bound, "inflation", inflation)
    assert abs(num_chosen - total * probability) < bound


def span_inflation(probability: float) -> float:
    process = plain.spans(probability)
    q = process.start / 65536
    step = np.zeros((MAX_SPAN + 1, MAX_SPAN + 1))
    for left in range(MAX_SPAN + 1):
        step[left, max(left - 1, 0)] += 1 - q
        step[left, 1:] += q * np.array(process.length)
    stationary = (1 - q) * np.array([*process.residual, 0.0])
    stationary[1:] += q * np.array(process.length)
    assert np.allclose(stationary @ step, stationary)  # a run does begin in the middle of things
    covered = np.arange(MAX_SPAN + 1) > 0
    p = stationary[covered].sum()
    state, total = stationary * covered, 0.0
    for _ in range(200):
        state = state @ step
        total += state[covered].sum() - p * p
    return 1 + 2 * total / (p * (1 - p))


def test_spans_cover_every_place_alike_also_at_the_edges() -> None:
    num, width, probability = 60_000, 12, 0.15
    starting = tuple(range(NUM_IDS))
    examples = documents(num, width, seed=3)
    targets = mask(examples, make_rule("span"), probability, starting=starting)
    places = np.bincount(targets.positions % (width + 2), minlength=width + 2)[1:-1] / num
    # An example without a span (its first word outside, then no start) gets one word, anywhere.
    q = span_tables(probability).start / 65536
    expected = probability + (1 - probability) * (1 - q) ** (width - 1) / width
    print(places, expected)
    # the bound of one place, a little wider for twelve at once
    assert np.abs(places - expected).max() < Z * np.sqrt(expected * (1 - expected) / num) * 1.3


def test_span_lengths_are_those_of_the_paper() -> None:
    lengths = span_tables(0.15).lengths
    assert (lengths.min(), lengths.max()) == (1, 10)
    assert lengths.mean() == pytest.approx(3.8, abs=0.01)  # Joshi et al. 2020, section 3.1
    shares = np.bincount(lengths)[1:] / len(lengths)
    assert shares[1:] / shares[:-1] == pytest.approx(0.8, abs=1e-3)  # table rounding, 1/65536


@pytest.mark.parametrize("unit", UNITS)
def test_eighty_ten_ten_by_unit(unit: str) -> None:
    examples = documents(400, 300)
    rule = make_rule(unit)
    found = by_example(mask(examples, rule), examples)
    fates: list[str] = []
    for example, targets in zip(examples, found, strict=True):
        words = plain.units_of(example, set(SPECIAL), set(STARTING))
        units = [[j] for j in targets] if unit == "token" else [w for w in words if w[0] in targets]
        for tokens in units:
            assert all(j in targets for j in tokens)  # whole units
            seen = [targets[j][1] for j in tokens]
            kept = [example[j] for j in tokens]
            assert all(targets[j][0] == example[j] for j in tokens)
            assert all(token == MASK for token in seen) or MASK not in seen
            fates.append("mask" if seen[0] == MASK else "keep" if seen == kept else "random")
    # a random token is the same one by chance in 1 of 95
    same = 0.1 / 95 if unit == "token" else 0.1 * (2 / 3) / 95
    expected = {"mask": 0.8, "random": 0.1 - same, "keep": 0.1 + same}
    spread = 4.4 if unit == "span" else 1.0  # words of a span share a fate: mean squared length
    for fate, share in expected.items():
        bound = Z * np.sqrt(share * (1 - share) / len(fates) * spread) + 0.002
        print(fate, fates.count(fate) / len(fates), share, bound)
        assert abs(fates.count(fate) / len(fates) - share) < bound


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(("mask_fraction", "random_fraction"), [(1, 0), (0, 1), (0, 0)])
def test_a_single_fate(unit: str, mask_fraction: float, random_fraction: float) -> None:
    rule = make_rule(unit, mask_fraction=mask_fraction, random_fraction=random_fraction)
    targets = mask(documents(50, 100), rule)
    if mask_fraction:
        assert (targets.inputs == MASK).all()
    elif random_fraction:
        assert (targets.inputs != targets.labels).mean() > 0.95  # 94 of 95 differ
        assert rule.maskable[targets.inputs].all()
    else:
        assert (targets.inputs == targets.labels).all()


@pytest.mark.parametrize("unit", UNITS)
def test_specials_are_never_chosen_nor_put_in(unit: str) -> None:
    rule = make_rule(unit, mask_fraction=0.0, random_fraction=1.0)
    for seed in range(20):
        targets = mask(odd_examples(seed), rule, 0.5, seed=seed)
        assert rule.maskable[targets.labels].all()
        assert rule.maskable[targets.inputs].all()


@pytest.mark.parametrize("unit", UNITS)
def test_at_least_one_target_wherever_there_can_be_one(unit: str) -> None:
    for seed in range(20):
        examples = odd_examples(seed)
        for example, found in zip(
            examples, by_example(mask(examples, make_rule(unit), 0.01, seed), examples), strict=True
        ):
            assert bool(found) == any(token not in SPECIAL for token in example)


@pytest.mark.parametrize("unit", UNITS)
def test_nothing_to_mask_is_no_target(unit: str) -> None:
    assert len(mask([[2, 3], [2, 1, 3]], make_rule(unit)).positions) == 0


@pytest.mark.parametrize("unit", UNITS)
def test_a_mask_depends_on_the_example_alone(unit: str) -> None:
    examples, rule = odd_examples(7), make_rule(unit)
    together = by_example(mask(examples, rule), examples)
    backwards = by_example(mask(examples[::-1], rule), examples[::-1])[::-1]
    alone = [by_example(mask([e], rule), [e])[0] for e in examples if e]
    assert together == backwards
    assert [t for t, e in zip(together, examples, strict=True) if e] == alone


def test_epochs_seeds_and_contents_have_masks_of_their_own() -> None:
    """Two independent choices at rate p share a p-th of their targets."""
    example, rule = documents(1, 4000)[0], make_rule("token")
    other = [*example[:-2], 5 + example[-2] % 90, 3]  # one token differs

    def chosen(example: list[int], seed: int, epoch: int) -> set[int]:
        return set(mask([example], rule, seed=seed, epoch=epoch).positions.tolist())

    first = chosen(example, 0, 0)
    for again in (chosen(example, 0, 1), chosen(example, 1, 0), chosen(other, 0, 0)):
        expected = 0.15 * len(first)
        assert abs(len(first & again) - expected) < Z * np.sqrt(expected)
    assert chosen(example, 0, 0) == first
    this_way, that_way = example_keys(*flat([[7, 8], [8, 7]]), 0, 0).T.tolist()
    assert this_way != that_way


def test_linear_rate() -> None:
    rate = linear_rate(0.3, 0.15, 4)
    assert [rate(epoch) for epoch in range(6)] == pytest.approx([0.3, 0.25, 0.2, 0.15, 0.15, 0.15])


@pytest.mark.parametrize("arguments", [(0.3, 0.15, 1), (0.0, 0.15, 4), (0.3, 1.0, 4)])
def test_linear_rate_refuses(arguments: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match=r"num_epochs is 1|probability is"):
        linear_rate(*arguments)


@pytest.mark.parametrize("probability", [0, 1, -0.1, 15, "0.15", None, float("nan")])
def test_a_rate_is_a_number_between_0_and_1(probability: Any) -> None:
    with pytest.raises(ValueError, match=r"allowed is a number in \(0, 1\)"):
        check_rate(probability)


def test_rules_refuse_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="did you mean 'word'"):
        make_rule("words")
    for fractions in ((0.8, 0.3), (-0.1, 0.1), (0.5, -0.1)):
        with pytest.raises(ValueError, match="their sum at most 1"):
            make_rule("token", mask_fraction=fractions[0], random_fraction=fractions[1])
    with pytest.raises(ValueError, match="special tokens only"):
        MaskingRule("token", np.zeros(3, dtype=bool), np.array([], dtype=np.int64), 1)
