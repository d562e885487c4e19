from pathlib import Path

import pytest
from torch import nn

import hf_tfopt as tfo
from hf_tfopt.optimizers.sharding import check_whole
from tests.processes import TwoInterpreters


@pytest.mark.invariant
def test_sharded_parameters_are_moved_as_whole_ones(two_interpreters: TwoInterpreters) -> None:
    """Every optimizer, two processes, FSDP2."""
    pytest.importorskip("schedulefree")
    program = Path(__file__).with_name("sharded.py")
    assert "equal" in two_interpreters.run(program).stdout


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
