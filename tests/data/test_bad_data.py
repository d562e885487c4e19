"""Data that cannot be right: what every way in makes of it.

| rows | MaskedLMCollator | pack |
|---|---|---|
| of special tokens or padding alone | nothing to guess in them | packed |
| without a token | a row of padding; refused if all are | refused |
| ids that the tokenizer has not | refused | only negative ones are |
| longer than the model, padded, not lists of whole numbers, missing | refused | refused |
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import Trainer

import hf_tfopt as tfo
from hf_tfopt.data.causal_collator import CausalLMCollator
from hf_tfopt.data.classification_collator import ClassificationCollator
from hf_tfopt.data.collators import MaskedLMCollator
from hf_tfopt.data.packing import pack
from hf_tfopt.data.rows import ArrowRows
from hf_tfopt.data.token_budget import TokenBudget
from hf_tfopt.data.tokenizer import tokenize
from hf_tfopt.surgery.attention import unpadded_attention
from tests.data.test_collators import MODELS, NUM_IDS, WIDTH, make_collator, make_tokenizer
from tests.test_trainer import arguments, losses

GOOD = [2, 7, 8, 9, 10, 3]
CLS, SEP, PAD = 2, 3, 0
LONG = [CLS, *[9] * (WIDTH - 1), SEP]


def dataset(rows: Any, **columns: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"input_ids": rows, **columns})


def as_dicts(rows: Any) -> list[dict[str, Any]]:
    return [{"input_ids": row} for row in rows]


def as_arrow(rows: Any) -> Any:
    return ArrowRows(dataset(rows)).__getitems__(list(range(len(rows))))


def as_packed_dicts(rows: Any) -> list[dict[str, Any]]:
    return [{"input_ids": row, "position_ids": list(range(len(row)))} for row in rows]


def as_packed(rows: Any) -> Any:
    packed = pack(dataset(rows), WIDTH)
    return ArrowRows(packed).__getitems__(list(range(len(packed))))


def masked(form: str) -> MaskedLMCollator:
    model = MODELS["bert"]()
    return make_collator(
        make_tokenizer(), model=unpadded_attention(model) if form == "joined" else model
    )


WAYS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "padded dicts": ("padded", as_dicts),
    "padded arrow": ("padded", as_arrow),
    "joined dicts": ("joined", as_dicts),
    "joined arrow": ("joined", as_arrow),
    "packed dicts": ("padded", as_packed_dicts),
    "packed": ("padded", as_packed),
}


def collate(way: str, rows: Any) -> dict[str, Any]:
    form, make = WAYS[way]
    return masked(form)(make(rows))


def num_targets(batch: dict[str, Any]) -> int:
    return int((batch["labels"] != -100).sum())


@pytest.mark.parametrize("way", WAYS)
def test_rows_with_nothing_to_guess_have_no_target(way: str) -> None:
    for nothing in ([CLS], [CLS, SEP], [PAD] * 5):
        both = collate(way, [nothing, GOOD])
        alone = collate(way, [GOOD])
        assert num_targets(both) == num_targets(alone) == 1
        guessed = both["labels"][both["labels"] != -100]
        assert guessed == alone["labels"][alone["labels"] != -100]  # the same one of GOOD
        none = collate(way, [nothing, nothing])
        assert num_targets(none) == 0
        assert sorted(none["input_ids"].flatten().tolist())[-2 * len(nothing) :] == sorted(
            nothing * 2
        )


@pytest.mark.parametrize("way", [way for way in WAYS if way != "packed"])
def test_a_row_without_tokens_is_padding(way: str) -> None:
    batch = collate(way, [GOOD, []])
    assert num_targets(batch) == 1
    if way.startswith("padded"):
        assert batch["attention_mask"].sum(1).tolist() == [6, 0]
        loss = MODELS["bert"]()(**batch).loss
        assert torch.isfinite(loss)
    with pytest.raises(ValueError, match="every row of this batch is empty: leave out empty rows"):
        collate(way, [np.empty(0, dtype=np.int64)] * 2)


# kind of rows -> what collators say of dicts, of ArrowRows, and what pack says (None: it packs)
REFUSED: dict[str, tuple[Any, str, str, str | None]] = {
    "negative": ([GOOD, [2, -1, 3]], "token id -1 is none", "token id -1 is none", "example 1.*-1"),
    "not the tokenizer's": (
        [GOOD, [2, NUM_IDS, 3]],
        f"token id {NUM_IDS} is none of the tokenizer's {NUM_IDS}",
        f"token id {NUM_IDS} is none",
        None,
    ),
    "beyond 32 bits": ([GOOD, [2, 1 << 40, 3]], "token id 1099511", "token id 1099511", None),
    "longer than the model": (
        [GOOD, LONG],
        f"{WIDTH + 1} tokens does not fit the {WIDTH} positions .*max_length={WIDTH}",
        f"{WIDTH + 1} tokens does not fit the {WIDTH} positions",
        f"example 1 with {WIDTH + 1}.*max_length={WIDTH}",
    ),
    "a missing row": (
        [GOOD, None],
        "row 1 of a batch has input_ids of None",
        "1 rows with no value; leave them out",
        "empty or missing .*example 1",
    ),
    "a missing value": (
        [GOOD, [2, None]],
        r"row 1 of a batch has input_ids of \[2, None\]",
        "1 missing values inside its lists; leave",
        r"missing values .*row 1",
    ),
    "fractions": ([GOOD, [2.5, 3.0]], r"row 1 .*\[2.5", "float64: whole numbers", "token ids"),
    "words": ([["a", "b"], ["c"]], r"row 0 .*\['a'", r"row 0 .*\['a'", "not lists of numbers"),
    "text": (["a b", "c"], "row 0 .*'a b'", "row 0 .*'a b'", "holds string, not lists"),
    "nested": ([[[1, 2], [3]], [[4]]], "row 0 .*whole", "row 0 .*whole", "not lists of numbers"),
    "a number": ([3, 4], "row 0 .*of 3: it must be a list", "row 0 .*list", "int.*, not lists"),
    "truths": ([[True], [False]], r"row 0 .*\[True\]", r"row 0 .*True", "token ids"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_rows_that_cannot_be_right_are_refused(kind: str) -> None:
    rows, of_dicts, of_arrow, of_pack = REFUSED[kind]
    for form in ("padded", "joined"):
        with pytest.raises(ValueError, match=of_dicts):
            masked(form)(as_dicts(rows))
        with pytest.raises(ValueError, match=of_arrow):
            masked(form)(as_arrow(rows))
    if of_pack is None:
        assert len(pack(dataset(rows), WIDTH)) == 1
        with pytest.raises(ValueError, match=of_dicts):
            collate("packed", rows)
    else:
        with pytest.raises(ValueError, match=of_pack):
            pack(dataset(rows), WIDTH)


@pytest.mark.parametrize("kind", ["not the tokenizer's", "a missing value", "fractions", "text"])
def test_other_collators_refuse_them_too(kind: str) -> None:
    rows, of_dicts, of_arrow, _ = REFUSED[kind]
    causal = CausalLMCollator(make_tokenizer())
    classified = ClassificationCollator(make_tokenizer(), is_packed=False)
    labelled = [{**row, "labels": 0} for row in as_dicts(rows)]
    for collator, given in ((causal, as_dicts(rows)), (classified, labelled)):
        with pytest.raises(ValueError, match=of_dicts):
            collator(given)
        with pytest.raises(ValueError, match=of_arrow):
            collator(as_arrow(rows))


def test_padded_rows_are_not_read_as_text() -> None:
    padded = {"input_ids": [[*GOOD, PAD], [*GOOD, 7]], "attention_mask": [[1] * 6 + [0], [1] * 7]}
    rows = datasets.Dataset.from_dict(padded)
    for given in (list(rows.select([1, 0])), ArrowRows(rows).__getitems__([1, 0])):
        with pytest.raises(ValueError, match=r"padded already .*row 1 of a batch.*padding=False"):
            masked("padded")(given)
    assert num_targets(masked("padded")(list(rows.select([1])))) == 1
    with pytest.raises(ValueError, match=r"padded .*example 0.*padding=False"):
        pack(rows, WIDTH)


def test_a_mask_may_be_of_truth_values() -> None:
    collator = masked("padded")
    for is_seen in (True, False):
        rows = dataset([GOOD], attention_mask=[[True] * 5 + [is_seen]])
        for given in (list(rows), [ArrowRows(rows)[0]]):
            if is_seen:
                assert num_targets(collator(given))
                continue
            with pytest.raises(ValueError, match="padded already"):
                collator(given)


def test_columns_that_do_not_go_together() -> None:
    collator = masked("padded")
    row = {"input_ids": GOOD}
    words = make_collator(make_tokenizer(), unit="word")
    with pytest.raises(ValueError, match=r"6 input_ids and 5 word_ids: .*one for each token"):
        words([row | {"word_ids": [0] * 5}])
    for name in ("token_type_ids", "position_ids"):
        with pytest.raises(ValueError, match=f"6 input_ids and 5 {name}: .*one for each token"):
            collator([row | {name: [0] * 5}])
    with pytest.raises(ValueError, match="row 1 of a batch has no token_type_ids"):
        collator([row | {"token_type_ids": [0] * 6}, row])
    for rows in ([{"ids": GOOD}], ArrowRows(dataset([GOOD]).rename_columns({"input_ids": "ids"}))):
        with pytest.raises(ValueError, match=r"\['ids'\] but no input_ids: tokenize first"):
            collator([rows[0]])


def test_a_column_that_is_not_text_is_not_tokenized() -> None:
    for values, kind in (([1, 2], "int64"), ([["a"], ["b"]], "List")):
        with pytest.raises(ValueError, match=f"column 'text' holds .*{kind}.*, not texts"):
            tokenize(datasets.Dataset.from_dict({"text": values}), make_tokenizer(), 8)


# in a Trainer


def train(folder: Path, rows: Any, kind: type[Trainer] = tfo.TfoptTrainer, **options: Any) -> Any:
    collator = MaskedLMCollator(make_tokenizer())
    settings = {"per_device_train_batch_size": 2, "num_train_epochs": 1, "max_steps": -1}
    torch.manual_seed(0)
    slots = {"sampler": options.pop("sampler")} if "sampler" in options else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*same masks.*")
        trainer = kind(
            MODELS["bert"](),
            arguments(folder, **settings | options),
            data_collator=collator,
            callbacks=[collator],
            train_dataset=rows if isinstance(rows, ArrowRows) else ArrowRows(dataset(rows)),
            **slots,
        )
        trainer.train()
    return trainer


@pytest.mark.parametrize("kind", [Trainer, tfo.TfoptTrainer])
def test_steps_with_nothing_to_guess_do_no_harm(kind: type[Trainer], tmp_path: Path) -> None:
    rows = [[CLS, SEP]] * 2 + [GOOD] * 2
    trainer = train(tmp_path, rows, kind, train_sampling_strategy="sequential", weight_decay=0.0)
    first, second = losses(trainer)
    assert first == 0.0
    assert second > 1
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())
    # in a step together with others they do not count
    parts = {"gradient_accumulation_steps": 2, "train_sampling_strategy": "sequential"}
    [loss] = losses(train(tmp_path, rows, kind, **parts))
    [alone] = losses(train(tmp_path, [GOOD] * 2, kind, train_sampling_strategy="sequential"))
    assert loss == pytest.approx(alone, rel=0.2)  # dropout draws other numbers; halved it would not


@pytest.mark.parametrize("size", [1, 3])
def test_fewer_rows_than_a_batch_are_one_batch(size: int, tmp_path: Path) -> None:
    trainer = train(tmp_path, [GOOD] * size, per_device_train_batch_size=4)
    assert trainer.state.global_step == 1
    assert losses(trainer)[0] > 1


def test_no_rows_or_none_left_are_refused_before_training(tmp_path: Path) -> None:
    none = ArrowRows(dataset([GOOD]).select([]))
    with pytest.raises(ValueError, match="training dataset has 0 rows; it needs at least 1 "):
        train(tmp_path, none)
    with pytest.raises(ValueError, match=r"has 1 rows; it needs at least 2 .*drop_last=True"):
        train(tmp_path, [GOOD], dataloader_drop_last=True, max_steps=2)
    with pytest.raises(ValueError, match="the training dataset has no rows"):
        train(tmp_path, none, sampler=TokenBudget(64))
    with pytest.raises(ValueError, match="nothing to pack"):
        pack(none.dataset, WIDTH)


@pytest.mark.parametrize("kind", ["not the tokenizer's", "longer than the model", "fractions"])
def test_a_trainer_says_what_is_wrong_with_its_rows(kind: str, tmp_path: Path) -> None:
    rows, _, message, _ = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        train(tmp_path, rows)


def test_a_column_of_lengths_that_lies(tmp_path: Path) -> None:
    rows = ArrowRows(dataset([GOOD, GOOD[:3], GOOD], length=[6, 6, 6]))
    with pytest.raises(ValueError, match="'length' lies for 1 of 3 rows: it says 6 for row 1"):
        train(tmp_path, rows, sampler=TokenBudget(64, "length"))
    # the host's grouping believes it: batches are grouped worse, and hold the same rows
    options = {"train_sampling_strategy": "group_by_length", "length_column_name": "length"}
    trainer = train(tmp_path, rows, **options)
    assert trainer.state.global_step == 2
