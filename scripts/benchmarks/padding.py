"""What padding costs: random batches, the host's `group_by_length`, token budgets, packed rows.

Claim: with `tfo.TokenBudget` at most 3% of the positions are padding on SST-2, at 1024, 2048 and
4096 tokens a batch; the other ways beside it. Then the tokens per second, real ones alone, of a
BERT-mini's forward and backward pass (no head), all four with about as many real tokens in a batch:
"random" and "group_by_length" in batches of so many rows; "token budget" with the `max_tokens` that
gives as many batches; "packed" in full rows (`tfo.pack`) under our attention without a mask. The
sides take turns of a few batches each, in an order that changes, on other batches every time. A
rate is the median over the turns, the ratio that of the medians.

    python scripts/benchmarks/padding.py --data FOLDER    # sst2/train.tsv, wikitext2/*.txt: by line
    python scripts/benchmarks/padding.py                  # lengths drawn like theirs
"""

# ruff: noqa: E402 - the allocator is set before numpy and torch are imported
from hf_tfopt.allocator import tune_allocator

tune_allocator()

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import datasets
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertModel
from transformers.trainer_pt_utils import LengthGroupedSampler

from hf_tfopt.data.batch_plan import TrainingRun, in_rounds
from hf_tfopt.data.packing import attention_inputs, pack, segment_lengths
from hf_tfopt.data.token_budget import TokenBudget
from hf_tfopt.data.tokenizer import train_tokenizer
from hf_tfopt.surgery.attention import unpadded_attention

SIDES = ("random", "group_by_length", "token budget", "packed")
NUM_IDS, LONGEST = 30522, 512
Batch = dict[str, Any]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, help="a folder with sst2/train.tsv and wikitext2/*.txt"
    )
    parser.add_argument("--rows", type=int, default=32, help="of a random batch")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--batches", type=int, default=4, help="of a side in a turn")
    parser.add_argument("--examples", type=int, help="of each corpus; none: all")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256, help="hidden size")
    return parser.parse_args(argv)


