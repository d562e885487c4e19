"""One step of LAMB on BERT-base's parameters, against torch's fused AdamW and other LAMBs.

Claim: at most 1.8 times the fused AdamW with a C++ compiler, 2.2 times without, and at most
half of the best peer.
Sides take turns in one process, each with parameters and state of its own and the same gradients,
with the C allocator set alike; the ratio is that of the median steps. Peers that are not installed
are left out (`pip install timm pytorch_optimizer`).

    python scripts/benchmarks/lamb.py
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from hf_tfopt.allocator import tune_allocator

LR, WEIGHT_DECAY = 1e-3, 0.01


def shapes(num_layers: int) -> list[tuple[int, ...]]:
    """BERT-base's parameters, of so many layers."""
    import torch
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        model = BertModel(BertConfig(num_hidden_layers=num_layers))
    return [tuple(parameter.shape) for parameter in model.parameters()]


def groups(parameters: list[Any]) -> list[dict[str, Any]]:
    """Matrices and tables with decay, vectors without; all are adapted, as the peers do it."""
    decayed = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim < 2]
    return [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]


def sides() -> dict[str, Callable[[list[dict[str, Any]]], Any]]:
    from unittest.mock import patch

    import torch

    import hf_tfopt as tfo
    from hf_tfopt.optimizers import kernels

    class _WithoutCompiler(tfo.Lamb):
        def step(self, closure: Any = None) -> Any:
            with patch.object(kernels, "library", lambda name: None):
                return super().step(closure)

    found: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
        "AdamW(fused=True)": lambda groups: torch.optim.AdamW(groups, lr=LR, fused=True),
        "ours": lambda groups: tfo.Lamb(groups, lr=LR),
        "ours, no compiler": lambda groups: _WithoutCompiler(groups, lr=LR),
    }
    try:
        from timm.optim.lamb import Lamb as TimmLamb

        found["timm"] = lambda groups: TimmLamb(groups, lr=LR, max_grad_norm=None)
    except ImportError as error:
        print("without timm:", error)
    try:
        from pytorch_optimizer import Lamb as OtherLamb

        found["pytorch_optimizer"] = lambda groups: OtherLamb(groups, lr=LR)
    except ImportError as error:
        print("without pytorch_optimizer:", error)
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", type=int, default=12, help="of BERT-base")
    options = parser.parse_args(argv)
    tune_allocator()
    import torch

    torch.manual_seed(0)
    gradients = [0.01 * torch.randn(shape) for shape in shapes(options.layers)]
    weights = [0.02 * torch.randn_like(gradient) for gradient in gradients]
    optimizers = {}
    for name, build in sides().items():
        parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizers[name] = build(groups(parameters))
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for turn in range(options.rounds + 2):  # two to warm up
        for name, optimizer in optimizers.items():
            begin = time.perf_counter()
            optimizer.step()
            if turn > 1:
                seconds[name].append(time.perf_counter() - begin)
    medians = {name: median(values) for name, values in seconds.items()}
    num = sum(gradient.numel() for gradient in gradients)
    print(f"{num / 1e6:.0f}M parameters, fp32, {torch.get_num_threads()} threads")
    for name, value in medians.items():
        ratio = value / medians["AdamW(fused=True)"]
        print(f"{name:20}{1e3 * value:8.1f} ms   {ratio:.2f} of the fused AdamW")
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
