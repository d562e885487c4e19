"""The masked-LM head and its loss, forward and backward: `BertForMaskedLM`'s own against ours.

Claim: with 15% labels the loss at the head takes at most 0.2 of the time and 0.05 of the peak
memory of the host's head on all positions. Both sides run interleaved in one process (time) and
each in a process of its own (memory), with the same C allocator, hidden states, labels and weights.

    python scripts/benchmarks/mlm_head.py
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from hf_tfopt.allocator import tune_allocator


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096, help="positions in the batch")
    parser.add_argument("--width", type=int, default=256, help="hidden size")
    parser.add_argument("--vocabulary", type=int, default=30522)
    parser.add_argument("--labels", type=float, default=0.15, help="share of labelled positions")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--bf16", action="store_true", help="under bf16 autocast")
    parser.add_argument("--default-allocator", action="store_true", help="leave malloc as it is")
    parser.add_argument("--memory-of", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def setting(options: argparse.Namespace) -> tuple[Any, Any, Any]:
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        num_hidden_layers=0,
        num_attention_heads=4,
    )
    model = BertForMaskedLM(config)
    hidden = torch.randn(options.tokens // 128, 128, options.width, requires_grad=True)
    ids = torch.randint(options.vocabulary, hidden.shape[:2])
    labels = ids.masked_fill(torch.rand(ids.shape) >= options.labels, -100)
    return model, hidden, labels


def host(model: Any, hidden: Any, labels: Any) -> Any:
    """As `BertForMaskedLM.forward` does it."""
    import torch

    scores = model.cls(hidden)
    return torch.nn.CrossEntropyLoss()(scores.view(-1, scores.shape[-1]), labels.view(-1))


def ours(model: Any, hidden: Any, labels: Any) -> Any:
    """What the loss at the head does between body and loss."""
    from hf_tfopt.losses import linear_cross_entropy
    from hf_tfopt.losses.reduction import divide

    flat = labels.view(-1)
    index = flat.ne(-100).nonzero().squeeze(-1)
    rows = model.cls.predictions.transform(hidden.view(-1, hidden.shape[-1])[index])
    decoder = model.cls.predictions.decoder
    term = linear_cross_entropy(rows, decoder.weight, flat[index], decoder.bias)
    return divide(term.sum, term.count)


SIDES = {"host": host, "ours": ours}


def step(side: str, options: argparse.Namespace, parts: tuple[Any, Any, Any]) -> float:
    import torch

    model, hidden, _ = parts
    model.zero_grad()
    hidden.grad = None
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
        loss = SIDES[side](*parts)
    loss.backward()
    step.loss = float(loss.detach())
    return time.perf_counter() - start


def peak_mib(reset: bool = False) -> float:
    """The process's high-water mark of resident memory (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line) / 1024


def memory(side: str, options: argparse.Namespace) -> float:
    """Peak above what the weights and hidden states take, the gradients of both included."""
    parts = setting(options)
    before = peak_mib(reset=True)
    step(side, options, parts)
    return peak_mib() - before


def measured_memory(side: str, argv: list[str]) -> float:
    command = [sys.executable, __file__, *argv, "--memory-of", side]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    argv = sys.argv[1:] if argv is None else argv
    options = parse(argv)
    if not options.default_allocator:
        tune_allocator()
    if options.memory_of:
        print(memory(options.memory_of, options))
        return {}
    parts = setting(options)
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    losses: dict[str, float] = {}
    for turn in range(options.rounds + 2):
        for side in sorted(SIDES, reverse=bool(turn % 2)):
            seconds = step(side, options, parts)
            losses[side] = step.loss
            if turn >= 2:  # two rounds warm up
                times[side].append(seconds)
    mib = {side: measured_memory(side, argv) for side in SIDES}
    ratios = [a / b for a, b in zip(times["ours"], times["host"], strict=True)]
    result = {
        "time_ratio": median(ratios),
        "memory_ratio": mib["ours"] / mib["host"],
        "milliseconds": {side: 1e3 * median(values) for side, values in times.items()},
        "peak_mib": mib,
        "loss": losses,
    }
    print(f"{'':6}{'ms':>10}{'peak MiB':>10}{'loss':>10}")
    for side in SIDES:
        row = (1e3 * median(times[side]), mib[side], losses[side])
        print(f"{side:6}{row[0]:>10.1f}{row[1]:>10.0f}{row[2]:>10.5f}")
    print(f"ours / host: time {result['time_ratio']:.3f}, memory {result['memory_ratio']:.3f}")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
