"""All monitors at once."""

from pathlib import Path

import pytest
import torch

import hf_tfopt as tfo
from hf_tfopt.callbacks.base import Monitor
from tests.callbacks.runs import num_hooks, trainer_with, weights_of

# It refuses trainings with one micro-batch.
NOT_FOR_ALL = {"noise_scale"}


def test_they_are_all_that_there_are() -> None:
    kinds = {
        kind for name in tfo.CALLBACKS if name not in NOT_FOR_ALL for kind in [tfo.CALLBACKS[name]]
    }
    expected = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Monitor)}
    assert {type(monitor) for monitor in tfo.monitors()} == expected
    assert {getattr(monitor, "every", None) for monitor in tfo.monitors(7)} >= {7}


@pytest.mark.invariant
@pytest.mark.parametrize("how", ["tfopt", "attach"])
def test_all_together_change_nothing(how: str, tmp_path: Path) -> None:
    """Weights, losses and random state bit-equal, and no hook left, in steps measured or not."""
    found = []
    for callbacks in ([], tfo.monitors(), tfo.monitors(every=2)):
        torch.manual_seed(3)
        trainer = trainer_with(tmp_path, callbacks, how, max_grad_norm=0.5)
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
        before = num_hooks(trainer.model)
        trainer.train()
        assert num_hooks(trainer.model) == before
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found.append((weights_of(trainer.model), losses, torch.get_rng_state()))
    for weights, losses, state in found[1:]:
        assert torch.equal(weights, found[0][0])
        assert losses == found[0][1]
        assert torch.equal(state, found[0][2])
