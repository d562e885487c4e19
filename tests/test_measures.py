import math
import random

import pytest
import torch
from torch.nn import functional as F

from hf_tfopt.measures import Moments, attention_logits, attention_sums, joined, moments
from tests.references.activations import naive_attention, naive_moments


def told(found: Moments) -> dict[str, float]:
    return {name: getattr(found, name) for name in naive_moments(torch.ones(2))}


def some(*shape: int, seed: int, mean: float = 0.0) -> torch.Tensor:
    """Values with outliers and zeros."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) ** 3 + mean
    return values.masked_fill(torch.rand(shape, generator=generator) < 0.2, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_moments_of_what_counts(dtype: torch.dtype, mean: float) -> None:
    values = some(5, 7, 64, seed=1, mean=mean).to(dtype)
    is_counted = torch.rand(5, 7, generator=torch.Generator().manual_seed(2)) < 0.6
    for mask, expected in ((None, values), (is_counted, values[is_counted])):
        found = told(Moments(*moments(values, mask).tolist()))
        # fp32 sums of some 2000 terms, of deviations: against fp64 of the same values
        assert found == pytest.approx(naive_moments(expected), rel=2e-5, abs=1e-6)


def test_what_does_not_count_may_be_anything() -> None:
    values = some(2, 3, 8, seed=3)
    kept = torch.tensor([[True, True, False], [True, False, False]])
    expected = moments(values, kept)
    values[~kept] = torch.nan
    assert torch.equal(moments(values, kept), expected)


def test_parts_join_to_the_whole() -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    parts = [some(n, 16, seed=seed + n, mean=n / 3) for n in (1, 40, 3, 17)]
    whole = Moments(0, 0, 0, 0, 0, 0, 0)
    for part in parts:
        whole = joined(whole, Moments(*moments(part).tolist()))
    assert told(whole) == pytest.approx(naive_moments(torch.cat(parts)), rel=2e-5, abs=1e-6)


def test_a_value_that_is_not_finite_shows() -> None:
    good, bad = (
        Moments(*moments(x).tolist()) for x in (torch.ones(1, 2), torch.full((1, 2), 1e30))
    )
    assert math.isnan(good.kurtosis)  # all values are equal
    assert joined(good, bad).absmax == pytest.approx(1e30)
    infinite = Moments(*moments(torch.tensor([[1.0, math.inf]])).tolist())
    assert joined(infinite, good).absmax == math.inf == joined(good, infinite).absmax
    nan = Moments(*moments(torch.tensor([[1.0, math.nan]])).tolist())
    assert math.isnan(joined(nan, good).absmax) and math.isnan(joined(good, nan).absmax)
    assert math.isnan(joined(good, nan).mean)


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
@pytest.mark.parametrize("num_key_heads", [4, 2])
def test_logits_are_those_of_the_attention(kind: str, num_key_heads: int) -> None:
    """Their softmax times the values is the attention's output."""
    generator = torch.Generator().manual_seed(4)
    query = torch.randn(3, 4, 6, 8, generator=generator)
    key, value = (torch.randn(3, num_key_heads, 6, 8, generator=generator) for _ in range(2))
    seen = torch.ones(6, 6, dtype=torch.bool).tril().expand(3, 1, 6, 6)
    added = torch.zeros(3, 1, 6, 6).masked_fill(~seen, torch.finfo(torch.float32).min)
    mask = {"none": None, "bool": seen, "float": added}[kind]
    expected = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
    logits = attention_logits(query, key, mask, scale=0.3)
    values = value.repeat_interleave(4 // num_key_heads, dim=1)
    torch.testing.assert_close(logits.softmax(-1) @ values, expected)
    assert bool((logits == -math.inf).any()) == (mask is not None)


@pytest.mark.parametrize("is_causal", [False, True])
def test_entropy_and_maximum(is_causal: bool) -> None:
    logits = 3 * torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(5))
    is_token = torch.arange(6) < torch.tensor([[6], [4], [1]])
    logits = logits.masked_fill(~is_token[:, None, None], -math.inf)
    if is_causal:
        logits = logits.masked_fill(~torch.ones(6, 6, dtype=torch.bool).tril(), -math.inf)
    sums = attention_sums(logits, is_token)
    expected = naive_attention(logits.softmax(-1), is_token, is_causal)
    for name in ("entropy", "maximum"):
        found = (getattr(sums, name) / sums.number).tolist()
        assert found == pytest.approx(expected[name], rel=1e-5)  # fp32 sums of 10 terms
    counted = logits.masked_fill(~is_token[:, None, :, None], -math.inf)
    assert sums.largest.tolist() == [head.max().item() for head in counted.unbind(1)]


def test_bounds_of_the_entropy() -> None:
    alike = attention_sums(torch.zeros(1, 1, 2, 7))
    assert (alike.entropy / alike.number).item() == pytest.approx(1, abs=1e-6)
    one = attention_sums(torch.tensor([[[[0.0, 1000.0, 0.0]]]]))
    assert one.entropy.item() == 0 and one.maximum.item() == 1


def test_a_query_with_one_key_or_none_does_not_count() -> None:
    logits = torch.full((1, 1, 3, 3), -math.inf)
    logits[0, 0, 1, 0] = 2.0
    logits[0, 0, 2, :2] = 1.0
    found = [each.item() for each in attention_sums(logits)]
    assert found == pytest.approx([1.0, 0.5, 1.0, 2.0])


def test_nan_is_not_hidden() -> None:
    sums = attention_sums(torch.full((1, 1, 2, 3), math.nan))
    assert math.isnan(sums.entropy.item()) and sums.number.item() == 2
