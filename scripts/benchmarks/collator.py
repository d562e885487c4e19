"""Tokens per second of masked-language-model batches: the stock Trainer's collator against ours.

Each side runs through its own `Trainer.get_train_dataloader()`: stock is a `datasets.Dataset` with
`DataCollatorForLanguageModeling`, ours is `ArrowRows` of the same dataset with `MaskedLMCollator`.
Rounds are interleaved, the ratio is that of the median batches; the C allocator is set alike for
both. Needs no network, and a minute.

    python scripts/benchmarks/collator.py
"""

# ruff: noqa: E402 - the allocator is set before numpy and torch are imported
from hf_tfopt.allocator import tune_allocator

tune_allocator()

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
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
from hf_tfopt.data.rows import ArrowRows

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


def batches(dataset: Any, collator: Any, keep_columns: bool) -> Iterator[dict[str, Any]]:
    """One epoch of the batches that a Trainer would train on."""
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
    trainer = Trainer(
        BertForMaskedLM(tiny), arguments, collator, train_dataset=dataset, callbacks=callbacks
    )
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


def compare(
    stock: Iterator[Any] | None, ours: Iterator[Any], rounds: int, tokens: float
) -> dict[str, float | None]:
    """Million tokens per second by the median batch, and the ratio; rounds are interleaved.

    `tokens` is the mean number of tokens in a batch, padding not counted.
    """
    times: dict[str, list[float]] = {"stock": [], "ours": []}
    for i in range(rounds + 1):
        stock_times = [] if stock is None else seconds_per_batch(stock, STOCK_BATCHES)
        our_times = seconds_per_batch(ours, OUR_BATCHES)
        if i:  # the first round warms up
            times["stock"] += stock_times
            times["ours"] += our_times
    speeds = {k: tokens / statistics.median(v) / 1e6 if v else None for k, v in times.items()}
    ratio = speeds["ours"] / speeds["stock"] if speeds["stock"] and speeds["ours"] else None
    return {**speeds, "ratio": ratio}


def measure(rounds: int) -> dict[str, dict[str, float | None]]:
    """All cases; stock whole-word masking takes rows of one length only."""
    tokenizer, rng, results = make_tokenizer(), np.random.default_rng(0), {}
    plain = DataCollatorForLanguageModeling(tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # stock whole-word masking always writes [MASK]
        whole = DataCollatorForLanguageModeling(tokenizer, whole_word_mask=True)
    for shape in ("64x512", "mixed"):
        rows = make_rows(BATCH * 128, shape == "mixed", rng)
        tokens = BATCH * sum(map(len, rows)) / len(rows)
        dataset = make_dataset(rows, with_offsets=False)
        offsets = make_dataset(rows[: BATCH * 8], with_offsets=True)
        for unit, loader in (
            ("token", batches(dataset, plain, False)),
            ("word", batches(offsets, whole, True) if shape == "64x512" else None),
            ("span", None),
        ):
            ours = batches(ArrowRows(dataset), MaskedLMCollator(tokenizer, unit), False)
            results[f"{shape} {unit}"] = compare(loader, ours, rounds, tokens)
    return results


def main() -> None:
    """Measure, then print the table and the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds per case")
    parser.add_argument("--json", help="also write the results to this file")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    results = measure(options.rounds)
    print(f"{'case':<14}{'stock Mtok/s':>14}{'ours Mtok/s':>14}{'ratio':>8}")
    for case, values in results.items():
        cells = [f"{value:.2f}" if value else "-" for value in values.values()]
        print(f"{case:<14}{cells[0]:>14}{cells[1]:>14}{cells[2]:>8}")
    print(json.dumps(results))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
