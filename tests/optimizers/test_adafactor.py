import math
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import hf_tfopt as tfo
from hf_tfopt.optimizers.adafactor import Adafactor
from tests.references.adafactor import NaiveAdafactor

SHAPES = ((8, 5), (3, 6, 4), (5,), (), (1, 7))


def tensors(seed: int = 0) -> list[nn.Parameter]:
    print(f"seed {seed}")
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape) * 0.3) for shape in SHAPES]


def set_gradients(parameters: list[nn.Parameter], step: int) -> None:
    """Rows of very different sizes, a row that is 0, and sizes that change with the step."""
    for index, parameter in enumerate(parameters):
        generator = torch.Generator().manual_seed(100 * step + index)
        gradient = torch.randn(parameter.shape, generator=generator) * (1 + step % 3)
        if parameter.ndim:
            sizes = torch.logspace(-4, 1, parameter.shape[-1])
            gradient = gradient * sizes
        if parameter.ndim and len(parameter) > 1:
            gradient[0] = 0
        parameter.grad = gradient


def run(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, num_steps: int) -> None:
    for step in range(num_steps):
        set_gradients(parameters, step)
        optimizer.step()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"relative_step": True, "lr": 1.0},
    {"relative_step": True, "warmup_init": True, "lr": 3.0, "weight_decay": 0.1},
    {"scale_parameter": False, "weight_decay": 0.1},
    {"beta1": 0.9, "weight_decay": 0.1},
    {"factored": False},
    {"clip_threshold": 0.5, "decay_rate": 0.5, "eps": [1e-8, 0.5]},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_reference_for_50_steps(options: dict[str, Any]) -> None:
    parameters = tensors()
    options = {"lr": 0.02, **options}
    twins = [NaiveAdafactor(parameter.detach(), **options) for parameter in parameters]
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = Adafactor(parameters, **options)
    for step in range(50):
        set_gradients(parameters, step)
        for parameter, twin in zip(parameters, twins, strict=True):
            twin.step(parameter.grad)
        optimizer.step()
    for parameter, twin, start in zip(parameters, twins, before, strict=True):
        # 50 steps of fp32, each with about ten roundings of 6e-8 of an update
        torch.testing.assert_close(parameter.detach().double(), twin.theta, rtol=1e-5, atol=1e-7)
        assert not parameter.detach().equal(start)


HOSTS: list[dict[str, Any]] = [
    {"relative_step": True, "scale_parameter": True},
    {"relative_step": True, "scale_parameter": False, "weight_decay": 0.1},
    {"relative_step": True, "warmup_init": True, "beta1": 0.9},
    {"relative_step": False, "scale_parameter": True, "lr": 0.02, "clip_threshold": 2.0},
    {"relative_step": False, "scale_parameter": False, "lr": 0.02, "weight_decay": 0.1},
]


