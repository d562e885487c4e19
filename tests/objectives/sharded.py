"""Under torchrun: FSDP2's shards give the gradients of a whole model. Prints "equal" if so."""

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from hf_tfopt.losses.reduction import combine
from hf_tfopt.objectives.adversarial import FGM, PGD, FreeLB
from hf_tfopt.objectives.base import Objective
from hf_tfopt.objectives.consistency import RDrop
from hf_tfopt.objectives.language_modeling import LanguageModeling
from hf_tfopt.objectives.virtual_adversarial import SMART, VirtualAdversarial
from tests.models import tiny
from tests.objectives.adversarial_models import tokens

KINDS = (FGM, PGD, FreeLB, RDrop, VirtualAdversarial, SMART)


def gradients(model: Any, objective: Objective, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the last pass gradients are reduced; before, as the trainer has it, they are not."""
    model.zero_grad()  # now: after a pass without gradients the root shows its gathered weights
    objective.prepare(model, batch)
    counts = objective.counts(batch)
    passes = objective.passes(model, model, batch)
    for number in range(1, objective.num_passes + 1):
        if hasattr(model, "set_requires_gradient_sync"):
            model.set_requires_gradient_sync(number == objective.num_passes)
        combine(next(passes), counts, objective.weights).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def main() -> None:
    dist.init_process_group("gloo")
    for name in ("bert", "t5"):
        whole = tiny(name).double().train()
        sharded = copy.deepcopy(whole)
        for block in sharded.modules():
            if type(block).__name__ in ("BertLayer", "T5Block"):
                fully_shard(block)
        fully_shard(sharded)
        for kind in KINDS:
            batch = tokens()  # the same on both: gradients are averages
            expected = gradients(whole, kind(LanguageModeling()), batch)
            found = gradients(sharded, kind(LanguageModeling()), batch)
            assert found.keys() == expected.keys(), (name, kind)
            for parameter, gradient in expected.items():
                torch.testing.assert_close(
                    found[parameter].full_tensor(), gradient, rtol=1e-6, atol=1e-8
                )
    if dist.get_rank() == 0:
        print("equal")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
