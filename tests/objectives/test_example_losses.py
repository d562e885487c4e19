"""A model's loss of every example: what the model says of each alone, and kept on disk."""

import logging
import random
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

import hf_tfopt as tfo
from hf_tfopt.data.batch_plan import TrainingRun
from tests.data.test_collators import examples, make_model, make_tokenizer
from tests.models import NO_DROPOUT, SIZES, VOCABULARY, tiny

# fp32 sums of the same numbers, in batches of another width
TOLERANCE = 1e-5


def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
    """Padded to the longest; labels of tokens too."""
    width = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, filling: int) -> torch.Tensor:
        return torch.tensor([[*row[name], *[filling] * (width - len(row[name]))] for row in rows])

    batch = {"input_ids": padded("input_ids", 0)}
    sizes = torch.tensor([len(row["input_ids"]) for row in rows])
    batch["attention_mask"] = (torch.arange(width) < sizes[:, None]).long()
    for name in ("labels", "start_positions", "end_positions", "number"):
        if name in rows[0]:
            is_list = np.ndim(rows[0][name]) == 1
            value = padded(name, -100) if is_list else torch.tensor([row[name] for row in rows])
            batch[name] = value
    return batch


def rows_of(kind: str, num_rows: int = 7) -> datasets.Dataset:
    rng = random.Random(3)
    rows: list[dict[str, Any]] = []
    for _ in range(num_rows):
        ids = [rng.randrange(5, VOCABULARY) for _ in range(rng.randint(3, 12))]
        row: dict[str, Any] = {"input_ids": ids, "text": "left out", "number": len(rows)}
        if kind == "tokens":
            row["labels"] = [i % 3 if rng.random() < 0.6 else -100 for i in ids]
            row["labels"][-1] = 1
        elif kind == "answers":
            row |= {"start_positions": rng.randrange(3), "end_positions": rng.randrange(3)}
        elif kind in ("number", "classes"):
            row["labels"] = rng.random() if kind == "number" else rng.randrange(3)
        else:
            row["labels"] = [i if rng.random() < 0.5 else -100 for i in ids]
            row["labels"][-1] = ids[-1]
        rows.append(row)
    return datasets.Dataset.from_list(rows)


def bert(kind: str) -> Any:
    torch.manual_seed(0)
    number = {"number": 1, "answers": 2}.get(kind, 3)
    config = BertConfig(**SIZES, **NO_DROPOUT, num_labels=number)
    heads: dict[str, Any] = {
        "tokens": BertForTokenClassification,
        "answers": BertForQuestionAnswering,
    }
    return heads.get(kind, BertForSequenceClassification)(config)


