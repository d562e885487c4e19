"""Under torchrun: sharded gradients are changed as whole ones are. Prints "equal" if so."""

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard

import hf_tfopt as tfo
from tests.callbacks.gradient_events import event, set_gradients
from tests.models import tiny


def by_columns(parameter: nn.Parameter) -> Shard | None:
    """Matrices cut across their rows, where that is even."""
    is_even = parameter.ndim == 2 and parameter.shape[1] % 2 == 0
    return Shard(1) if is_even else None


def interventions() -> list[Any]:
    return [
        tfo.GradientClipping("layer", {"*coder.0": 0.5, "embeddings": 1e3}),
        tfo.GradientClipping("role", 1.5),
        tfo.ClipByValue(0.02),
        tfo.AdaptiveGradientClipping(0.05),
        tfo.PercentileClipping(0),
        tfo.ZClip(z=0.1, warmup_steps=2),
        tfo.GradientNoise(0.01),
    ]


def changed(model: nn.Module, number: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The gradients of three steps after one intervention, and what it tells."""
    callback, found = interventions()[number], {}
    callback.begin(event(model))
    for step, scale in enumerate((0.01, 0.02, 0.04)):
        set_gradients(model, seed=step, scale=scale)
        if step == 1:
            model.zero_grad()  # a step that is left out
        callback.gradients(event(model, step=step))
        for name, parameter in model.named_parameters():
            gradient = parameter.grad
            if gradient is not None:
                is_sharded = hasattr(gradient, "full_tensor")
                found[f"{step}.{name}"] = gradient.full_tensor() if is_sharded else gradient.clone()
    return found, dict(callback.scalars(event(model)))


def compare(whole: nn.Module, sharded: nn.Module) -> None:
    for number in range(len(interventions())):
        expected, told = changed(whole, number)
        found, heard = changed(sharded, number)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            # fp32 sums of squares in another order
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
        assert heard.keys() == told.keys()
        for key, value in told.items():
            assert abs(heard[key] - value) <= 1e-5 * abs(value), (number, key, heard[key], value)


def main() -> None:
    dist.init_process_group("gloo")
    for name, placement in (("gpt2", None), ("bert", by_columns)):
        torch.manual_seed(0)
        whole = tiny(name)
        sharded = copy.deepcopy(whole)
        for block in sharded.modules():
            if type(block).__name__ in ("BertLayer", "GPT2Block"):
                fully_shard(block, shard_placement_fn=placement)
        fully_shard(sharded, shard_placement_fn=placement)
        compare(whole, sharded)
    if dist.get_rank() == 0:
        print("equal")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
