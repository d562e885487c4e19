"""The losses equal PyTorch's on full logits, in value and in every gradient."""

import pytest
import torch
import torch.nn.functional as F

from hf_tfopt.losses import cross_entropy, linear_cross_entropy
from tests.references.cross_entropy import naive_cross_entropy, naive_linear_cross_entropy

# Rounding of one product and one softmax in each type; bf16 keeps 8 bits.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 5e-2}
NUM_ROWS, WIDTH, VOCABULARY = 50, 16, 37


def problem(dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    print("seed", seed)
    generator = torch.Generator().manual_seed(seed)
    shapes = [(5, NUM_ROWS // 5, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,)]
    tensors = [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]
    labels = torch.randint(VOCABULARY, (5, NUM_ROWS // 5), generator=generator)
    labels[:, ::3] = -100
    return [*tensors, labels]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("logit_scale", [1.0, 0.5])
@pytest.mark.parametrize("chunk_bytes", [1, 8 * VOCABULARY * 7, 10**7])
def test_linear_cross_entropy_equals_full_logits(
    dtype: torch.dtype,
    label_smoothing: float,
    softcap: float | None,
    logit_scale: float,
    chunk_bytes: int,
) -> None:
    hidden, weight, bias, labels = problem(dtype)
    options = {"logit_scale": logit_scale, "softcap": softcap}
    theirs = naive_linear_cross_entropy(hidden, weight, labels, bias, label_smoothing, **options)
    ours = linear_cross_entropy(
        hidden, weight, labels, bias, label_smoothing, chunk_bytes=chunk_bytes, **options
    )
    assert int(ours.count) == int((labels != -100).sum())
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(ours.sum.double(), theirs.double(), rtol=tolerance, atol=tolerance)
    inputs = (hidden, weight, bias)
    expected = torch.autograd.grad(3 * theirs, inputs)
    found = torch.autograd.grad(3 * ours.sum, inputs)
    for gradient, reference in zip(found, expected, strict=True):
        assert gradient.dtype == dtype
        scale = reference.abs().max().double()
        assert (gradient.double() - reference.double()).abs().max() <= tolerance * scale


OPTIONS = {
    "z": {"z_loss": 0.1},
    "focal": {"focal_gamma": 2.0},
    "soft focal": {"focal_gamma": 0.5},
    "weights": {"class_weights": torch.linspace(0, 2, VOCABULARY)},
    "weights, smooth": {
        "class_weights": torch.linspace(0, 2, VOCABULARY),
        "label_smoothing": 0.2,
        "z_loss": 0.01,
    },
    "weights, focal": {
        "class_weights": torch.linspace(0, 2, VOCABULARY),
        "focal_gamma": 1.5,
        "z_loss": 0.01,
    },
}


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_equal_the_papers_formulas(
    options: dict[str, torch.Tensor | float], softcap: float | None
) -> None:
    hidden, weight, bias, labels = problem(torch.float64)
    theirs = naive_linear_cross_entropy(hidden, weight, labels, bias, softcap=softcap, **options)
    ours = linear_cross_entropy(
        hidden, weight, labels, bias, softcap=softcap, chunk_bytes=8 * VOCABULARY * 7, **options
    )
    inputs = (hidden, weight, bias)
    expected = torch.autograd.grad(3 * theirs, inputs)
    found = torch.autograd.grad(3 * ours.sum, inputs)
    torch.testing.assert_close(ours.sum, theirs, rtol=1e-10, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    weights = options.get("class_weights", torch.ones(VOCABULARY))
    assert float(ours.count) == pytest.approx(float(weights[labels[labels >= 0]].sum()))
    if softcap is None:
        logits = (hidden @ weight.t() + bias).detach().requires_grad_()
        plain = cross_entropy(logits, labels, **options)
        reference = naive_cross_entropy(logits, labels, **options)
        torch.testing.assert_close(plain.sum, reference, rtol=1e-10, atol=0)
        slopes = [torch.autograd.grad(total, logits)[0] for total in (plain.sum, reference)]
        torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-10)
        assert float(plain.count) == pytest.approx(float(ours.count))


def test_a_certain_answer_has_no_focal_loss_and_a_finite_gradient() -> None:
    hidden = torch.tensor([[200.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    for gamma in (0.5, 1.0, 2.0):
        total = linear_cross_entropy(hidden, weight, torch.tensor([0]), focal_gamma=gamma).sum
        assert total.item() == 0
        assert torch.autograd.grad(total, hidden)[0].item() == 0
        logits = torch.tensor([[40.0, 0.0, 0.0]], requires_grad=True)
        plain = cross_entropy(logits, torch.tensor([0]), focal_gamma=gamma).sum
        assert torch.autograd.grad(plain, logits)[0].isfinite().all()


def test_options_outside_their_range_are_refused() -> None:
    hidden, weight, _, labels = problem(torch.float32)
    with pytest.raises(ValueError, match=r"z_loss is -1; it must be at least 0"):
        linear_cross_entropy(hidden, weight, labels, z_loss=-1)
    with pytest.raises(ValueError, match="leave one of the two out"):
        linear_cross_entropy(hidden, weight, labels, label_smoothing=0.1, focal_gamma=2.0)
    with pytest.raises(ValueError, match=r"labels are torch.float32; classes are whole numbers"):
        cross_entropy(hidden @ weight.t(), labels.float())


def test_bfloat16_weight_gradient_is_summed_in_fp32() -> None:
    """4096 equal rows: bf16 sums would stop growing at 256 steps of their size."""
    hidden = torch.ones(4096, 4, dtype=torch.bfloat16)
    weight = torch.zeros(2, 4, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.zeros(4096, dtype=torch.long)
    linear_cross_entropy(hidden, weight, labels, chunk_bytes=2).sum.backward()
    assert weight.grad is not None
    assert weight.grad[1, 0].item() == 2048.0


def test_autocast_products_keep_fp32_gradients() -> None:
    hidden, weight, bias, labels = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight, labels, bias)
    theirs = naive_linear_cross_entropy(hidden, weight, labels, bias)
    assert ours.sum.dtype == torch.float32
    torch.testing.assert_close(ours.sum, theirs, rtol=TOLERANCES[torch.bfloat16], atol=0)
    ours.sum.backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_gradients_can_be_taken_twice_from_a_retained_graph() -> None:
    hidden, weight, bias, labels = problem(torch.float64)
    total = linear_cross_entropy(hidden, weight, labels, bias).sum
    once = torch.autograd.grad(total, weight, retain_graph=True)[0]
    twice = torch.autograd.grad(2 * total, weight)[0]
    torch.testing.assert_close(twice, 2 * once)


def test_frozen_weight_gets_no_gradient() -> None:
    hidden, weight, bias, labels = problem(torch.float64)
    weight.requires_grad_(False)
    bias.requires_grad_(False)
    linear_cross_entropy(hidden, weight, labels, bias).sum.backward()
    assert weight.grad is None
    assert hidden.grad is not None


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_equals_torch(label_smoothing: float) -> None:
    hidden, weight, _, labels = problem(torch.float32)
    logits = hidden @ weight.t()
    ours = cross_entropy(logits, labels, label_smoothing)
    theirs = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), label_smoothing=label_smoothing, reduction="sum"
    )
    torch.testing.assert_close(ours.sum, theirs)


def test_no_label_gives_zero_and_zero_gradients() -> None:
    hidden, weight, bias, labels = problem(torch.float32)
    term = linear_cross_entropy(hidden, weight, torch.full_like(labels, -100), bias)
    term.sum.backward()
    assert term.sum.item() == 0 and int(term.count) == 0
    assert weight.grad is not None and not weight.grad.any()


@pytest.mark.parametrize("label", [-1, VOCABULARY])
def test_label_outside_the_range_is_refused(label: int) -> None:
    hidden, weight, bias, labels = problem(torch.float32)
    labels[0, 1] = label
    with pytest.raises(ValueError, match=rf"label {label} is outside \[0, {VOCABULARY}\)"):
        linear_cross_entropy(hidden, weight, labels, bias)
    with pytest.raises(ValueError, match="outside"):
        cross_entropy(hidden @ weight.t(), labels)


def test_shapes_and_smoothing_are_checked() -> None:
    hidden, weight, bias, labels = problem(torch.float32)
    with pytest.raises(ValueError, match="width 16 do not fit"):
        linear_cross_entropy(hidden, weight[:, :8], labels)
    with pytest.raises(ValueError, match="do not fit"):
        linear_cross_entropy(hidden, weight, labels[:, :3], bias)
    with pytest.raises(ValueError, match=r"label_smoothing is 1\.5"):
        linear_cross_entropy(hidden, weight, labels, bias, 1.5)