def texts(folder: Path) -> dict[str, list[str]]:
    """The sentences of SST-2 and the lines of WikiText-2."""
    sentences = (folder / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()
    articles = [file.read_text(encoding="utf-8") for file in sorted(folder.glob("wikitext2/*.txt"))]
    lines = [line for text in articles for line in text.splitlines() if line.strip()]
    return {"SST-2": [line.rsplit("\t", 1)[0] for line in sentences], "WikiText-2": lines}


def all_lengths(options: argparse.Namespace) -> dict[str, Any]:
    """The tokens of each example, by corpus."""
    if options.data is None:
        random = np.random.default_rng(0)
        sentences = np.clip(random.gamma(4.9, 4.75, 6920).round(), 3, 67)
        lines = np.where(random.random(2500) < 0.35, 8, random.lognormal(4.8, 0.7, 2500))
        found = {"like SST-2": sentences, "like WikiText-2": np.clip(lines.round(), 3, LONGEST)}
    else:
        found = {}
        for name, examples in texts(options.data).items():
            tokenizer = train_tokenizer(examples)
            ids = tokenizer(examples, truncation=True, max_length=LONGEST)["input_ids"]
            found[name] = np.array([len(row) for row in ids])
    return {name: lengths[: options.examples].astype(np.int64) for name, lengths in found.items()}


def random_batches(lengths: Any, rows: int, epoch: int) -> list[Any]:
    order = np.random.default_rng(epoch).permutation(len(lengths))
    return in_rounds(order, TrainingRun(lengths, rows))


def grouped_batches(lengths: Any, rows: int, epoch: int) -> list[Any]:
    generator = torch.Generator().manual_seed(epoch)
    sampler = LengthGroupedSampler(rows, lengths=lengths.tolist(), generator=generator)
    return in_rounds(np.array(list(sampler)), TrainingRun(lengths, rows))


def budget_plan(lengths: Any, max_tokens: int) -> TokenBudget:
    plan = TokenBudget(max_tokens, lengths)
    plan.prepare(TrainingRun(lengths, 1))
    return plan


def fitted_plan(lengths: Any, num_batches: int) -> TokenBudget:
    """The smallest budget that makes so many batches or less."""
    low, high = int(lengths.max()), int(lengths.sum())
    while low < high:
        middle = (low + high) // 2
        if len(budget_plan(lengths, middle).batches(0)) <= num_batches:
            high = middle
        else:
            low = middle + 1
    return budget_plan(lengths, high)


def padding_of(batches: Sequence[Any], lengths: Any) -> float:
    positions = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return 1 - float(lengths.sum()) / positions


def padding_by_budget(lengths: Any) -> dict[int, dict[str, float]]:
    """The share of padding, the mean of five epochs, by tokens of a batch."""
    found: dict[int, dict[str, float]] = {}
    for max_tokens in (1024, 2048, 4096):
        plan = budget_plan(lengths, max_tokens)
        rows = max(1, round(len(lengths) / len(plan.batches(0))))
        ways: dict[str, Callable[[int], Sequence[Any]]] = {
            "random": lambda epoch, rows=rows: random_batches(lengths, rows, epoch),
            "group_by_length": lambda epoch, rows=rows: grouped_batches(lengths, rows, epoch),
            "token budget": plan.batches,
        }
        found[max_tokens] = {
            name: float(np.mean([padding_of(way(epoch), lengths) for epoch in range(5)]))
            for name, way in ways.items()
        }
    return found


def padded(examples: list[torch.Tensor]) -> Batch:
    masks = [torch.ones_like(ids) for ids in examples]
    return {
        "input_ids": pad_sequence(examples, batch_first=True),
        "attention_mask": pad_sequence(masks, batch_first=True),
    }


def packed(rows: datasets.Dataset, numbers: Sequence[int]) -> Batch:
    chosen = rows[list(numbers)]
    lengths = [segment_lengths(np.array(row)) for row in chosen["position_ids"]]
    ids, positions = (
        pad_sequence([torch.tensor(row) for row in chosen[name]], batch_first=True)
        for name in ("input_ids", "position_ids")
    )
    apart = attention_inputs(lengths, ids.shape[1], "unpadded")
    return {"input_ids": ids, "position_ids": positions, **apart}


def endless(epoch_of: Callable[[int], Sequence[Any]], make: Callable[[Any], Batch]) -> Any:
    """Batches of one epoch after the other, drawn from it in random order."""

    def feed() -> Iterator[Batch]:
        epoch = 0
        while True:
            batches = epoch_of(epoch)
            # the host's come from long to short: a few in a row say little of an epoch
            order = np.random.default_rng(epoch).permutation(len(batches))
            yield from (make(batches[number]) for number in order)
            epoch += 1

    return feed()


def feeds(lengths: Any, rows: int) -> dict[str, Iterator[Batch]]:
    """Of each side the batches, with about as many real tokens in each."""
    random = np.random.default_rng(0)
    examples = [torch.tensor(random.integers(1000, NUM_IDS, n)) for n in lengths]
    plan = fitted_plan(lengths, len(random_batches(lengths, rows, 0)))
    ids = datasets.Dataset.from_dict({"input_ids": [row.numpy() for row in examples]})
    capacity = max(128, int(lengths.max()))
    full = pack(ids, capacity)
    packed_rows = max(1, round(rows * float(lengths.mean()) / capacity))

    def made(batch: Any) -> Batch:
        return padded([examples[row] for row in batch])

    return {
        "random": endless(lambda epoch: random_batches(lengths, rows, epoch), made),
        "group_by_length": endless(lambda epoch: grouped_batches(lengths, rows, epoch), made),
        "token budget": endless(plan.batches, made),
        "packed": endless(
            lambda epoch: random_batches(np.arange(len(full)), packed_rows, epoch),
            lambda batch: packed(full, batch.tolist()),
        ),
    }


def turn(model: Any, side: str, feed: Iterator[Batch], num_batches: int) -> tuple[float, int, int]:
    """Seconds, real tokens and positions of a few batches."""
    batches = [next(feed) for _ in range(num_batches)]
    model.set_attn_implementation("unpadded" if side == "packed" else "sdpa")
    begun = time.perf_counter()
    for batch in batches:
        model.zero_grad()
        states = model(**batch).last_hidden_state
        states[batch["input_ids"] != 0].square().sum().backward()  # ids begin at 1000
    seconds = time.perf_counter() - begun
    ids = [batch["input_ids"] for batch in batches]
    return seconds, sum(int((each != 0).sum()) for each in ids), sum(each.numel() for each in ids)


def measure(lengths: Any, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=NUM_IDS,
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, options.width // 64),
        intermediate_size=4 * options.width,
        max_position_embeddings=LONGEST,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = unpadded_attention(BertModel(config, add_pooling_layer=False).train())
    sides = feeds(lengths, options.rows)
    turns: dict[str, list[tuple[float, int, int]]] = {side: [] for side in SIDES}
    for number in range(options.turns + 1):
        shift = number % len(SIDES)
        for side in SIDES[shift:] + SIDES[:shift]:
            spent = turn(model, side, sides[side], options.batches)
            if number:  # the first one warms up
                turns[side].append(spent)
    rates = {side: [tokens / s for s, tokens, _ in found] for side, found in turns.items()}
    result: dict[str, dict[str, float]] = {}
    for side, found in turns.items():
        tokens, positions = sum(t for _, t, _ in found), sum(p for _, _, p in found)
        result[side] = {
            "padding": 1 - tokens / positions,
            "tokens_per_batch": tokens / len(found) / options.batches,
            "milliseconds": 1e3 * median(s for s, _, _ in found) / options.batches,
            "tokens_per_second": median(rates[side]),
            "ratio": median(rates[side]) / median(rates["random"]),
        }
    return result


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = parse(argv)
    datasets.disable_progress_bars()
    result: dict[str, Any] = {}
    for corpus, lengths in all_lengths(options).items():
        print(f"{corpus}: {len(lengths)} examples, {lengths.mean():.1f} tokens, {lengths.max()}")
        shares = padding_by_budget(lengths)
        for max_tokens, found in shares.items():
            told = ", ".join(f"{name} {share:.1%}" for name, share in found.items())
            print(f"  padding at {max_tokens} tokens: {told}")
        timed = measure(lengths, options)
        print(f"  {'':16}{'padding':>9}{'tokens':>8}{'ms':>8}{'tokens/s':>10}{'/ random':>10}")
        for side, row in timed.items():
            print(
                f"  {side:16}{row['padding']:>9.1%}{row['tokens_per_batch']:>8.0f}"
                f"{row['milliseconds']:>8.1f}{row['tokens_per_second']:>10.0f}{row['ratio']:>10.2f}"
            )
        result[corpus] = {"padding": shares, "timed": timed}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
