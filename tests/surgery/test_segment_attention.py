"""Many segments in a few calls equal one segment after the other."""

import numpy as np
import pytest
import torch

from hf_tfopt.surgery import segment_attention as fast
from hf_tfopt.surgery.segment_attention import segment_attention
from tests.references.packing import attention_by_segment

BATCH, WIDTH, HEADS = 2, 150, 3

# Segments that span rows do not matter here: the batch is one row of 300.
LENGTHS = {
    "mixed": [1, 7, 40, 1, 3, 9, 10, 11, 60, 8, 30, 64, 5, 51],
    "equal": [30] * 10,
    "one": [300],
    "single tokens": [1] * 300,
}


def states(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[torch.Tensor]:
    """Query, key and value as a layer hands them over: views of [batch, length, heads, size]."""
    print("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    shapes = [(BATCH, WIDTH, HEADS, size) for size in (8, 8, 5)]
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [x.to(dtype).transpose(1, 2).detach().requires_grad_() for x in made]


@pytest.mark.parametrize("longest_weighted", [None, 20, 1000])  # one by one; side by side, twice
@pytest.mark.parametrize("reach", [None, 0, 4])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kind", LENGTHS)
def test_equals_a_loop_over_segments(
    kind: str,
    is_causal: bool,
    reach: int | None,
    longest_weighted: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fast, "_is_weighted", lambda *_: longest_weighted is not None)
    monkeypatch.setattr(fast, "_LONGEST_WEIGHTED", longest_weighted)
    inputs, lengths = states(), LENGTHS[kind]
    expected = attention_by_segment(*inputs, lengths, is_causal, reach)
    found = segment_attention(*inputs, tuple(lengths), is_causal=is_causal, reach=reach)
    upstream = torch.randn_like(expected)
    pairs = zip(
        (found, *torch.autograd.grad(found, inputs, upstream)),
        (expected, *torch.autograd.grad(expected, inputs, upstream)),
        strict=True,
    )
    for ours, reference in pairs:  # float64: only the order of sums differs
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


def test_bfloat16_is_as_near_to_the_truth_as_its_eight_bits() -> None:
    inputs, lengths = states(), LENGTHS["mixed"]
    low = [x.detach().bfloat16().requires_grad_() for x in inputs]
    expected = attention_by_segment(*(x.double() for x in low), lengths)
    found = segment_attention(*low, tuple(lengths))
    upstream = torch.randn_like(expected).bfloat16()
    pairs = zip(
        (found, *torch.autograd.grad(found, low, upstream)),
        (expected, *torch.autograd.grad(expected, low, upstream)),
        strict=True,
    )
    for ours, reference in pairs:  # 2**-9 for each of scores, weights and sums
        assert ours.dtype == torch.bfloat16
        error = (ours.double() - reference).norm() / reference.double().norm()
        assert error < 0.01


def test_side_by_side_is_for_training_on_a_cpu_in_few_bits_or_with_dropout() -> None:
    fp32, bf16 = states(torch.float32), states(torch.bfloat16)
    assert fast._is_weighted(*bf16, 0.0)
    assert fast._is_weighted(*fp32, 0.1)
    assert not fast._is_weighted(*fp32, 0.0)
    with torch.no_grad():
        assert fast._is_weighted(*fp32, 0.1)  # as when it is recomputed for the gradient
        assert not fast._is_weighted(*bf16, 0.0)


def test_spreading_and_collecting_are_each_others_gradient() -> None:
    heads, lengths = 2, (1, 7, 9, 7, 10)
    plan = fast._plan(lengths, heads, False, None, torch.device("cpu"))
    assert len(plan.padding) > 0
    rows = torch.randn(sum(lengths) * heads, 2, dtype=torch.float64, requires_grad=True)
    places = torch.randn(len(plan.index), 2, dtype=torch.float64, requires_grad=True)
    for function, given in ((fast._Spread, rows), (fast._Collect, places)):
        assert torch.autograd.gradcheck(lambda x, f=function: f.apply(x, plan), given)
        assert torch.autograd.gradgradcheck(lambda x, f=function: f.apply(x, plan), given)
    assert torch.equal(fast._Collect.apply(fast._Spread.apply(rows, plan), plan), rows)


def test_segments_share_calls_with_similar_ones_only() -> None:
    sizes = np.array([512, 448, 447, 128, 120, 112, 111, 20, 12, 11, 4, 1])
    groups = [sizes[first:end].tolist() for first, end in fast._groups(sizes)]
    assert groups == [[512, 448], [447], [128, 120, 112], [111], [20, 12], [11, 4], [1]]


@pytest.mark.parametrize("trains", [False, True])
def test_dropout_drops_weights_and_keeps_their_mean(trains: bool) -> None:
    torch.manual_seed(0)
    inputs = [torch.zeros(1, 1, 4000, 4, requires_grad=trains) for _ in range(2)]
    value = torch.ones(1, 1, 4000, 1)
    alone = segment_attention(*inputs, value, (1,) * 4000, dropout=0.25)
    kept = alone > 0
    torch.testing.assert_close(alone[kept], torch.full_like(alone[kept], 1 / 0.75))
    assert abs(kept.float().mean() - 0.75) < 0.03  # 4 standard deviations of 4000 draws
    pairs = segment_attention(*inputs, value, (40,) * 100, dropout=0.25)
    assert abs(pairs.mean() - 1) < 0.01