KINDS = ["bert", "gpt2", "t5", "classes", "number", "tokens", "answers"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_is_what_the_model_says_of_it_alone(kind: str) -> None:
    data = rows_of(kind)
    model = tiny(kind) if kind in ("bert", "gpt2", "t5") else bert(kind)
    found = tfo.example_losses(model, data, collate, batch_size=3)
    model.eval()
    with torch.no_grad():
        bare = data.remove_columns("number")  # as the host does
        alone = [model(**collate([row])).loss.item() for row in bare]
    assert found == pytest.approx(alone, rel=TOLERANCE)
    sums = tfo.example_losses(model, data, collate, batch_size=4, reduction="sum")
    if kind in ("bert", "t5", "tokens"):
        counts = [sum(label != -100 for label in row["labels"]) for row in data]
        assert sums == pytest.approx(found * counts, rel=TOLERANCE)
    elif kind == "gpt2":  # the first label is no target
        counts = [sum(label != -100 for label in row["labels"][1:]) for row in data]
        assert sums == pytest.approx(found * counts, rel=TOLERANCE)
    else:
        assert sums == pytest.approx(found, rel=TOLERANCE)


def end_to_end(rows: list[Any]) -> dict[str, torch.Tensor]:
    """All examples in one row, which no label says the example of."""
    batch = collate(rows)
    kept = batch["attention_mask"].bool()
    where = (torch.arange(kept.shape[1]).expand_as(kept))[kept]
    return {
        "input_ids": batch["input_ids"][kept][None],
        "labels": batch["labels"][kept][None],
        "position_ids": where[None],
    }


def test_examples_end_to_end_are_scored_one_by_one() -> None:
    data, model = rows_of("gpt2"), tiny("gpt2")
    padded = tfo.example_losses(model, data, collate)
    assert tfo.example_losses(model, data, end_to_end) == pytest.approx(padded, rel=TOLERANCE)


def test_masks_are_those_of_epoch_0_and_the_collator_hears_nothing() -> None:
    """Also in one row without padding, where each example is made into a batch again."""
    data, tokenizer = examples(), make_tokenizer()
    found = []
    for form in ("sdpa", "unpadded"):
        model = make_model("modernbert", form)
        collator = tfo.MaskedLMCollator(tokenizer, model=model)
        found.append(tfo.example_losses(model, data, collator, batch_size=5))
        collator.set_epoch(4)
        later = tfo.example_losses(model, data, collator, batch_size=5)
        assert (later == found[-1]).all()
        collator([data[0]]), collator([data[0]])  # would wonder, were it not told the epoch
    assert found[0] == pytest.approx(found[1], rel=TOLERANCE)


def test_the_model_and_the_random_numbers_are_left_as_they_were() -> None:
    """Also of half precision, in a mixture of modes, and where the scoring breaks off."""
    model = bert("classes").to(torch.bfloat16).train()
    model.dropout.p = 0.5
    model.bert.encoder.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]

    def noisy(rows: list[Any]) -> dict[str, torch.Tensor]:
        torch.rand(3), random.random(), np.random.rand()
        return collate(rows)

    def breaks(rows: list[Any]) -> dict[str, torch.Tensor]:
        if len(rows) < 4:
            raise RuntimeError("the last batch")
        return noisy(rows)

    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    states = torch.get_rng_state().clone(), random.getstate(), np.random.get_state()[1].copy()
    with torch.autocast("cpu", torch.bfloat16):
        found = tfo.example_losses(model, rows_of("classes"), noisy)
    with pytest.raises(RuntimeError, match="the last batch"):
        tfo.example_losses(model, rows_of("classes"), breaks, batch_size=4)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1] and (np.random.get_state()[1] == states[2]).all()
    assert [module.training for module in model.modules()] == modes
    assert addresses == [parameter.data_ptr() for parameter in model.parameters()]
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert after["classifier.weight"].dtype == torch.bfloat16
    assert model.config.problem_type is None
    wide = bert("classes")
    wide.load_state_dict({name: tensor.float() for name, tensor in before.items()})
    # computed in fp32, so not even a rounding differs
    assert (tfo.example_losses(wide, rows_of("classes"), collate) == found).all()


