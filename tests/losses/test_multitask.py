"""Weighing tasks: each rule equals the paper's own words, run slowly."""

import math

import pytest
import torch

from hf_tfopt.losses.multitask import (
    MIN_WEIGHT,
    gradnorm_weights,
    pcgrad_coefficients,
    pcgrad_orders,
    uncertainty_weighted,
)
from hf_tfopt.losses.reduction import LossSum
from tests.references import multitask as reference


@pytest.mark.parametrize("is_regression", [False, True])
def test_uncertainty_equals_the_paper(is_regression: bool) -> None:
    term = LossSum(torch.tensor(6.0, dtype=torch.float64), torch.tensor(4))
    for sigma in (0.3, 1.0, 2.5):
        s = torch.tensor(2 * math.log(sigma), dtype=torch.float64)
        weighted = uncertainty_weighted(term, s, is_regression)
        expected = reference.kendall(1.5, sigma, is_regression)
        assert float(weighted.sum / weighted.count) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("is_regression", "best"), [(False, 3.0), (True, 1.5)])
def test_uncertainty_has_its_minimum_at_the_loss(is_regression: bool, best: float) -> None:
    """The sign of the paper: with the other one the weight would fall to 0 without end."""
    term = LossSum(torch.tensor(6.0), torch.tensor(4))
    s = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.SGD([s], lr=0.2)
    for _ in range(300):
        optimizer.zero_grad()
        (uncertainty_weighted(term, s, is_regression).sum / 4).backward()
        optimizer.step()
    assert s.exp().item() == pytest.approx(best, rel=1e-4)


def test_gradnorm_equals_the_paper() -> None:
    generator = torch.Generator().manual_seed(3)
    shared = torch.randn(5, dtype=torch.float64, generator=generator, requires_grad=True)
    rows = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    weights, initial = [0.7, 1.9, 0.4], [1.5, 0.8, 2.0]
    for alpha in (0.0, 0.12, 1.5):
        losses = [(row @ shared).square() + 0.1 for row in rows]
        expected = reference.gradnorm_step(weights, shared, losses, initial, alpha, 0.01)
        norms = [torch.autograd.grad(loss, shared)[0].norm() for loss in losses]
        found = gradnorm_weights(
            torch.tensor(weights, dtype=torch.float64),
            torch.stack(norms),
            torch.stack(losses).detach(),
            torch.tensor(initial, dtype=torch.float64),
            alpha,
            0.01,
        )
        assert found.tolist() == pytest.approx(expected, rel=1e-12)
        assert sum(expected) == pytest.approx(3)
        weights = expected


def test_gradnorm_leaves_an_absent_task_out_of_the_means() -> None:
    weights = torch.tensor([1.0, 1.0, 1.0])
    there = torch.tensor([4.0, 1.0])
    found = gradnorm_weights(
        weights,
        torch.tensor([4.0, 1.0, 0.0]),
        torch.tensor([1.0, 1.0, 0.0]),
        torch.tensor([1.0, 1.0, 0.0]),
    )
    # of the two: the steep one sinks by 0.025 * 4, the flat one rises by 0.025 * 1
    moved = torch.cat([torch.ones(2) + 0.025 * there * torch.tensor([-1.0, 1.0]), torch.ones(1)])
    torch.testing.assert_close(found, moved * 3 / moved.sum())


def test_gradnorm_never_undoes_a_task() -> None:
    ones = torch.ones(2)
    found = gradnorm_weights(ones, torch.tensor([1e6, 1.0]), ones, ones)
    assert float(found.min()) > 0
    assert float(found.min()) <= MIN_WEIGHT * 2


@pytest.mark.parametrize("seed", range(6))
def test_pcgrad_equals_the_paper(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(4, 6, dtype=torch.float64, generator=generator)
    orders = pcgrad_orders(4, seed, step=seed)
    coefficients = pcgrad_coefficients(gradients @ gradients.T, orders)
    expected = reference.pcgrad(list(gradients), orders)
    # float64 products in another order
    torch.testing.assert_close(coefficients @ gradients, expected, rtol=1e-10, atol=1e-10)


def test_pcgrad_by_hand_and_without_conflict() -> None:
    conflict = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    coefficients = pcgrad_coefficients(conflict @ conflict.T, [[1], [0]])
    # (1, 0) loses its part along (-1, 1): (1/2, 1/2); (-1, 1) loses its part along (1, 0): (0, 1)
    assert (coefficients @ conflict).tolist() == [0.5, 1.5]
    agreed = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert pcgrad_coefficients(agreed @ agreed.T, [[1], [0]]).tolist() == [1.0, 1.0]
    absent = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert pcgrad_coefficients(absent @ absent.T, [[1], [0]]).tolist() == [1.0, 1.0]


def test_pcgrad_orders_are_random_and_a_function_of_seed_and_step() -> None:
    first = pcgrad_orders(5, 1, 2)
    assert first == pcgrad_orders(5, 1, 2)
    assert all(sorted([*order, task]) == list(range(5)) for task, order in enumerate(first))
    orders = {tuple(pcgrad_orders(3, 0, step)[0]) for step in range(20)}
    assert orders == {(1, 2), (2, 1)}
    assert first != pcgrad_orders(5, 1, 3) and first != pcgrad_orders(5, 2, 2)
