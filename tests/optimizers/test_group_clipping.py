import math

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_tfopt.optimizers import group_clipping
from hf_tfopt.optimizers.group_clipping import clip_groups, clip_units, clip_values
from tests.references.clipping import clipped_together, clipped_units


@pytest.fixture(params=["at hand", "on a device"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways, the other also where there is only a CPU."""
    if request.param == "on a device":
        monkeypatch.setattr(group_clipping, "is_at_hand", lambda tensor: False)


SHAPES = [(5, 3), (7,), (4, 6), (6,), (2, 3, 4), ()]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
# factors are found in fp32 and applied once: its rounding, or that of the gradient's type
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-6, torch.bfloat16: 1e-2}


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def group_norms(gradients: list[Tensor], members: list[int], num: int) -> Tensor:
    parts = [[g for g, m in zip(gradients, members, strict=True) if m == n] for n in range(num)]
    return torch.stack([torch.cat([g.float().flatten() for g in part]).norm() for part in parts])


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_equal_their_reference(dtype: torch.dtype) -> None:
    gradients, members = tensors(1, dtype), [0, 0, 1, 2, 1, 2]
    limits = torch.tensor([0.5, 100.0, math.inf])
    expected = [gradient.clone() for gradient in gradients]
    for group, limit in enumerate(limits.tolist()):
        numbers = [n for n, member in enumerate(members) if member == group]
        shorter = clipped_together([gradients[n] for n in numbers], limit)
        for number, gradient in zip(numbers, shorter, strict=True):
            expected[number] = gradient
    shortened = clip_groups(gradients, members, group_norms(gradients, members, 3), limits)
    assert shortened.tolist() == [1, 0, 0]
    for found, gradient in zip(gradients, expected, strict=True):
        tolerance = TOLERANCES[dtype]
        torch.testing.assert_close(
            found, gradient, rtol=tolerance, atol=tolerance, check_dtype=False
        )


def test_one_group_is_what_torch_clips() -> None:
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    gradients = tensors(2)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(parameters, 0.7)
    members = [0] * len(SHAPES)
    clip_groups(gradients, members, group_norms(gradients, members, 1), torch.tensor([0.7]))
    for parameter, gradient in zip(parameters, gradients, strict=True):
        # torch divides by the norm + 1e-6
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-6, atol=0)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_as_it_is(bad: float) -> None:
    gradients, members = tensors(3), [0, 0, 1, 1, 1, 1]
    gradients[1][2] = bad
    before = [gradient.clone() for gradient in gradients]
    norms = group_norms(gradients, members, 2)
    assert clip_groups(gradients, members, norms, torch.tensor([0.1, 0.1])).tolist() == [0, 1]
    for found, old in zip(gradients[:2], before[:2], strict=True):
        torch.testing.assert_close(found, old, rtol=0, atol=0, equal_nan=True)
    values = [gradient.clone() for gradient in before]
    assert clip_values(values, 0.1).tolist() == [1, 0, 1, 1, 1, 1]
    torch.testing.assert_close(values[1], before[1], rtol=0, atol=0, equal_nan=True)
    parameter = nn.Parameter(torch.ones(4, 6))
    parameter.grad = torch.ones(4, 6)
    parameter.grad[1, 2] = bad
    expected = parameter.grad[1].clone()
    clip_units([parameter], [0], 0.01, 1e-3)
    torch.testing.assert_close(parameter.grad[1], expected, rtol=0, atol=0, equal_nan=True)
    assert parameter.grad[[0, 2, 3]].norm(dim=1).tolist() == pytest.approx([0.01 * 6**0.5] * 3)


def test_no_gradient_and_a_norm_of_zero_are_passed_over() -> None:
    gradients = [None, torch.zeros(3)]
    shortened = clip_groups(gradients, [0, 1], torch.zeros(2), torch.tensor([1.0, 1.0]))
    assert shortened.tolist() == [0, 0] and gradients[1].tolist() == [0, 0, 0]
    assert clip_values([], 1.0).tolist() == []
    assert clip_units([], [], 0.1, 1e-3).item() == 0
    parameter = nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.zeros(2, 2)
    assert clip_units([parameter], [0], 0.1, 1e-3).item() == 0
    assert parameter.grad.tolist() == [[0, 0], [0, 0]]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_clamped(dtype: torch.dtype) -> None:
    gradients = [torch.randn(0, 3), *tensors(4, dtype)]
    gradients[2] *= 0.01
    expected = [gradient.clamp(-0.25, 0.25) for gradient in gradients]
    largest = [float(gradient.abs().amax()) if gradient.numel() else 0 for gradient in gradients]
    assert clip_values(gradients, 0.25).tolist() == [float(value > 0.25) for value in largest]
    for found, gradient in zip(gradients, expected, strict=True):
        assert torch.equal(found, gradient)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("dtype", DTYPES)
def test_units_equal_their_reference(dtype: torch.dtype) -> None:
    dims = [0, None, 1, None, 0, None]
    parameters = [nn.Parameter(tensor) for tensor in tensors(5, dtype)]
    with torch.no_grad():
        parameters[0][2] = 0  # for which eps is
    num_shortened, expected = 0, []
    for parameter, gradient, dim in zip(parameters, tensors(6, dtype), dims, strict=True):
        parameter.grad = gradient * 0.1
        shorter, number = clipped_units(parameter.grad, parameter.detach(), dim, 0.1, 1e-3)
        expected.append(shorter)
        num_shortened += number
    share = clip_units(parameters, dims, 0.1, 1e-3)
    num_units = 5 + 1 + 6 + 1 + 2 + 1
    assert 0 < num_shortened < num_units
    assert share.item() == pytest.approx(num_shortened / num_units, rel=1e-6)
    for parameter, gradient in zip(parameters, expected, strict=True):
        tolerance = TOLERANCES[dtype]
        torch.testing.assert_close(
            parameter.grad, gradient, rtol=tolerance, atol=tolerance * 0.1, check_dtype=False
        )


def test_nothing_is_read_back_from_a_device() -> None:
    """Tensors without numbers, of which nothing can be read."""
    gradients = [torch.empty(4, 3, device="meta"), torch.empty(5, device="meta")]
    norms = torch.empty(2, device="meta")
    assert clip_groups(gradients, [0, 1], norms, torch.ones(2, device="meta")).is_meta
    assert clip_values(gradients, 0.1).is_meta
    parameters = [nn.Parameter(gradient) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    assert clip_units(parameters, [0, None], 0.1, 1e-3).is_meta
    with pytest.raises(RuntimeError, match="meta"):
        norms.tolist()


def test_a_model_on_several_devices() -> None:
    """Tensors that are none: they check that what meets is on one device."""
    with FakeTensorMode():
        parameters = [
            nn.Parameter(torch.ones(shape, device=f"cuda:{number}"))
            for number in (0, 1)
            for shape in ((3, 2), (4,))
        ]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        gradients = [parameter.grad for parameter in parameters]
        norms = torch.ones(2, device="cuda:0")
        assert clip_groups(gradients, [0, 0, 0, 1], norms, norms).shape == (2,)
        assert clip_values(gradients, 0.1).shape == (4,)
        assert clip_units(parameters, [0, None, 0, None], 0.1, 1e-3).shape == ()