@pytest.mark.parametrize("options", HOSTS, ids=str)
def test_equals_the_hosts_where_both_say_the_same(options: dict[str, Any]) -> None:
    """The host's has no lr beside a relative step, and decays by RMS(θ) times as much."""
    ours, theirs = tensors(), tensors()
    run(ours, Adafactor(ours, **{"lr": 1.0, **options}), 50)
    run(theirs, transformers.optimization.Adafactor(theirs, **options), 50)
    for found, expected in zip(ours, theirs, strict=True):
        # fp32 on both sides, as above
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_torchs_while_its_rate_is_the_lr(weight_decay: float) -> None:
    """torch's rate is min(lr, 1/√t), and its ε₁² a limit of V, not added to g²."""
    ours, theirs = tensors(), tensors()
    run(ours, Adafactor(ours, lr=0.02, scale_parameter=True, weight_decay=weight_decay), 50)
    reference = torch.optim.Adafactor(
        theirs, lr=0.02, weight_decay=weight_decay, eps=(1e-15, 1e-3), d=1.0
    )
    run(theirs, reference, 50)
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_papers_schedule_at_lr_1() -> None:
    """A first update has RMS 1, so that a step moves by ρ times the RMS of the weights."""
    parameter = nn.Parameter(torch.full((4,), 2.0))
    optimizer = Adafactor([parameter], lr=1.0, scale_parameter=True, relative_step=True)
    for step in (1, 2):
        before = parameter.detach().clone()
        parameter.grad = torch.full((4,), 0.7)
        optimizer.step()
        moved = (before - parameter.detach()) / before
        assert moved.tolist() == pytest.approx([0.01] * 4, rel=1e-4), step
    optimizer.state[parameter]["step"].fill_(40_000 - 1)
    before = parameter.detach().clone()
    optimizer.step()
    moved = (before - parameter.detach()) / before
    assert moved.tolist() == pytest.approx([1 / math.sqrt(40_000)] * 4, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_of_a_matrix_is_a_row_and_a_column_in_fp32(dtype: torch.dtype) -> None:
    shapes = ((300, 200), (4, 30, 20), (50,))
    parameters = [nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in shapes]
    numbers: dict[tuple[bool, float], int] = {}
    for factored in (True, False):
        for beta1 in (0.0, 0.9):
            optimizer = Adafactor(parameters, lr=1e-3, factored=factored, beta1=beta1)
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            tensors = [v for state in optimizer.state.values() for v in state.values()]
            assert {tensor.dtype for tensor in tensors} == {torch.float32}
            numbers[factored, beta1] = sum(tensor.numel() for tensor in tensors)
    num_weights = 300 * 200 + 4 * 30 * 20 + 50
    assert numbers == {
        (True, 0.0): 300 + 200 + 4 * (30 + 20) + 50 + 3,
        (True, 0.9): 300 + 200 + 4 * (30 + 20) + 50 + 3 + num_weights,
        (False, 0.0): num_weights + 3,
        (False, 0.9): 2 * num_weights + 3,
    }


def test_gradients_stay_as_they_were_and_zeros_do_no_harm() -> None:
    parameters = tensors()
    optimizer = Adafactor(parameters, lr=0.02)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer.step()
    assert all(p.detach().equal(b) for p, b in zip(parameters, before, strict=True))
    set_gradients(parameters, 1)
    gradients = [parameter.grad.clone() for parameter in parameters]
    optimizer.step()
    assert all(p.grad.equal(g) for p, g in zip(parameters, gradients, strict=True))
    assert all(parameter.isfinite().all() for parameter in parameters)


def test_parameters_that_an_engine_has_joined_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = tfo.build_optimizer(model, "adafactor", lr=1e-3)
    flat = nn.Parameter(torch.ones(32))  # as ZeRO puts one in the place of a group's parameters
    flat.grad = torch.ones(32)
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(ValueError, match="an engine has joined them"):
        optimizer.step()


def test_a_schedule_multiplies_the_relative_step() -> None:
    fast, slow = tensors(), tensors()
    for parameters, lr in ((fast, 1.0), (slow, 0.5)):
        set_gradients(parameters, 0)
        Adafactor(parameters, lr=lr, relative_step=True).step()
    for a, b, start in zip(fast, slow, tensors(), strict=True):
        # differences of weights of about 0.3, each rounded by 3e-8
        torch.testing.assert_close((a - start) / 2, b - start, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0}, "lr must be a number above 0"),
        ({"weight_decay": -1}, "weight_decay must be"),
        ({"warmup_init": True}, "warmup_init needs relative_step=True"),
        ({"clip_threshold": 0}, "clip_threshold must be a number above 0"),
        ({"decay_rate": -0.8}, "decay_rate must be a number above 0, got -0.8"),
        ({"beta1": 1.0}, "beta1 must be at least 0 and below 1"),
        ({"eps": (1e-30,)}, "eps must be two numbers"),
        ({"eps": (0.0, 1e-3)}, r"eps\[0\] must be a number above 0"),
    ],
)
def test_mistakes_are_refused_before_there_is_a_model(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        tfo.optimizer("adafactor", **{"lr": 1e-3, **options})
