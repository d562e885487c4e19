"""Distillation through both heads equals the naive form on full logits."""

import pytest
import torch

from hf_tfopt.losses.cross_entropy import CrossEntropyForm, linear_cross_entropy
from hf_tfopt.losses.distillation import (
    HeadRows,
    KnownRows,
    TeacherRows,
    distillation,
    linear_distillation,
)
from hf_tfopt.losses.divergence import DIVERGENCES, DivergenceForm, top_classes
from hf_tfopt.losses.head import LinearHead
from hf_tfopt.losses.reduction import combine
from tests.references.distillation import naive_distillation

NUM_ROWS, WIDTH, TEACHER_WIDTH, VOCABULARY = 23, 8, 12, 37
# fp64 sums in another order; fp32 softmaxes of 37 classes; bf16 products keep 8 bits.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 5e-2}


def heads(
    dtype: torch.dtype = torch.float64, seed: int = 0, **student: float | None
) -> tuple[torch.Tensor, LinearHead, torch.Tensor, LinearHead, torch.Tensor]:
    print("seed", seed)
    torch.manual_seed(seed)
    shapes = [(NUM_ROWS, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,)]
    hidden, weight, bias = (torch.randn(shape).to(dtype).requires_grad_() for shape in shapes)
    shapes = [(NUM_ROWS, TEACHER_WIDTH), (VOCABULARY, TEACHER_WIDTH), (VOCABULARY,)]
    t_hidden, t_weight, t_bias = (torch.randn(shape).to(dtype).requires_grad_() for shape in shapes)
    labels = torch.randint(VOCABULARY, (NUM_ROWS,))
    head = LinearHead(weight, bias, **student)
    return hidden, head, t_hidden, LinearHead(t_weight, t_bias, 0.7, 3.0), labels


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("chunk_bytes", [1, 8 * VOCABULARY * 5, 10**7])
def test_equals_the_naive_form(
    dtype: torch.dtype, kind: str, alpha: float, chunk_bytes: int
) -> None:
    hidden, head, teacher_hidden, teacher_head, labels = heads(dtype, scale=0.5, softcap=4.0)
    rows = HeadRows(teacher_hidden, teacher_head)
    form = DivergenceForm(kind, 2.0, 0.3)
    terms = linear_distillation(hidden, head, labels, rows, form, alpha, chunk_bytes=chunk_bytes)
    ours = combine(terms, weights={"cross_entropy": 1 - alpha, "distillation": alpha})
    wide = torch.promote_types(dtype, torch.float32)
    logits = head(hidden).to(wide)
    theirs = naive_distillation(
        logits, teacher_head(teacher_hidden).to(wide), labels, alpha, 2.0, kind, 0.3
    )
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    inputs = (hidden, head.weight, head.bias)
    expected = torch.autograd.grad(3 * theirs, inputs)
    found = torch.autograd.grad(3 * ours, inputs)
    for gradient, reference in zip(found, expected, strict=True):
        assert gradient.dtype == dtype
        scale = reference.abs().max().double()
        assert (gradient.double() - reference.double()).abs().max() <= tolerance * scale
    assert teacher_head.weight.grad is None and teacher_hidden.grad is None


def test_each_term_has_its_own_value_and_the_same_count() -> None:
    hidden, head, teacher_hidden, teacher_head, labels = heads()
    form, hard = DivergenceForm("kl", 3.0), CrossEntropyForm(label_smoothing=0.1)
    teacher = HeadRows(teacher_hidden, teacher_head)
    ours = linear_distillation(hidden, head, labels, teacher, form, 0.2, hard)
    theirs = distillation(head(hidden), labels, teacher_head(teacher_hidden), form, hard)
    assert ours.keys() == theirs.keys() == {"cross_entropy", "distillation"}
    for name, term in theirs.items():
        torch.testing.assert_close(ours[name].sum, term.sum)
        assert int(ours[name].count) == int(term.count) == NUM_ROWS


