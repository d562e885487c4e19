"""Losses of independent outputs equal PyTorch's, and leave out what has no target."""

import math

import pytest
import torch
import torch.nn.functional as F

from hf_tfopt.losses import binary_cross_entropy, squared_error


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    print("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, 5, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(2, (7, 5), generator=generator).double()
    return logits, labels


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weights", [None, torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0])])
def test_binary_cross_entropy_equals_torch(
    label_smoothing: float, class_weights: torch.Tensor | None
) -> None:
    logits, labels = problem()
    ours = binary_cross_entropy(logits, labels, label_smoothing, class_weights=class_weights)
    theirs = F.binary_cross_entropy_with_logits(
        logits,
        labels * (1 - label_smoothing) + label_smoothing / 2,
        None if class_weights is None else class_weights.double(),
        reduction="sum",
    )
    torch.testing.assert_close(ours.sum, theirs)
    expected = 35 if class_weights is None else 7 * float(class_weights.sum())
    assert float(ours.count) == expected


def test_focal_binary_cross_entropy_is_the_papers() -> None:
    logits, labels = problem()
    p = torch.where(labels == 1, logits.sigmoid(), 1 - logits.sigmoid())
    theirs = -((1 - p) ** 2 * p.log()).sum()
    torch.testing.assert_close(binary_cross_entropy(logits, labels, focal_gamma=2.0).sum, theirs)
    certain = torch.tensor([[40.0, -200.0]], requires_grad=True)
    total = binary_cross_entropy(certain, torch.tensor([[1.0, 0.0]]), focal_gamma=0.5).sum
    assert torch.autograd.grad(total, certain)[0].isfinite().all()


def test_squared_error_equals_torch_in_every_shape() -> None:
    logits, labels = problem()
    theirs = F.mse_loss(logits, labels, reduction="sum")
    torch.testing.assert_close(squared_error(logits, labels).sum, theirs)
    one = squared_error(logits[:, :1], labels[:, 0])
    torch.testing.assert_close(one.sum, F.mse_loss(logits[:, 0], labels[:, 0], reduction="sum"))
    assert int(one.count) == 7
    assert squared_error(logits[:, :1].bfloat16(), labels[:, 0]).sum.dtype == torch.float32


@pytest.mark.parametrize("loss", [binary_cross_entropy, squared_error])
def test_nan_is_no_target_and_has_no_gradient(loss: object) -> None:
    logits, labels = problem()
    known = labels.clone()
    labels[0], labels[3, 2] = math.nan, math.nan
    ours = loss(logits, labels)
    rest = ~labels.isnan()
    alone = loss(logits[rest].unsqueeze(-1), known[rest].unsqueeze(-1))
    torch.testing.assert_close(ours.sum, alone.sum)
    assert int(ours.count) == int(alone.count) == 29
    (slope,) = torch.autograd.grad(ours.sum, logits)
    assert slope.isfinite().all() and not slope[0].any() and slope[1].any()


def test_whole_numbers_have_minus_100_for_no_target() -> None:
    outputs = torch.zeros(3, 1)
    assert squared_error(outputs, torch.tensor([2, -100, 1])).sum.item() == 5


def test_bad_labels_are_refused() -> None:
    logits, labels = problem()
    with pytest.raises(ValueError, match=r"label 2 is outside \[0, 1\]"):
        binary_cross_entropy(logits, labels * 2)
    with pytest.raises(ValueError, match="do not fit outputs of shape"):
        squared_error(logits, labels[:, :3])
