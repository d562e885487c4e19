"""Tokens per second of masked-language-model batches: the stock Trainer's collator against ours.

Each side runs through its own `Trainer.get_train_dataloader()`: stock is a `datasets.Dataset` with
`DataCollatorForLanguageModeling`, ours is `ArrowRows` of the same dataset with `MaskedLMCollator`.
Rounds are interleaved, the ratio is that of the median batches; the C allocator is set alike for
both. Spans have no stock form: they are compared with stock masking of tokens. Packed rows (for
"unpadded" attention) are compared with stock padded batches of the same examples; of both, real
tokens are counted. Stock masking of whole words takes rows of one length only.

Both make their batches in the training's process. There ours fills a batch with torch's threads;
in a DataLoader's worker, which has one, it is as with `--threads 1`.

The floor is what numpy needs for 64 rows of 512 tokens when nothing is chosen and no loader is
around it, on one thread: `np.concatenate` of the rows' slices as int64, and `np.full` for labels
and mask. The floor of masking adds one random byte for each token and two `np.where`.
Needs no network, and a minute.

    python scripts/benchmarks/collator.py
"""

# ruff: noqa: E402 - the allocator is set before numpy and torch are imported
from hf_tfopt.allocator import tune_allocator

tune_allocator()

import argparse
import json
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from itertools import cycle
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from hf_tfopt.data.collators import MaskedLMCollator
from hf_tfopt.data.masking_rule import UNITS
from hf_tfopt.data.packing import pack
from hf_tfopt.data.rows import ArrowRows
from hf_tfopt.surgery.attention import unpadded_attention

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NUM_IDS, WIDTH, BATCH = 30522, 512, 64
STOCK_BATCHES, OUR_BATCHES = 6, 48  # timed per round
CONTINUED = 0.25  # of the vocabulary and of the text: pieces inside a word


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer with BERT's number of invented words."""
    first = round(NUM_IDS * (1 - CONTINUED))
    words = [f"w{i}" if i < first else f"##p{i}" for i in range(len(SPECIAL), NUM_IDS)]
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *words])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def make_rows(num_rows: int, is_mixed: bool, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows of [CLS] ... [SEP]: all of 512 tokens, or lognormal around 100."""
    lengths = np.full(num_rows, WIDTH)
    if is_mixed:
        lengths = np.clip(rng.lognormal(np.log(100), 0.9, num_rows), 8, WIDTH).astype(int)
    rows = [rng.integers(len(SPECIAL), NUM_IDS, n) for n in lengths]
    for row in rows:
        row[0], row[-1] = 2, 3
    return rows


def make_dataset(rows: list[np.ndarray], with_offsets: bool) -> datasets.Dataset:
    """The rows as Arrow lists; stock whole-word masking needs offsets of characters as well."""
    ids = np.concatenate(rows).astype(np.int32)
    bounds = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    columns = {"input_ids": pa.ListArray.from_arrays(bounds, ids)}
    if with_offsets:
        gap = ids < NUM_IDS * (1 - CONTINUED)  # a new word leaves a space before it
        ends = np.cumsum(4 + gap)
        pairs = np.stack([ends - 4, ends], axis=1).reshape(-1)
        inner = pa.ListArray.from_arrays(np.arange(0, len(pairs) + 1, 2, dtype=np.int32), pairs)
        columns["offset_mapping"] = pa.ListArray.from_arrays(bounds, inner)
    return datasets.Dataset(pa.table(columns))


def batches(
    dataset: Any, collator: Any, keep_columns: bool = False, attention: str | None = None
) -> Iterator[dict[str, Any]]:
    """The batches that a Trainer would train on, epoch after epoch."""
    tiny = BertConfig(
        vocab_size=NUM_IDS,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    arguments = TrainingArguments(
        tempfile.gettempdir(),  # nothing is saved
        per_device_train_batch_size=BATCH,
        remove_unused_columns=not keep_columns,
        report_to=[],
        use_cpu=True,
    )
    callbacks = [collator] if isinstance(collator, MaskedLMCollator) else []
    model = BertForMaskedLM(tiny)
    if attention == "unpadded":
        unpadded_attention(model)
    trainer = Trainer(model, arguments, collator, train_dataset=dataset, callbacks=callbacks)
    while True:
        yield from trainer.get_train_dataloader()


def seconds_per_batch(loader: Iterator[dict[str, Any]], num_batches: int) -> list[float]:
    """Of the next batches; each one is dropped before the next is made, as in training."""
    seconds: list[float] = []
    for _ in range(num_batches):
        begin = time.perf_counter()
        next(loader)
        seconds.append(time.perf_counter() - begin)
    return seconds


def floors(dataset: datasets.Dataset) -> dict[str, Iterator[None]]:
    """What numpy does at the least for a batch of equally long rows; and if it masks tokens."""
    rng, column = np.random.default_rng(0), ArrowRows(dataset).columns["input_ids"]
    slices = [column[row] for row in rng.permutation(len(dataset)).tolist()]
    shape = (BATCH, WIDTH)

    def copies() -> Iterator[None]:
        for first in cycle(range(0, len(slices), BATCH)):
            ids = np.concatenate(slices[first : first + BATCH], dtype=np.int64).reshape(shape)
            made = ids, np.full(shape, -100), np.full(shape, 1)
            yield
            del made

    def masks() -> Iterator[None]:
        for first in cycle(range(0, len(slices), BATCH)):
            ids = np.concatenate(slices[first : first + BATCH], dtype=np.int64).reshape(shape)
            is_chosen = rng.integers(0, 256, shape, dtype=np.uint8) < 38
            made = np.where(is_chosen, 4, ids), np.where(is_chosen, ids, -100), np.full(shape, 1)
            yield
            del made

    return {"floor": copies(), "masking floor": masks()}


def compare(
    sides: Mapping[str, Iterator[Any]], tokens: Mapping[str, float], rounds: int
) -> dict[str, float]:
    """Million tokens per second by the median batch of each side; rounds are interleaved.

    `tokens` is the mean number of tokens in a batch of each side, padding not counted.
    """
    times: dict[str, list[float]] = {side: [] for side in sides}
    for i in range(rounds + 1):
        for side, loader in sides.items():
            count = STOCK_BATCHES if side == "stock" else OUR_BATCHES
            seconds = seconds_per_batch(loader, count)
            times[side] += seconds if i else []  # the first round warms up
    return {side: tokens[side] / statistics.median(t) / 1e6 for side, t in times.items()}


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """All cases."""
    tokenizer, rng, results = make_tokenizer(), np.random.default_rng(0), {}
    plain = DataCollatorForLanguageModeling(tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # stock whole-word masking always writes [MASK]
        whole = DataCollatorForLanguageModeling(tokenizer, whole_word_mask=True)
    for shape in ("64x512", "mixed"):
        is_mixed = shape == "mixed"
        rows = make_rows(BATCH * 128, is_mixed, rng)
        mean = BATCH * sum(map(len, rows)) / len(rows)
        tokens = dict.fromkeys(("stock", "ours", "floor", "masking floor"), mean)
        dataset = make_dataset(rows, with_offsets=False)
        offsets = make_dataset(rows[: BATCH * 8], with_offsets=True)
        for unit in UNITS:
            sides = {"ours": batches(ArrowRows(dataset), MaskedLMCollator(tokenizer, unit))}
            if unit == "word" and not is_mixed:
                sides["stock"] = batches(offsets, whole, keep_columns=True)
            elif unit != "word":
                sides["stock"] = batches(dataset, plain)
            sides |= {} if is_mixed else floors(dataset)
            results[f"{shape} {unit}"] = compare(sides, tokens, rounds)
        if is_mixed:
            packed = pack(dataset, WIDTH)
            tokens["ours"] = BATCH * sum(map(len, rows)) / len(packed)
            ours = MaskedLMCollator(tokenizer)
            sides = {
                "ours": batches(ArrowRows(packed), ours, attention="unpadded"),
                "stock": batches(dataset, plain),
            }
            results["packed mixed token"] = compare(sides, tokens, rounds)
    return results


def main() -> None:
    """Measure, then print the table and the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds per case")
    parser.add_argument("--json", help="also write the results to this file")
    parser.add_argument("--threads", type=int, help="of torch; 1 is what a worker has")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    results = measure(options.rounds)
    print(f"{torch.get_num_threads()} threads; stock makes use of one")
    print(f"{'case':<20}{'stock':>10}{'ours':>10}{'ratio':>8}  Mtok/s; of the floor, of masking's")
    for case, speeds in results.items():
        ours = speeds["ours"]
        stock = speeds.get("stock", math.nan)
        shares = [f"{ours / speeds[f]:.0%}" for f in ("floor", "masking floor") if f in speeds]
        print(f"{case:<20}{stock:>10.2f}{ours:>10.2f}{ours / stock:>8.0f}  {' '.join(shares)}")
    print(json.dumps(results))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