@pytest.mark.parametrize("k", [3, VOCABULARY])
def test_what_is_known_of_a_teacher_serves_as_its_head_does(k: int) -> None:
    hidden, head, teacher_hidden, teacher_head, labels = heads()
    form = DivergenceForm("kl", 2.0)
    top = top_classes(teacher_head(teacher_hidden).detach(), k, 2.0)
    known: list[TeacherRows] = [KnownRows(top), HeadRows(teacher_hidden, teacher_head)]
    known.append(KnownRows(teacher_head(teacher_hidden)))
    values = [
        linear_distillation(hidden, head, labels, rows, form, 0.5, chunk_bytes=8 * VOCABULARY * 4)
        for rows in known
    ]
    full = distillation(head(hidden), labels, top, form)["distillation"].sum
    sums = [float(terms["distillation"].sum.detach()) for terms in values]
    assert sums[0] == pytest.approx(float(full.detach()))
    assert sums[1] == pytest.approx(sums[2])
    assert (sums[0] == pytest.approx(sums[1])) == (k == VOCABULARY)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("chunk_bytes", [1, 8 * VOCABULARY * 5, 10**7])
def test_class_weights_are_of_the_labels_alone(alpha: float, chunk_bytes: int) -> None:
    hidden, head, teacher_hidden, teacher_head, labels = heads(scale=0.5, softcap=4.0)
    form, hard = DivergenceForm("jsd", 2.0, 0.3), CrossEntropyForm(0.1, 1e-2)
    class_weights = torch.linspace(0, 2, VOCABULARY).double()
    rows = HeadRows(teacher_hidden, teacher_head)
    ours = linear_distillation(
        hidden, head, labels, rows, form, alpha, hard, class_weights, chunk_bytes=chunk_bytes
    )
    of_teacher = teacher_head(teacher_hidden).detach()
    theirs = distillation(head(hidden), labels, of_teacher, form, hard, class_weights)
    counts = {"cross_entropy": class_weights[labels].sum(), "distillation": NUM_ROWS}
    assert ours.keys() == theirs.keys() == counts.keys()
    for name, count in counts.items():
        torch.testing.assert_close(ours[name].sum, theirs[name].sum)
        assert float(ours[name].count) == float(theirs[name].count) == float(count)
    weights = {"cross_entropy": 1 - alpha, "distillation": alpha}
    inputs = (hidden, head.weight, head.bias)
    found, wanted = (
        torch.autograd.grad(combine(terms, weights=weights), inputs) for terms in (ours, theirs)
    )
    torch.testing.assert_close(found, wanted)


def test_alpha_0_is_the_plain_loss_to_the_bit() -> None:
    hidden, head, teacher_hidden, teacher_head, labels = heads(torch.float32)
    rows = HeadRows(teacher_hidden, teacher_head)
    terms = linear_distillation(hidden, head, labels, rows, DivergenceForm(), 0.0)
    plain = linear_cross_entropy(hidden, head.weight, labels, head.bias)
    assert float(terms["cross_entropy"].sum.detach()) == float(plain.sum.detach())
    inputs = (hidden, head.weight, head.bias)
    loss = combine(terms, weights={"cross_entropy": 1.0, "distillation": 0.0})
    expected = torch.autograd.grad(plain.sum / plain.count, inputs)
    for ours, theirs in zip(torch.autograd.grad(loss, inputs), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_autocast_products_keep_fp32_gradients() -> None:
    hidden, head, teacher_hidden, teacher_head, labels = heads(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        rows = HeadRows(teacher_hidden, teacher_head)
        terms = linear_distillation(hidden, head, labels, rows, DivergenceForm("kl", 2.0), 0.5)
    theirs = distillation(
        head(hidden), labels, teacher_head(teacher_hidden), DivergenceForm("kl", 2.0)
    )
    for name, term in theirs.items():
        torch.testing.assert_close(terms[name].sum, term.sum, rtol=5e-2, atol=0)
    combine(terms, weights={"cross_entropy": 0.5, "distillation": 0.5}).backward()
    assert head.weight.grad is not None and head.weight.grad.dtype == torch.float32


def test_a_label_outside_the_vocabulary_is_refused() -> None:
    hidden, head, teacher_hidden, teacher_head, labels = heads()
    labels[2] = VOCABULARY
    with pytest.raises(ValueError, match="outside"):
        rows = HeadRows(teacher_hidden, teacher_head)
        linear_distillation(hidden, head, labels, rows, DivergenceForm(), 0.5)
