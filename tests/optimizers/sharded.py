"""Under torchrun: sharded tensors are moved as whole ones are. Prints "equal" if so."""

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import hf_tfopt as tfo
from hf_tfopt.optimizers import lamb


def train(model: nn.Module, optimizer: Any) -> None:
    if hasattr(optimizer, "train"):
        optimizer.train()
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(8, 6, generator=generator)  # the same on both: gradients are averages
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


def compare(name: str, **options: Any) -> list[torch.optim.Optimizer]:
    """The optimizers of a whole model and of a sharded one, after four steps of both."""
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 3))  # 7 and 3: uneven
    sharded = copy.deepcopy(whole)
    fully_shard(sharded)
    options |= {"lr": 0.05, "weight_decay": 0.1}
    optimizers = [tfo.build_optimizer(model, name, **options) for model in (whole, sharded)]
    for model, optimizer in zip((whole, sharded), optimizers, strict=True):
        train(model, optimizer)
    for found, expected in zip(sharded.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(found.full_tensor(), expected, rtol=1e-5, atol=1e-7)
    return optimizers


# bitsandbytes takes no sharded tensors, and says so itself; torchao is tested by its own project
CASES: list[tuple[str, dict[str, Any]]] = [
    ("adafactor", {}),
    ("adafactor", {"relative_step": True, "beta1": 0.9}),
    ("adam", {}),
    ("adamw", {}),
    ("adamw", {"cautious": True, "stable": True}),
    ("lion", {}),
    ("muon", {}),
    ("schedule_free", {}),
    ("sgd", {}),
]


def main() -> None:
    dist.init_process_group("gloo")
    compare("lamb")  # all together, as small tensors are
    lamb.SMALLEST_ALONE = 0
    ratios = [optimizer.trust_ratios() for optimizer in compare("lamb")]
    assert ratios[0].keys() == ratios[1].keys()
    for name, ratio in ratios[0].items():
        assert abs(ratios[1][name] - ratio) < 1e-5 * ratio, name
    assert any(ratio != 1 for ratio in ratios[0].values())
    for name, options in CASES:
        compare(name, **options)
    if dist.get_rank() == 0:
        print("equal")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
