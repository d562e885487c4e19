import pytest
import torch
from torch import nn

from hf_tfopt.optimizers import foreach
from hf_tfopt.optimizers.lion import Lion


def naive_lion(theta, m, g, lr, weight_decay, betas):
    """One step in float64: the new weight and momentum."""
    direction = (betas[0] * m + (1 - betas[0]) * g).sign()
    theta = theta - lr * weight_decay * theta - lr * direction
    return theta, betas[1] * m + (1 - betas[1]) * g


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.0, 0.5)])
def test_equals_the_reference_for_50_steps(weight_decay: float, betas: tuple[float, float]) -> None:
    print("seed 0")
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape)) for shape in ((8, 4), (5,), ())]
    twins = [(p.detach().double(), torch.zeros_like(p).double()) for p in parameters]
    options = {"lr": 0.01, "weight_decay": weight_decay, "betas": betas}
    optimizer = Lion(parameters, **options)
    for _ in range(50):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape)
        twins = [
            naive_lion(theta, m, parameter.grad.double(), **options)
            for (theta, m), parameter in zip(twins, parameters, strict=True)
        ]
        optimizer.step()
    for parameter, (theta, m) in zip(parameters, twins, strict=True):
        # a sign of a number near 0 may turn with its last bit: none does with this seed
        torch.testing.assert_close(parameter.detach().double(), theta, rtol=1e-5, atol=1e-6)
        found = optimizer.state[parameter]["exp_avg"].double()
        torch.testing.assert_close(found, m, rtol=1e-5, atol=1e-6)


def test_refuses_numbers_outside_their_range() -> None:
    for options in ({"lr": 0.0}, {"weight_decay": -1.0}, {"betas": (0.9, 1.0)}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Lion([nn.Parameter(torch.ones(2))], **{"lr": 1e-3, **options})


def test_torchs_list_operations_are_what_they_are_taken_for() -> None:
    """They are private names of torch's: if this fails, `optimizers/foreach.py` must change."""
    ones, twos = [torch.ones(2)], [torch.full((2,), 2.0)]
    foreach.foreach_add(ones, twos, alpha=-3.0)
    assert ones[0].tolist() == [-5.0, -5.0]
    foreach.foreach_mul(ones, 2.0)
    foreach.foreach_mul(ones, [torch.tensor(0.5)])
    assert ones[0].tolist() == [-5.0, -5.0]
    assert foreach.foreach_lerped(ones, twos, 0.5)[0].tolist() == [-1.5, -1.5]
    foreach.foreach_lerp(ones, twos, 1.0)
    assert ones[0].tolist() == [2.0, 2.0]
    foreach.foreach_sign(ones)
    assert ones[0].tolist() == [1.0, 1.0]
    assert foreach.foreach_norm(twos, 2, torch.float64)[0].item() == 8**0.5
    m, v, step = torch.zeros(2), torch.zeros(2), torch.ones(())
    rates = {"lr": 0.5, "beta1": 0.5, "beta2": 0.5, "weight_decay": 0.0, "eps": 0.0}
    foreach.fused_adamw(ones, twos, [m], [v], [], [step], **rates, amsgrad=False, maximize=False)
    assert (ones[0].tolist(), m.tolist(), v.tolist()) == ([0.5, 0.5], [1.0, 1.0], [2.0, 2.0])
    assert step == 1
