"""Under torchrun: FSDP2's shards give a multi-task model's own gradients. Prints "equal" if so."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from hf_tfopt.losses.reduction import combine
from hf_tfopt.objectives.gradient_balance import GradNorm, PCGrad
from hf_tfopt.objectives.multitask import Multitask, UncertaintyWeighting
from tests.invariants.cases.multitask import model, rows


def gradients(
    made: Any, objective: Multitask, batch: dict[str, Any], counts: dict[str, Any], factor: int
) -> dict[str, Any]:
    made.zero_grad()
    terms = next(objective.passes(made, made, batch))
    (combine(terms, counts, objective.weights) * factor).backward()
    return {name: parameter.grad for name, parameter in made.named_parameters()}


def main() -> None:
    dist.init_process_group("gloo")
    batch = rows(16, 3)
    own = {key: value[dist.get_rank() :: 2] for key, value in batch.items()}
    for kind in (Multitask, UncertaintyWeighting):
        objective = kind()
        whole = model().train()
        objective.bind(whole)
        whole.double()
        sharded = copy.deepcopy(whole)
        for layer in sharded.encoder.encoder.layer:
            fully_shard(layer)
        fully_shard(sharded)
        counts = objective.counts(batch)
        expected = gradients(whole, objective, batch, counts, 1)
        found = gradients(sharded, objective, own, counts, 2)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name].full_tensor(), gradient, rtol=1e-6, atol=1e-8)
    for kind in (GradNorm, PCGrad):
        objective = kind()
        whole = model().train()
        objective.bind(whole)
        fully_shard(whole)
        whole.unshard()  # as the root is after a forward pass: its weights look whole
        with pytest.raises(ValueError, match=f"{kind.__name__} needs whole gradients"):
            next(objective.passes(whole, whole, own))
    if dist.get_rank() == 0:
        print("equal")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
