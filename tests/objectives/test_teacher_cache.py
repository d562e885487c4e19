"""Cached answers teach what the teacher does, are never half there, and fit their rows or stop."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    TrainingArguments,
)

import hf_tfopt as tfo
from hf_tfopt.objectives import teacher_cache
from hf_tfopt.objectives.cached_rows import CachedTeacher, row_keys
from hf_tfopt.objectives.distillation import Distillation
from hf_tfopt.objectives.features import Relations
from hf_tfopt.objectives.teacher_cache import cache_teacher
from tests.invariants.cases.distillation import (
    LABELS,
    bert,
    many_hot,
    opinionated,
    padded,
    rows,
    sequences,
    teacher,
    tokens,
)
from tests.models import tiny

# fp32 logits of batches cut in another way, and log p read back from fp32.
TOLERANCE = 2e-5
NUM_ROWS = 11


def stacked(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The collator: rows of one length."""
    return {name: torch.tensor([row[name] for row in examples]) for name in examples[0]}


def shortened(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Another, which takes away the padding that no row of the batch needs."""
    batch = stacked(examples)
    longest = int(batch["attention_mask"].sum(-1).max())
    return {
        name: column[:, :longest] if column.dim() == 2 else column for name, column in batch.items()
    }


def dataset_of(batch: dict[str, torch.Tensor]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({name: column.tolist() for name, column in batch.items()})


SETTINGS: dict[str, Any] = {
    "masked": (
        lambda: bert(BertForMaskedLM),
        lambda: teacher(BertForMaskedLM),
        padded,
    ),
    "causal": (lambda: tiny("gpt2"), lambda: opinionated(tiny("gpt2", 1)), rows),
    "seq2seq": (lambda: tiny("t5"), lambda: opinionated(tiny("t5", 1)), rows),
    "sequences": (
        lambda: bert(BertForSequenceClassification, **LABELS),
        lambda: teacher(BertForSequenceClassification, **LABELS),
        sequences,
    ),
    "tokens": (
        lambda: bert(BertForTokenClassification, **LABELS),
        lambda: teacher(BertForTokenClassification, **LABELS),
        tokens,
    ),
}


def terms(teacher: Any, model: PreTrainedModel, batch: Any) -> dict[str, torch.Tensor]:
    objective = Distillation(teacher)
    objective.prepare(model, batch)
    found, _ = objective.terms(model.train(), model, batch, False)
    counts = objective.counts(batch)
    return {name: term.sum / counts[name] for name, term in found.items()}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("k", [None, 2])
def test_teaches_what_the_teacher_does(name: str, k: int | None, tmp_path: Path) -> None:
    student, wise, columns = SETTINGS[name]
    data, model, live = dataset_of(columns(NUM_ROWS, 0)), student(), wise()
    collator = shortened if columns is padded else stacked
    options = {"k": k, "batch_size": 3, "shard_size": 4}
    cached = cache_teacher(live, data, collator, tmp_path / "cache", **options)
    assert len(cached.dataset) == NUM_ROWS and len(list(tmp_path.glob("cache/shard-*"))) == 3
    some = [cached.dataset[i] for i in (7, 0, 3, 10)]
    batch = cached.collator(collator)(some)
    plain = collator([data[i] for i in (7, 0, 3, 10)])
    ours, theirs = terms(cached, model, batch), terms(live, model, plain)
    torch.testing.assert_close(ours["cross_entropy"], theirs["cross_entropy"])
    if k is None:
        torch.testing.assert_close(
            ours["distillation"], theirs["distillation"], rtol=TOLERANCE, atol=0
        )
        parameters = [p for p in model.parameters() if p.requires_grad]
        losses = [found["distillation"] + found["cross_entropy"] for found in (ours, theirs)]
        both = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in losses)
        for gradient, reference in zip(*both, strict=True):
            if reference is not None:
                scale = max(float(reference.abs().max()), 1e-3)
                assert float((gradient - reference).abs().max()) <= TOLERANCE * scale
    else:
        share = float(ours["distillation"].detach() / theirs["distillation"].detach())
        assert 0 < share <= 1 + TOLERANCE
        if name in ("masked", "causal"):  # of 3 classes 2 are as good as all, and T5 is sure of one
            assert share < 0.99


def test_the_trainer_trains_without_the_teacher(tmp_path: Path) -> None:
    data = dataset_of(padded(12, 0))
    cached = cache_teacher(teacher(BertForMaskedLM), data, stacked, tmp_path / "cache", k=None)
    models = [bert(BertForMaskedLM) for _ in range(2)]
    runs = [
        (cached.dataset, cached.collator(stacked), CachedTeacher(tmp_path / "cache")),
        (data, stacked, teacher(BertForMaskedLM)),
    ]
    for model, (rows_of, collator, wise) in zip(models, runs, strict=True):
        args = TrainingArguments(
            str(tmp_path / "run"),
            per_device_train_batch_size=3,
            gradient_accumulation_steps=2,
            max_steps=3,
            learning_rate=0.1,
            optim="sgd",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            save_strategy="no",
        )
        trainer = tfo.TfoptTrainer(
            model,
            args,
            objective=Distillation(wise),
            train_dataset=rows_of,
            eval_dataset=data,
            data_collator=collator,
        )
        trainer.train()
        assert trainer.evaluate()["eval_loss"] > 0
    for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_goes_on_where_it_was_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, wise = dataset_of(rows(NUM_ROWS, 0)), teacher(BertForMaskedLM)
    path, options = tmp_path / "cache", {"k": 3, "shard_size": 4, "batch_size": 2}
    written: list[str] = []
    write = teacher_cache._write

    def failing(shard: Path, *arguments: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(shard.name)
        write(shard, *arguments)

    monkeypatch.setattr(teacher_cache, "_write", failing)
    with pytest.raises(KeyboardInterrupt):
        cache_teacher(wise, data, stacked, path, **options)
    with pytest.raises(ValueError, match="no finished cache"):
        CachedTeacher(path)
    monkeypatch.setattr(
        teacher_cache, "_write", lambda s, *a: (written.append(s.name), write(s, *a))
    )
    cached = cache_teacher(wise, data, stacked, path, **options)
    assert written == ["shard-00000", "shard-00001", "shard-00002"], "each once"
    whole = cache_teacher(wise, data, stacked, tmp_path / "at once", **options)
    assert cached.dataset[:] == whole.dataset[:]
    with pytest.raises(ValueError, match="another call \\(other k\\)"):
        cache_teacher(wise, data, stacked, path, **{**options, "k": 4})
    with pytest.raises(ValueError, match="other teacher"):
        cache_teacher(bert(BertForMaskedLM, 5), data, stacked, path, **options)


def test_a_cache_goes_on_with_another_number_of_threads(tmp_path: Path) -> None:
    """The table's sum depends on it: more numbers than torch gives one thread, of all sizes."""
    data = dataset_of(rows(2, 0))
    wise = teacher(BertForMaskedLM, vocab_size=20_000)
    with torch.no_grad():
        table = wise.get_input_embeddings().weight
        table.mul_(10 ** torch.linspace(-8, 0, table.numel()).view_as(table))
    before = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            cache_teacher(wise, data, stacked, tmp_path, k=3)
    finally:
        torch.set_num_threads(before)


def test_a_teacher_is_known_by_every_number(tmp_path: Path) -> None:
    data, wise = dataset_of(rows(2, 0)), teacher(BertForMaskedLM).to(torch.bfloat16)
    cache_teacher(wise, data, stacked, tmp_path, k=3)
    with torch.no_grad():  # two numbers change places: their sum is the same
        bias = wise.bert.encoder.layer[0].output.dense.bias
        bias[:2] = torch.tensor([1.0, 2.0])
    with pytest.raises(ValueError, match="other teacher"):
        cache_teacher(wise, data, stacked, tmp_path, k=3)
    cache_teacher(wise, data, stacked, tmp_path / "second", k=3)
    with torch.no_grad():
        bias[:2] = torch.tensor([2.0, 1.0])
    with pytest.raises(ValueError, match="other teacher"):
        cache_teacher(wise, data, stacked, tmp_path / "second", k=3)


def test_images_are_not_cached(tmp_path: Path) -> None:
    images = dataset_of({"pixel_values": torch.randn(2, 3, 8, 8), "labels": torch.tensor([0, 1])})
    with pytest.raises(ValueError, match="no input_ids, only pixel_values, labels; answers are"):
        cache_teacher(tiny("bert"), images, stacked, tmp_path)


def test_a_row_without_labels_has_no_answers(tmp_path: Path) -> None:
    columns = rows(3, 0)
    columns["labels"][1] = -100
    data, model = dataset_of(columns), bert(BertForMaskedLM)
    wise = teacher(BertForMaskedLM)
    cached = cache_teacher(wise, data, stacked, tmp_path / "cache", k=None, batch_size=1)
    assert cached.dataset[1]["teacher_ids"] == []
    batch = cached.collator(stacked)([cached.dataset[i] for i in range(3)])
    torch.testing.assert_close(terms(cached, model, batch), terms(wise, model, columns))


def test_refuses_masks_that_change(tmp_path: Path) -> None:
    wise, data = teacher(BertForMaskedLM), dataset_of(rows(4, 0))

    class Masking:
        mlm = True

        def __call__(self, examples: Any) -> Any:
            return stacked(examples)

    with pytest.raises(ValueError, match="Masking makes other labels of the same rows"):
        cache_teacher(wise, data, Masking(), tmp_path / "a")

    def drawing(examples: Any) -> Any:
        batch = stacked(examples)
        batch["labels"] = torch.randint(5, 90, batch["labels"].shape)
        return batch

    with pytest.raises(ValueError, match="other labels of the same rows"):
        cache_teacher(wise, data, drawing, tmp_path / "b")
    assert DataCollatorForLanguageModeling.mlm, "what this looks for in the host's collator"


def test_a_batch_with_other_labels_than_were_cached_stops(tmp_path: Path) -> None:
    data, model = dataset_of(rows(4, 0)), bert(BertForMaskedLM)
    cached = cache_teacher(teacher(BertForMaskedLM), data, stacked, tmp_path / "cache")

    def other(examples: Any) -> Any:
        batch = stacked(examples)
        batch["labels"] = batch["labels"].roll(1, dims=-1)
        return batch

    batch = cached.collator(other)([cached.dataset[i] for i in range(4)])
    with pytest.raises(ValueError, match="not those whose answers were cached"):
        terms(cached, model, batch)
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        terms(cached, model, stacked([data[i] for i in range(4)]))


def test_refuses_students_the_answers_are_not_for(tmp_path: Path) -> None:
    data = dataset_of(rows(4, 0))
    cached = cache_teacher(teacher(BertForMaskedLM), data, stacked, tmp_path / "cache", k=5)
    batch = cached.collator(stacked)([cached.dataset[i] for i in range(4)])
    with pytest.raises(ValueError, match=r"temperature 2\.0, and the student .* at 3\.0"):
        Distillation(cached, temperature=3.0).prepare(bert(BertForMaskedLM), batch)
    with pytest.raises(ValueError, match="101 tokens and the cached teacher 97"):
        Distillation(cached).prepare(bert(BertForMaskedLM, vocab_size=101), batch)
    with pytest.raises(ValueError, match="features need the teacher itself"):
        Distillation(cached, features=[Relations()])
    classes = {**batch, "labels": batch["labels"][:, 0] % 3}
    with pytest.raises(ValueError, match="same task"):
        Distillation(cached).prepare(bert(BertForSequenceClassification, **LABELS), classes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "1 and more"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"dataset": [{"input_ids": [1]}]}, "Dataset.from_list"),
        ({"path": "."}, "holds something else"),
        ({"teacher": bert(BertForSequenceClassification, **LABELS)}, "one of several classes"),
    ],
)
def test_refuses(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    columns = many_hot if "teacher" in options else rows
    path = tmp_path if options.get("path") else tmp_path / "cache"
    arguments = {
        "teacher": teacher(BertForMaskedLM),
        "dataset": dataset_of(columns(4, 0)),
        **options,
        "path": path,
    }
    with pytest.raises(ValueError, match=message):
        cache_teacher(collator=stacked, **arguments)


def test_keys_change_with_tokens_labels_and_places_but_not_with_padding() -> None:
    batch = padded(6, 0)
    keys = row_keys(batch)
    assert len(set(keys.tolist())) == 6
    wider = {
        name: torch.nn.functional.pad(column, (2, 3), value=-100 if name == "labels" else 0)
        for name, column in batch.items()
    }
    assert torch.equal(row_keys(wider), keys)
    for name in ("input_ids", "labels"):
        other = {**batch, name: batch[name].clone()}
        other[name][:, 0] += 1
        assert not bool((row_keys(other) == keys).any())
    swapped = {**batch, "labels": batch["labels"].roll(1, -1)}
    assert not bool((row_keys(swapped) == keys).any())
