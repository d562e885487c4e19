"""Divergences equal PyTorch's own, row by row, in value and gradient."""

import pytest
import torch

from hf_tfopt.losses.divergence import (
    DIVERGENCES,
    DivergenceForm,
    binary_divergence_of_elements,
    divergence,
    divergence_of_rows,
    top_classes,
)
from tests.references.distillation import naive_divergence, naive_top_k_kl

NUM_ROWS, NUM_CLASSES = 6, 11


def logits(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    print("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    both = 3 * torch.randn(2, NUM_ROWS, NUM_CLASSES, generator=generator, dtype=torch.float64)
    return both[0].requires_grad_(), both[1]


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_equals_the_naive_form(kind: str, temperature: float, beta: float) -> None:
    student, teacher = logits()
    ours = divergence(student, teacher, kind, temperature, beta)
    theirs = naive_divergence(student, teacher, kind, temperature, beta)
    assert int(ours.count) == NUM_ROWS
    # fp64 throughout
    torch.testing.assert_close(ours.sum, theirs, rtol=1e-12, atol=0)
    found, expected = (torch.autograd.grad(value, student)[0] for value in (ours.sum, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_is_zero_between_equals_and_no_gradient_goes_to_the_teacher(kind: str) -> None:
    student, teacher = logits()
    teacher.requires_grad_()
    assert float(divergence(teacher, teacher, kind).sum.detach()) == pytest.approx(0, abs=1e-12)
    divergence(student, teacher, kind).sum.backward()
    assert teacher.grad is None and student.grad is not None


def test_jsd_goes_to_kl_as_beta_goes_to_0() -> None:
    """GKD: lim JSD(β) / β = KL(p‖q)."""
    student, teacher = (both / 4 for both in logits())
    beta = 1e-6
    near = divergence(student, teacher, "jsd", beta=beta).sum / beta
    # the next order is β times a ratio of probabilities, here at most e^6
    torch.testing.assert_close(near, divergence(student, teacher, "kl").sum, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_classes_that_cannot_be_are_no_nan(kind: str) -> None:
    student, teacher = logits()
    with torch.no_grad():
        student[:, 3] = teacher[:, 3] = -torch.inf
    keep = [i for i in range(NUM_CLASSES) if i != 3]
    value = divergence(student, teacher, kind)
    expected = divergence(student[:, keep], teacher[:, keep], kind)
    torch.testing.assert_close(value.sum, expected.sum, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(value.sum, student)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("k", [1, 4, NUM_CLASSES - 1, NUM_CLASSES])
def test_top_classes_keep_a_proper_divergence(k: int) -> None:
    student, teacher = logits()
    form = DivergenceForm("kl", 2.0)
    each = divergence_of_rows(student, top_classes(teacher, k, 2.0), form)
    expected = naive_top_k_kl(student.detach(), teacher, k, 2.0)
    assert float(each.detach().sum()) == pytest.approx(expected)
    full = divergence_of_rows(student, teacher, form)
    assert bool((each <= full + 1e-12).all())  # merging classes loses information, never adds
    if k == NUM_CLASSES:
        torch.testing.assert_close(each, full, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(each.sum(), student)
    assert gradient.isfinite().all()
    assert bool(gradient.abs().sum(-1).gt(0).all())


def test_a_teacher_that_is_sure_leaves_no_nan() -> None:
    student, teacher = logits()
    sure = torch.full_like(teacher, -torch.inf)
    sure[:, 2] = 0
    each = divergence_of_rows(student, top_classes(sure, 3, 1.0), DivergenceForm())
    expected = torch.nn.functional.cross_entropy(
        student, torch.full((NUM_ROWS,), 2), reduction="none"
    )
    torch.testing.assert_close(each, expected)


def test_binary_divergence_is_that_of_a_sigmoid() -> None:
    student, teacher = logits()
    each = binary_divergence_of_elements(student, teacher, DivergenceForm("kl", 2.0))
    q, p = torch.sigmoid(student / 2), torch.sigmoid(teacher / 2)
    expected = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
    torch.testing.assert_close(each, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "kll"}, "did you mean 'kl'"),
        ({"temperature": 0.0}, "must be above 0"),
        ({"temperature": float("nan")}, "must be above 0"),
        ({"kind": "jsd", "beta": 1.0}, r"must be in \(0, 1\)"),
    ],
)
def test_refuses(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        divergence(*logits(), **options)


def test_refuses_other_classes() -> None:
    student, teacher = logits()
    with pytest.raises(ValueError, match="the same rows and classes"):
        divergence(student, teacher[:, :-1])
