"""Length buckets and the batches cut from them, against plain loops."""

import numpy as np
import pytest

from hf_tfopt.data.length_buckets import borders, cut, length_buckets
from tests.references.token_budget import plain_borders, plain_cut


@pytest.mark.parametrize("seed", range(5))
def test_borders_are_the_best_of_all(seed: int) -> None:
    print("seed", seed)
    random = np.random.default_rng(seed)
    kinds = np.sort(random.choice(np.arange(1, 60), 9, replace=False))
    counts = random.integers(1, 40, 9)
    for num_batches in (0, 1, 3, 1000):
        least = num_batches * (200 // kinds)
        cost, _ = plain_borders(kinds.tolist(), counts.tolist(), least.tolist())
        chosen = borders(kinds, counts, least)
        ends = counts.cumsum()[chosen]
        assert chosen[-1] == 8
        assert (kinds[chosen] * np.diff(ends, prepend=0)).sum() == cost


@pytest.mark.parametrize("seed", range(5))
def test_cut_equals_the_plain_loop(seed: int) -> None:
    """Also where a batch takes in several small buckets, and in one with few rows."""
    print("seed", seed)
    random = np.random.default_rng(seed)
    widths = np.sort(random.choice(np.arange(1, 80), 12, replace=False))
    counts = random.integers(1, 30, 12)
    for max_rows in (7, 10**6):
        fitting = np.minimum(200 // widths, max_rows)
        one_by_one = np.repeat(widths, counts).tolist()
        for first in (None, 1, min(3, int(fitting[0]))):
            ours = cut(counts.cumsum(), fitting, first).tolist()
            assert ours == plain_cut(one_by_one, 200, max_rows, first or 0)


@pytest.mark.parametrize("longest", [40, 1500])
@pytest.mark.parametrize("max_padding", [0, 0.02, 0.3])
def test_a_row_is_in_the_bucket_of_its_length(longest: int, max_padding: float) -> None:
    """Also where there are more lengths than are looked at one by one."""
    lengths = np.random.default_rng(0).permutation(np.arange(1, longest))
    buckets = length_buckets(lengths, 4 * longest, max_padding=max_padding)
    widths = buckets.widths[buckets.bucket_of_row]
    below = np.concatenate([[0], buckets.widths])[buckets.bucket_of_row]
    assert ((below < lengths) & (lengths <= widths)).all()
    counts = np.bincount(buckets.bucket_of_row, minlength=len(buckets.widths))
    assert counts.cumsum().tolist() == buckets.ends.tolist()


def test_buckets_are_as_large_as_the_padding_permits() -> None:
    lengths = np.random.default_rng(0).integers(100, 200, 20_000)
    sizes = [len(length_buckets(lengths, 4000, max_padding=p).widths) for p in (0, 0.02, 0.1, 0.5)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 100
    assert sizes[-1] == 1
    near = np.random.default_rng(0).integers(508, 513, 1000)  # packed rows
    assert len(length_buckets(near, 4096, max_padding=0.02).widths) == 1


def test_batches_of_few_rows_mix_too() -> None:
    """Where `max_rows` decides, a bucket has many batches of so many."""
    lengths = np.random.default_rng(0).integers(100, 200, 20_000)
    buckets = length_buckets(lengths, 10**6, max_padding=0.02, max_rows=16)
    assert np.diff(buckets.ends, prepend=0).min() >= 16 * 16
