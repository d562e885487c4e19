"""Distances of features equal the naive form, whatever stands at padding."""

import pytest
import torch

from hf_tfopt.losses.features import (
    attention_distance,
    cosine_distance,
    hidden_state_distance,
    relation_divergence,
)
from hf_tfopt.losses.reduction import divide
from tests.references.features import (
    naive_attention,
    naive_cosine,
    naive_hidden_states,
    naive_relations,
)

LENGTHS, WIDTH = [5, 2, 1, 4], 6
NUM_TOKENS = max(LENGTHS)
IS_TOKEN = torch.arange(NUM_TOKENS) < torch.tensor(LENGTHS).unsqueeze(1)


def vectors(width: int, seed: int) -> torch.Tensor:
    print("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    shape = (len(LENGTHS), NUM_TOKENS, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def maps(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(LENGTHS), 3, NUM_TOKENS, NUM_TOKENS)
    scores = torch.randn(shape, generator=generator, dtype=torch.float64)
    return scores.masked_fill(~IS_TOKEN[:, None, None], -torch.inf).softmax(-1)


CASES = {
    "hidden": (hidden_state_distance, naive_hidden_states, lambda: (vectors(6, 0), vectors(6, 1))),
    "cosine": (cosine_distance, naive_cosine, lambda: (vectors(6, 0), vectors(6, 1))),
    "attention": (attention_distance, naive_attention, lambda: (maps(0), maps(1))),
    "relations": (
        lambda s, t, mask: relation_divergence(s, t, mask, 2),
        lambda s, t, lengths: naive_relations([s], [t], lengths, 2),
        lambda: (vectors(6, 0), vectors(8, 1)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_naive_form(name: str) -> None:
    ours, naive, inputs = CASES[name]
    student, teacher = inputs()
    student.requires_grad_()
    term = ours(student, teacher, IS_TOKEN)
    assert int(term.count) == sum(LENGTHS)
    expected = naive(student, teacher, LENGTHS)
    # fp64 throughout
    torch.testing.assert_close(divide(*term), expected, rtol=1e-12, atol=0)
    found, reference = (
        torch.autograd.grad(value, student)[0] for value in (divide(*term), expected)
    )
    torch.testing.assert_close(found, reference, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_padding_counts_for_nothing(name: str) -> None:
    ours, _, inputs = CASES[name]
    student, teacher = inputs()
    before = ours(student, teacher, IS_TOKEN)
    at_padding = ~IS_TOKEN.unsqueeze(-1) if student.dim() == 3 else ~IS_TOKEN[:, None, :, None]
    student = student.masked_fill(at_padding, 1e3).requires_grad_()
    after = ours(student, teacher, IS_TOKEN)
    torch.testing.assert_close(before.sum, after.sum)
    after.sum.backward()
    assert student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_an_example_of_padding_alone_is_no_nan(name: str) -> None:
    ours, _, inputs = CASES[name]
    student, teacher = (side.requires_grad_() for side in inputs())
    nothing = IS_TOKEN.clone()
    nothing[1] = False
    term = ours(student, teacher, nothing)
    term.sum.backward()
    assert term.sum.isfinite() and student.grad is not None
    assert student.grad[1].abs().sum() == 0
    assert student.grad.isfinite().all()
