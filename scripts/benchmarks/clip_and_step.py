"""Clipping and a step of AdamW on BERT-base's gradients: ours against the host's way.

Claim: clipping by a global norm that is rarely reached, and a step of torch's fused AdamW, take at
most 1.2 times the step alone. The host's way (`accelerator.clip_grad_norm_`) is
`torch.nn.utils.clip_grad_norm_`. Sides take turns in one process on the same gradients, with the C
allocator set alike; before each the gradients are written anew, from the last parameter to the
first, as by a backward pass. Ratios are those of medians. "clipped" has a norm that is reached
every time.

    python scripts/benchmarks/clip_and_step.py
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from hf_tfopt.allocator import tune_allocator

LARGE, SMALL = 1e6, 1e-3  # norms that no gradient here reaches, and that each one does


def parameters(num_layers: int) -> list[Any]:
    """BERT-base's, of so many layers, with gradients."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    with torch.device("meta"):
        model = BertModel(BertConfig(num_hidden_layers=num_layers))
    found = [torch.nn.Parameter(0.02 * torch.randn(p.shape)) for p in model.parameters()]
    for parameter in found:
        parameter.grad = 0.01 * torch.randn_like(parameter)
    return found


def sides(trained: list[Any]) -> dict[str, Callable[[], Any]]:
    import torch

    import hf_tfopt as tfo

    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    torchs = torch.nn.utils.clip_grad_norm_
    return {
        "step alone": optimizer.step,
        "torch, then the step": lambda: (torchs(trained, LARGE), optimizer.step()),
        "ours, then the step": lambda: (tfo.clip_grad_norm(trained, LARGE), optimizer.step()),
        "torch, clipped": lambda: (torchs(trained, SMALL), optimizer.step()),
        "ours, clipped": lambda: (tfo.clip_grad_norm(trained, SMALL), optimizer.step()),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--layers", type=int, default=12, help="of BERT-base")
    options = parser.parse_args(argv)
    tune_allocator()
    import torch

    trained = parameters(options.layers)
    everyone = sides(trained)
    seconds: dict[str, list[float]] = {name: [] for name in everyone}
    kept = [parameter.grad.clone() for parameter in trained]
    for turn in range(options.rounds + 2):  # two to warm up
        for name, side in everyone.items():
            for parameter, gradient in reversed(list(zip(trained, kept, strict=True))):
                parameter.grad.copy_(gradient)
            begin = time.perf_counter()
            side()
            if turn > 1:
                seconds[name].append(time.perf_counter() - begin)
    medians = {name: median(values) for name, values in seconds.items()}
    num = sum(parameter.numel() for parameter in trained)
    print(f"{num / 1e6:.0f}M parameters, fp32, {torch.get_num_threads()} threads")
    for name, value in medians.items():
        print(f"{name:22}{1e3 * value:8.1f} ms   {value / medians['step alone']:.2f}")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
