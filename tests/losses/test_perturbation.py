"""One norm and one direction for each example; nothing is made of zero, infinite or padding."""

import math

import pytest
import torch

from hf_tfopt.losses.perturbation import (
    Examples,
    direction,
    end_to_end_examples,
    norms,
    packed_examples,
    padded_examples,
    projected,
)

# fp32 sums of a few hundred squares in another order.
TOLERANCE = 1e-6


def padded() -> tuple[Examples, torch.Tensor]:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    values = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    return padded_examples(mask), values


@pytest.mark.parametrize(("kind", "order"), [("2", 2), ("inf", math.inf)])
def test_norms_are_those_of_each_example(kind: str, order: float) -> None:
    examples, values = padded()
    expected = torch.stack([torch.linalg.vector_norm(row, order) for row in values])
    torch.testing.assert_close(norms(values, examples, kind), expected, rtol=TOLERANCE, atol=0)


def test_examples_end_to_end_have_their_own_norms() -> None:
    ends = torch.tensor([0, 3, 4, 12], dtype=torch.int32)
    values = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    flat = values.reshape(12, 5)
    expected = torch.stack([flat[a:b].norm() for a, b in ((0, 3), (3, 4), (4, 12))])
    examples = end_to_end_examples(ends, 12)
    torch.testing.assert_close(norms(values, examples), expected, rtol=TOLERANCE, atol=0)
    found = norms(direction(values, examples), examples)
    torch.testing.assert_close(found, torch.ones(3), rtol=TOLERANCE, atol=0)


def test_examples_that_share_padded_rows_have_their_own_norms() -> None:
    positions = torch.tensor([[2, 3, 2, 3, 4, 2], [2, 3, 4, 5, 2, 2]])  # from 2, as RoBERTa's
    examples = packed_examples(torch.tensor([6, 0, 2]), positions)  # in any order
    assert examples.is_real.tolist() == [True] * 5 + [False] + [True] * 4 + [False] * 2
    values = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1))
    flat = values.reshape(12, 5)
    expected = torch.stack([flat[a:b].norm() for a, b in ((0, 2), (2, 5), (6, 10))])
    found = norms(values * examples.is_real.view(2, 6, 1), examples)
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize(("kind", "order"), [("2", 2), ("inf", math.inf)])
def test_directions_have_length_one_and_no_padding(kind: str, order: float) -> None:
    examples, values = padded()
    found = direction(values, examples, kind)
    assert not found.flatten(0, 1)[~examples.is_real].any()
    real = values * examples.is_real.view(3, 4, 1)
    for row, expected in zip(found, real, strict=True):
        expected = expected / torch.linalg.vector_norm(expected, order)
        torch.testing.assert_close(row, expected, rtol=TOLERANCE, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-30, 65536.0, 1e30])
def test_a_factor_cancels(scale: float) -> None:
    """A loss scaler's, the count's: squares of these would be 0 or infinite."""
    examples, values = padded()
    found = direction(scale * values, examples)
    torch.testing.assert_close(found, direction(values, examples), rtol=TOLERANCE, atol=1e-7)


@pytest.mark.parametrize("broken", [0.0, math.inf, math.nan])
def test_what_cannot_be_used_moves_nothing(broken: float) -> None:
    examples, values = padded()
    whole = direction(values, examples)
    values[1] = values[1] * broken if broken == 0 else values[1]
    values[1, 2, 3] = broken
    found = direction(values, examples)
    assert not found[1].any()
    torch.testing.assert_close(found[[0, 2]], whole[[0, 2]], rtol=0, atol=0)


def test_an_example_of_padding_alone_moves_nothing() -> None:
    examples = padded_examples(torch.tensor([[0, 0], [1, 1]]))
    found = direction(torch.ones(2, 2, 3), examples)
    assert not found[0].any() and found[1].norm() == pytest.approx(1, rel=TOLERANCE)


def test_only_what_is_outside_the_ball_is_drawn_in() -> None:
    examples, values = padded()
    inside = values * torch.tensor([0.01, 1.0, 0.0]).view(3, 1, 1)
    found = projected(inside, examples, epsilon=0.5)
    torch.testing.assert_close(found[0], inside[0], rtol=0, atol=0)
    assert found[1].norm() == pytest.approx(0.5, rel=TOLERANCE)
    assert found.isfinite().all() and not found[2].any()