class OwnGenerator:
    """As the host's collators with a seed: each call goes on where the last one was."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)

    def __call__(self, rows: list[Any]) -> dict[str, torch.Tensor]:
        return masked(collate(rows), torch.rand(len(rows), 1, generator=self.generator))


def masked(batch: dict[str, torch.Tensor], drawn: torch.Tensor) -> dict[str, torch.Tensor]:
    number = torch.arange(batch["input_ids"].shape[1]) + (drawn * 1000).long()
    return {**batch, "labels": batch["input_ids"].masked_fill(number % 2 == 0, -100)}


DRAWN: dict[str, Any] = {
    "torch": lambda rows: masked(collate(rows), torch.rand(len(rows), 1)),
    "numpy": lambda rows: masked(collate(rows), torch.tensor(np.random.rand(len(rows), 1))),
    "random": lambda rows: masked(collate(rows), torch.tensor(random.random())),
    "its own": OwnGenerator(),
}


@pytest.mark.parametrize("name", DRAWN)
def test_random_masks_are_the_same_in_every_call(name: str) -> None:
    data, model, masks = rows_of("bert"), tiny("bert"), DRAWN[name]
    options: dict[str, Any] = {"batch_size": 1}
    first = tfo.example_losses(model, data, masks, **options)
    for _ in range(3):
        torch.rand(1), np.random.rand(1), random.random()
        assert (tfo.example_losses(model, data, masks, **options) == first).all()


class Shared(list[Any]):
    """A list that copies of its owner share."""

    def __deepcopy__(self, memo: Any) -> "Shared":
        return self


class Counted:
    """A collator that counts the rows it is asked for, with its copies."""

    def __init__(self) -> None:
        self.rows = Shared()

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    def __call__(self, rows: list[Any]) -> dict[str, torch.Tensor]:
        self.rows += rows
        return collate(rows)


def test_the_cache_is_read_and_a_stale_one_refused(tmp_path: Path) -> None:
    data, model, folder = rows_of("bert"), tiny("bert"), tmp_path / "scores"
    collator = Counted()
    options: dict[str, Any] = {"batch_size": 3, "cache": folder}
    first = tfo.example_losses(model, data, collator, **options)
    assert collator.num_rows == 7, "every row is made into a batch once"
    assert (tfo.example_losses(tiny("bert"), data, collator, **options) == first).all()
    assert collator.num_rows == 10, "one batch is looked at to know the collator"
    assert (
        tfo.example_losses(tiny("bert"), tfo.ArrowRows(data), collator, **options) == first
    ).all()
    assert [path.name for path in folder.iterdir()] == ["losses.npz"]

    def all_labels(rows: list[Any]) -> dict[str, torch.Tensor]:
        batch = collate(rows)
        return {**batch, "labels": batch["input_ids"]}

    changed = tiny("bert")
    with torch.no_grad():
        changed.cls.predictions.bias[7] += 1e-6
    refused: dict[str, tuple[Any, ...]] = {
        "other model": (changed, data, collate, {}),
        "other dataset": (model, data.select([0, 1, 2, 4, 3, 5, 6]), collate, {}),
        "other batch": (model, data, all_labels, {}),
        "other dataset, num_rows": (model, data.select(range(6)), collate, {}),
        "other reduction": (model, data, collate, {"reduction": "sum"}),
    }
    for message, (other, rows, collator, more) in refused.items():
        with pytest.raises(ValueError, match=re.escape(f"({message})")):
            tfo.example_losses(other, rows, collator, **{**options, **more})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="holds something else"):
        tfo.example_losses(model, data, collate, cache=tmp_path / "mine")


def test_bad_input(caplog: pytest.LogCaptureFixture) -> None:
    data, model = rows_of("bert"), tiny("bert")
    with pytest.raises(ValueError, match="did you mean 'mean'"):
        tfo.example_losses(model, data, collate, reduction="means")
    with pytest.raises(ValueError, match="batch_size is 0"):
        tfo.example_losses(model, data, collate, batch_size=0)
    with pytest.raises(ValueError, match="no rows"):
        tfo.example_losses(model, [], collate)
    with pytest.raises(ValueError, match="no fingerprint"):
        tfo.example_losses(model, list(data), collate, cache="anywhere")
    with pytest.raises(ValueError, match="no objective knows the loss"):
        tfo.example_losses(model, data.remove_columns("labels"), collate)
    broken = tiny("bert")
    with torch.no_grad():
        broken.cls.predictions.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"BertForMaskedLM|loss of row 0 is nan"):
        tfo.example_losses(broken, data, collate)
    bare = data.map(
        lambda row, i: {"labels": [-100] * len(row["labels"])} if i == 2 else row, with_indices=True
    )
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        found = tfo.example_losses(model, bare, collate)
    assert found[2] == 0 and (np.delete(found, 2) > 0).all()
    assert "1 of 7 examples have no label" in caplog.text


def test_adapters_and_a_compiled_model() -> None:
    data, model = rows_of("gpt2"), tiny("gpt2")
    plain = tfo.example_losses(model, data, collate)
    compiled = torch.compile(model, backend="eager")
    assert (tfo.example_losses(compiled, data, collate) == plain).all()
    options: dict[str, Any] = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    adapted = get_peft_model(model, LoraConfig("CAUSAL_LM", init_lora_weights=False, **options))
    found = tfo.example_losses(adapted, data, collate)
    assert adapted.training, "as get_peft_model leaves it"
    adapted.eval()
    with torch.no_grad():
        alone = [adapted(**collate([row])).loss.item() for row in data.remove_columns("number")]
    assert found == pytest.approx(alone, rel=TOLERANCE)
    assert np.abs(found - plain).max() > 1e-3


def test_as_the_score_of_a_curriculum() -> None:
    data, model = rows_of("classes", 12), bert("classes")
    plan = tfo.DifficultyCurriculum(lambda rows: tfo.example_losses(model, rows, collate), 3, 0.25)
    plan.prepare(TrainingRun(data, 3, num_epochs=1))
    losses = tfo.example_losses(model, data, collate)
    assert set(plan.batches(0)[0].tolist()) == set(losses.argsort()[:3].tolist())
