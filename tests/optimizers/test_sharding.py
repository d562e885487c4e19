from pathlib import Path

import pytest
import torch
from torch import nn

import hf_tfopt as tfo
from hf_tfopt.optimizers.sharding import check_whole, norm
from tests.processes import TwoInterpreters


@pytest.mark.invariant
def test_sharded_parameters_are_moved_as_whole_ones(two_interpreters: TwoInterpreters) -> None:
    """Every optimizer, two processes, FSDP2."""
    pytest.importorskip("schedulefree")
    program = Path(__file__).with_name("sharded.py")
    assert "equal" in two_interpreters.run(program).stdout


@pytest.mark.parametrize("shape", [(), (0,), (7,), (2**24 + 3,), (3, 2**22), (64, 33)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # fp32: a dot product of 2^20 numbers, by lanes and threads
    [(torch.float32, 1e-5), (torch.bfloat16, 1e-5), (torch.float64, 1e-12)],
)
def test_norms_are_exact_however_long_a_tensor_is(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    print("seed 0")
    torch.manual_seed(0)
    tensor = torch.rand(shape).to(dtype)
    exact = tensor.double().square().sum().sqrt()
    torch.testing.assert_close(norm(tensor).double(), exact, rtol=tolerance, atol=0)
    assert norm(tensor).dtype == torch.promote_types(dtype, torch.float32)
    if shape == (64, 33):
        torch.testing.assert_close(norm(tensor.t()).double(), exact, rtol=tolerance, atol=0)


def test_the_norm_of_complex_numbers_is_torchs() -> None:
    assert norm(torch.tensor([1, 1j])).item() == pytest.approx(2**0.5)


class FlatParameter(nn.Parameter):
    """Stands for FSDP1's."""


@pytest.mark.parametrize(
    ("name", "options"),
    [("lamb", {}), ("adafactor", {}), ("muon", {}), ("adamw", {"stable": True})],
)
def test_parameters_that_an_engine_has_joined_are_refused(name: str, options: dict) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = tfo.build_optimizer(model, name, lr=1e-3, **options)
    group = optimizer.param_groups[0]
    flat = nn.Parameter(nn.utils.parameters_to_vector(group["params"]).detach())
    flat.grad = flat.detach().clone()
    group["params"] = [flat]
    with pytest.raises(ValueError, match="an engine has joined them"):
        optimizer.step()
    with pytest.raises(ValueError, match="an engine has joined them"):
        check_whole("LAMB", {"params": [FlatParameter(flat.detach())]})
