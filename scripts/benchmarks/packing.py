"""A step of an encoder over the same examples: padded, packed under a mask, packed and unpadded.

BERT-mini's sizes, forward and backward, no head. "padded": batches of examples in random order, as
a DataLoader makes them; "masked": the examples packed into full rows and kept apart by a 4-D mask
(sdpa); "unpadded": the same rows under our attention, without a mask. All sides run interleaved in
one process, and each computes the same sum over the same tokens (column loss).

    python scripts/benchmarks/packing.py --help
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from hf_tfopt.allocator import tune_allocator

SIDES = ("padded", "masked", "unpadded")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16, help="examples in a padded batch")
    parser.add_argument("--median", type=float, default=100, help="of the lognormal lengths")
    parser.add_argument("--sigma", type=float, default=0.9, help="of the lognormal lengths")
    parser.add_argument("--longest", type=int, default=512, help="cap of lengths; width of a row")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256, help="hidden size")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["fp32", "bf16", "both"], default="both")
    parser.add_argument("--default-allocator", action="store_true", help="leave malloc as it is")
    return parser.parse_args(argv)


def encoder(options: argparse.Namespace) -> Any:
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=4 * options.width,
        max_position_embeddings=options.longest,
        hidden_dropout_prob=options.dropout,
        attention_probs_dropout_prob=options.dropout,
    )
    return BertModel(config, add_pooling_layer=False).train()


def token_lists(options: argparse.Namespace) -> list[Any]:
    import numpy as np

    random = np.random.default_rng(0)
    draws = random.lognormal(np.log(options.median), options.sigma, options.examples)
    lengths = np.clip(draws.astype(int), 4, options.longest)
    return [random.integers(1000, 30000, length) for length in lengths]


def padded_batches(examples: list[Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    from torch import ones
    from torch import tensor as made
    from torch.nn.utils.rnn import pad_sequence

    batches: list[dict[str, Any]] = []
    for first in range(0, len(examples), options.batch):
        ids = [made(example) for example in examples[first : first + options.batch]]
        mask = pad_sequence([ones(len(row), dtype=row.dtype) for row in ids], batch_first=True)
        batches.append({"input_ids": pad_sequence(ids, batch_first=True), "attention_mask": mask})
    return batches


def packed_batch(examples: list[Any], options: argparse.Namespace, implementation: str) -> Any:
    import datasets
    import numpy as np
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from hf_tfopt.data.packing import attention_inputs, pack, segment_lengths

    rows = pack(datasets.Dataset.from_dict({"input_ids": examples}), options.longest)
    ids, positions = (
        pad_sequence([torch.tensor(row) for row in rows[name]], batch_first=True)
        for name in ("input_ids", "position_ids")
    )
    lengths = [segment_lengths(np.array(row)) for row in rows["position_ids"]]
    apart = attention_inputs(lengths, ids.shape[1], implementation)
    return [{"input_ids": ids, "position_ids": positions, **apart}]


def timed_step(
    model: Any, implementation: str, batches: list[dict[str, Any]], bf16: bool
) -> tuple[float, float]:
    """Seconds, and the sum over all tokens; padding has id 0."""
    import torch

    model.set_attn_implementation(implementation)
    model.zero_grad()
    total = 0.0
    start = time.perf_counter()
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            hidden = model(**batch).last_hidden_state
        real = batch["input_ids"].flatten().nonzero().squeeze(1)
        loss = hidden.flatten(0, 1)[real].float().tanh()[:, ::2].sum()  # any sum over tokens
        loss.backward()
        total += float(loss.detach())
    return time.perf_counter() - start, total


def measure(step: Callable[[str], tuple[float, float]], rounds: int) -> dict[str, dict[str, Any]]:
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    losses: dict[str, float] = {}
    for turn in range(rounds + 1):
        for side in sorted(SIDES, reverse=bool(turn % 2)):
            spent, losses[side] = step(side)
            if turn:  # the first round warms up
                seconds[side].append(spent)
    medians = {side: median(values) for side, values in seconds.items()}
    return {
        side: {
            "milliseconds": 1e3 * medians[side],
            "ratio": medians[side] / medians["padded"],
            "loss": losses[side],
        }
        for side in SIDES
    }


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = parse(argv)
    if not options.default_allocator:
        tune_allocator()

    from hf_tfopt.surgery.attention import unpadded_attention

    model, examples = unpadded_attention(encoder(options)), token_lists(options)
    tokens = sum(map(len, examples))
    batches = {
        "padded": padded_batches(examples, options),
        "masked": packed_batch(examples, options, "sdpa"),
        "unpadded": packed_batch(examples, options, "unpadded"),
    }
    names = {"padded": "sdpa", "masked": "sdpa", "unpadded": "unpadded"}
    result: dict[str, Any] = {"tokens": tokens, "examples": len(examples)}
    for precision in ["fp32", "bf16"] if options.precision == "both" else [options.precision]:
        found = measure(
            lambda side, bf16=precision == "bf16": timed_step(
                model, names[side], batches[side], bf16
            ),
            options.rounds,
        )
        print(
            f"{precision:9}{'ms':>9}{'/ padded':>10}{'tokens/s':>10}{'positions':>11}{'loss':>12}"
        )
        for side, numbers in found.items():
            positions = sum(batch["input_ids"].numel() for batch in batches[side])
            rate = tokens / numbers["milliseconds"] * 1e3
            print(
                f"{side:9}{numbers['milliseconds']:>11.0f}{numbers['ratio']:>11.3f}{rate:>11.0f}"
                f"{positions:>11}{numbers['loss']:>11.2f}"
            )
        result[precision] = found
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
