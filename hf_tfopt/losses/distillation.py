"""Distillation through both heads in chunks: neither the student's logits nor the teacher's exist.

(1 - α) cross_entropy(z, labels) + α T² D(softmax(z_T / T), softmax(z / T))
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from hf_tfopt.losses.cross_entropy import (
    CrossEntropyForm,
    CrossEntropyRows,
    count_of,
    cross_entropy,
    linear_cross_entropy,
)
from hf_tfopt.losses.divergence import DivergenceForm, TopClasses, divergence_of_rows
from hf_tfopt.losses.head import LinearHead, LogitTail
from hf_tfopt.losses.labels import check_labels
from hf_tfopt.losses.linear_head import CHUNK_BYTES, BlockLoss, compute_type, linear_loss
from hf_tfopt.losses.reduction import IGNORE_INDEX, LossSum

# Which rows of a chunk -> what the teacher says there: logits [n, V], or its likeliest classes.
TeacherBlock = Callable[[slice], Tensor | TopClasses]


class TeacherRows(Protocol):
    """What a teacher says of n positions."""

    def chunk(self, rows: slice) -> TeacherBlock:
        """Its word on some of them; called once a chunk."""
        ...


class KnownRows:
    """A teacher's logits [n, V] or likeliest classes, already there."""

    def __init__(self, known: Tensor | TopClasses):
        self.known = known

    def chunk(self, rows: slice) -> TeacherBlock:
        """Slices of them."""
        known = self.known
        part = known.rows(rows) if isinstance(known, TopClasses) else known[rows]
        return lambda block: part.rows(block) if isinstance(part, TopClasses) else part[block]


class HeadRows:
    """A teacher's hidden states [n, H] before its head: logits exist for one chunk at a time.

    To be made where the model runs: under autocast the product is in the autocast type.
    """

    def __init__(self, hidden: Tensor, head: LinearHead):
        compute = compute_type(hidden)
        self.hidden = hidden.detach().to(compute)
        self.weight = head.weight.detach().to(compute)
        self.head = head

    def chunk(self, rows: slice) -> TeacherBlock:
        """The chunk's logits, made by the head."""
        products = self.hidden[rows] @ self.weight.t()
        wide = torch.promote_types(products.dtype, torch.float32)
        head = self.head
        bias = None if head.bias is None else head.bias.detach().to(wide)
        tail = LogitTail(head.scale, head.softcap, bias)
        return lambda block: tail(products[block].to(wide))


def distillation(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor | TopClasses,
    form: DivergenceForm,
    hard: CrossEntropyForm = CrossEntropyForm(),  # noqa: B008  # frozen
    class_weights: Tensor | None = None,
) -> dict[str, LossSum]:
    """The two terms of distillation from full logits, each a sum over the rows and their number.

    Args:
        logits: [n, C], of the student, at labelled positions.
        labels: [n], in [0, C).
        teacher: logits [n, C] of the same positions, or its likeliest classes there.
        form: the divergence; its term is `distillation`, times T².
        hard: of the term `cross_entropy`.
        class_weights: [C], of `cross_entropy` alone, whose count is then the labels' weights' sum.
    """
    each = divergence_of_rows(logits, teacher, form)
    hard_term = cross_entropy(logits, labels, **vars(hard), class_weights=class_weights)
    return {"cross_entropy": hard_term, "distillation": LossSum(each.sum(), count_of(labels))}


def linear_distillation(
    hidden: Tensor,
    head: LinearHead,
    labels: Tensor,
    teacher: TeacherRows,
    form: DivergenceForm,
    alpha: float,
    hard: CrossEntropyForm = CrossEntropyForm(),  # noqa: B008  # frozen
    class_weights: Tensor | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> dict[str, LossSum]:
    """The two terms of distillation straight from hidden states, through the head in chunks.

    Their values are those of `distillation(head(hidden), labels, teacher's logits, form, hard,
    class_weights)`. Only the gradient of `(1 - alpha) * cross_entropy + alpha * distillation` is
    made, once, and one of the two sums carries all of it: they are to be added with just these
    weights, and divided by the same count. With class weights the counts differ, and each sum has
    a gradient of its own: twice the memory of the weight's gradient, and the student's logits made
    twice. Cannot be differentiated twice.

    Args:
        hidden: [n, H], of the student, at labelled positions.
        head: the student's.
        labels: [n], in [0, V).
        teacher: its word on the same positions.
        form: the divergence.
        alpha: α in [0, 1].
        hard: of the term `cross_entropy`.
        class_weights: [V], of `cross_entropy` alone, whose count is then the labels' weights' sum.
        chunk_bytes: size of the student's logits held at once; the teacher's are as large.
    """
    if class_weights is not None:
        of_labels = linear_cross_entropy(
            hidden,
            head.weight,
            labels,
            head.bias,
            **vars(hard),
            class_weights=class_weights,
            logit_scale=head.scale,
            softcap=head.softcap,
            chunk_bytes=chunk_bytes,
        )
        of_teacher = linear_distillation(
            hidden, head, labels, teacher, form, float(alpha > 0), chunk_bytes=chunk_bytes
        )
        return {**of_teacher, "cross_entropy": of_labels}
    check_labels(labels, head.weight.shape[0], IGNORE_INDEX)
    weights = (1 - alpha, alpha)
    rule = _DistillationRows(CrossEntropyRows(labels, hard, None), teacher, form, weights)
    total, parts = linear_loss(
        hidden,
        head.weight,
        head.bias,
        rule,
        logit_scale=head.scale,
        softcap=head.softcap,
        chunk_bytes=chunk_bytes,
    )
    gradient_only = total - total.detach()  # 0
    bearer = int(alpha > 0.5)  # the larger weight divides
    sums = [
        part + gradient_only / weights[i] if i == bearer else part for i, part in enumerate(parts)
    ]
    count = count_of(labels)
    names = ("cross_entropy", "distillation")
    return {name: LossSum(total, count) for name, total in zip(names, sums, strict=True)}


class _DistillationRows:
    """Cross-entropy and divergence of the same logits, and the slope of their weighted sum."""

    def __init__(
        self,
        hard: CrossEntropyRows,
        teacher: TeacherRows,
        form: DivergenceForm,
        weights: tuple[float, float],
    ):
        self.hard = hard
        self.teacher = teacher
        self.form = form
        self.weights = weights

    def chunk(self, rows: slice) -> BlockLoss:
        hard, teacher = self.hard.chunk(rows), self.teacher.chunk(rows)
        of_hard, of_soft = self.weights

        def block_loss(logits: Tensor, block: slice) -> tuple[Tensor, Tensor]:
            soft, soft_slope = self._soft(logits, teacher(block))
            value, slope = hard(logits, block)
            terms = torch.cat([value, soft.reshape(1)])
            if not of_soft:
                return terms, slope
            if not of_hard:
                return terms, soft_slope
            return terms, slope.mul_(of_hard).add_(soft_slope, alpha=of_soft)

        return block_loss

    def _soft(self, logits: Tensor, teacher: Tensor | TopClasses) -> tuple[Tensor, Tensor]:
        if not self.weights[1]:  # told, not trained
            return divergence_of_rows(logits, teacher, self.form).sum(), logits
        # The block is small: what autograd keeps of it stays in the cache.
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            value = divergence_of_rows(leaf, teacher, self.form).sum()
            (slope,) = torch.autograd.grad(value, leaf)
        return value.detach(), slope
