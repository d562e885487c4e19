"""Training on rows that grow: the loss is that of rows which were so short from the start."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer

import hf_tfopt as tfo
from hf_tfopt.data.curriculum import CutRule, cut_rows, packed_examples
from tests.callbacks.runs import history_of, trainer_with, weights_of
from tests.data.test_collators import NUM_IDS, examples, make_model, make_tokenizer
from tests.invariants.cases import Columns
from tests.models import NO_DROPOUT, SIZES, batch_for, tiny
from tests.test_trainer import arguments, losses


def train(
    folder: Path,
    model: Any,
    batch: dict[str, torch.Tensor],
    callbacks: Sequence[Any] = (),
    how: str = "tfopt",
    **options: Any,
) -> tuple[Trainer, list[dict[str, Any]]]:
    """A trainer after its run, and what the model was given while it trained."""
    seen: list[dict[str, Any]] = []

    def see(module: Any, given: Any, inputs: dict[str, Any]) -> None:
        if module.training:
            seen.append(inputs)

    hook = model.register_forward_pre_hook(see, with_kwargs=True)
    settings = {"train_sampling_strategy": "sequential", "remove_unused_columns": False}
    args = arguments(folder, optim="sgd", learning_rate=0.1, **settings | options)
    data = {"train_dataset": Columns(batch), "eval_dataset": Columns(batch)}
    if how == "attach":
        trainer = tfo.attach(Trainer(model, args, **data), callbacks=callbacks)
    else:
        trainer = tfo.TfoptTrainer(model, args, callbacks=list(callbacks), **data)
    trainer.train()
    hook.remove()
    return trainer, seen


@pytest.mark.parametrize(
    ("name", "how", "mode"),
    [
        ("bert", "tfopt", "truncate"),
        ("bert", "attach", "reshape"),
        ("gpt2", "attach", "truncate"),
        ("gpt2", "attach", "reshape"),  # where the host counts the labels before they are shifted
        ("llama", "tfopt", "reshape"),
    ],
)
def test_the_loss_is_that_of_rows_that_were_short(
    name: str, how: str, mode: str, tmp_path: Path
) -> None:
    """With accumulation of 2 and a different number of labels in every row."""
    batch = batch_for(None, 8)  # one step of 2 x 4 rows, of 12 tokens
    batch["input_ids"][::2, -1] = 2
    if name != "bert":
        batch["labels"] = batch["input_ids"].clone()
    short = cut_rows(
        batch, 8, CutRule(mode == "reshape", (2,), is_causal=name != "bert", multiple=8)
    )
    curriculum = tfo.LengthCurriculum(8, 2, end=12, mode=mode, closing_ids=[2])
    options = {"max_steps": 1, "gradient_accumulation_steps": 2}
    ours, seen = train(tmp_path, tiny(name), batch, [curriculum], how, **options)
    num_rows = len(short["input_ids"]) // 2
    assert num_rows == (4 if mode == "truncate" else 8)
    options |= {"per_device_train_batch_size": num_rows}
    plain, expected = train(tmp_path, tiny(name), short, [], how, **options)
    assert losses(ours) == losses(plain)
    assert torch.equal(weights_of(ours.model), weights_of(plain.model))
    assert seen[-1]["input_ids"].shape == (num_rows, 8)
    assert torch.equal(seen[-1]["input_ids"], expected[-1]["input_ids"])
    if mode == "truncate":  # a causal model would learn to end there
        assert (seen[-1]["input_ids"][::2, -1] == 2).all() == (name == "bert")


def test_the_length_follows_the_step_and_evaluation_is_whole(tmp_path: Path) -> None:
    widths: dict[bool, list[int]] = {True: [], False: []}
    model = tiny("bert")

    def see(module: Any, given: Any, inputs: dict[str, Any]) -> None:
        widths[module.training].append(inputs["input_ids"].shape[1])

    trainer = trainer_with(
        tmp_path,
        [],
        model=model,
        max_steps=5,
        gradient_accumulation_steps=1,
        eval_strategy="steps",
        eval_steps=2,
    )
    tfo.attach(trainer, curriculum=tfo.LengthCurriculum(4, 4, 12, multiple=4))
    trainer._prepare_objective([trainer.train_dataset.batch])  # it looks at whole rows
    model.register_forward_pre_hook(see, with_kwargs=True)
    trainer.train()
    assert widths[True] == [4, 4, 8, 8, 12]
    assert set(widths[False]) == {12}
    assert [entry["length"] for entry in history_of(trainer)] == [4, 4, 8, 8, 12]


def test_a_share_of_the_run_and_the_longest_row_of_the_dataset(tmp_path: Path) -> None:
    dataset = examples(40, longest=20)
    longest = max(map(len, dataset["input_ids"]))
    options = {"max_steps": 8, "per_device_train_batch_size": 40}
    seen = masked_run(tmp_path, tfo.LengthCurriculum(4, 0.5), dataset, "sdpa", **options)
    widths = [inputs["input_ids"].shape[1] for inputs in seen]
    assert widths == [4, 8, 8, 16, *[longest] * 4]
    for inputs in seen[:3]:  # the collator's tokenizer tells what closes a row
        ends = inputs["attention_mask"].sum(1) - 1
        assert (inputs["input_ids"].gather(1, ends[:, None]) == 3).all()


def masked_run(
    folder: Path, curriculum: Any, dataset: datasets.Dataset, implementation: str, **options: Any
) -> list[dict[str, Any]]:
    """The inputs of every micro-batch of a masked language model's training."""
    model = make_model("bert", implementation)
    seen: list[dict[str, Any]] = []

    def see(module: Any, given: Any, inputs: dict[str, Any]) -> None:
        if module.training:
            seen.append(inputs)

    collator = tfo.MaskedLMCollator(make_tokenizer(), probability=0.3)
    trainer = tfo.TfoptTrainer(
        model,
        arguments(folder, **options),
        data_collator=collator,
        train_dataset=dataset,
        curriculum=curriculum,
    )
    model.register_forward_pre_hook(see, with_kwargs=True)
    trainer.train()
    return seen[-trainer.state.global_step :]  # before them the objective has looked at the model


@pytest.mark.parametrize("mode", ["truncate", "reshape"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_collators_without_padding(is_packed: bool, mode: str, tmp_path: Path) -> None:
    """Lengths for the attention rather than masks, of rows joined or packed."""
    dataset = examples(24)
    if is_packed:
        dataset = tfo.pack(dataset, 64)
    curriculum = tfo.LengthCurriculum(8, 4, end=64, mode=mode)
    seen = masked_run(tmp_path, curriculum, dataset, "unpadded", max_steps=2)
    for inputs, length in zip(seen, (8, 16), strict=True):
        lengths = np.concatenate(packed_examples(inputs, 0))
        assert lengths.max() == length
        ends = set(inputs["cu_seq_lens_q"].tolist())
        width = inputs["input_ids"].shape[1]
        for row, sizes in enumerate(packed_examples(inputs, 0)):
            assert set((row * width + np.cumsum(sizes)).tolist()) <= ends


@pytest.mark.invariant
def test_a_resumed_run_has_the_lengths_of_one_never_stopped(tmp_path: Path) -> None:
    def run(folder: Path, resume: Path | None = None) -> Any:
        curriculum = tfo.LengthCurriculum(4, 4, end=12, mode="reshape", multiple=2)
        guard = tfo.StabilityGuard(snapshot_every=1)
        options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 5}
        trainer = trainer_with(folder, [guard, curriculum], num_rows=24, **options)
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        return trainer

    whole = run(tmp_path / "whole")  # three steps an epoch: stopped within the second
    again = run(tmp_path / "again", tmp_path / "whole" / "checkpoint-3")
    assert torch.equal(weights_of(whole.model), weights_of(again.model))
    later = [entry for entry in history_of(whole) if entry["step"] > 3]
    found = [entry for entry in history_of(again) if entry["step"] > 3]
    assert [e["loss"] for e in found] == [e["loss"] for e in later]
    assert [e["length"] for e in found] == [e["length"] for e in later] == [10, 12]


@pytest.mark.parametrize("how", ["tfopt", "attach"])
def test_a_step_whose_targets_are_all_cut_away_teaches_nothing(how: str, tmp_path: Path) -> None:
    """In the first step, before an objective is chosen, and in a later one."""
    for rows in (range(4), range(4, 8)):
        batch = batch_for(None, 12)
        batch["labels"][list(rows), :8] = -100
        curriculum = tfo.LengthCurriculum(8, 9, end=12)
        trainer, _ = train(tmp_path, tiny("bert"), batch, [curriculum], how, max_steps=3)
        found = losses(trainer)
        assert found[rows[0] // 4] == 0 and sum(loss > 1 for loss in found) == 2
        assert weights_of(trainer.model).isfinite().all()


def test_padding_and_tokens_are_counted_of_what_is_left(tmp_path: Path) -> None:
    batch = batch_for(None, 12)
    batch["attention_mask"][1::2, 6:] = 0
    batch["labels"][1::2, 6:] = -100
    monitor = tfo.ThroughputMonitor(num_warmup_steps=0)
    curriculum = tfo.LengthCurriculum(8, 3, end=12)
    trainer, _ = train(tmp_path, tiny("bert"), batch, [monitor, curriculum])
    assert history_of(trainer)[0]["padding_share"] == pytest.approx(1 / 8)


def test_shorter_batches_are_the_same_objects(tmp_path: Path) -> None:
    """And the list is another one all the same: processes must agree on counting again."""
    trainer = trainer_with(tmp_path, [tfo.LengthCurriculum(12, 4, end=24)])
    kept: list[bool] = []
    curriculum = next(
        c for c in trainer.callback_handler.callbacks if isinstance(c, tfo.LengthCurriculum)
    )
    inner = curriculum.collected

    def collected(training: Any, batches: list[Any]) -> list[Any]:
        found = inner(training, batches)
        is_same = all(new is old for new, old in zip(found, batches, strict=True))
        kept.append(found is not batches and is_same)
        return found

    curriculum.collected = collected
    trainer.train()
    assert kept == [True] * 4


def classifier(**sizes: int) -> Any:
    config = BertConfig(**SIZES | sizes, **NO_DROPOUT, num_labels=2)
    return BertForSequenceClassification(config)


def test_labels_of_rows_stay_and_are_refused_where_rows_become_several(tmp_path: Path) -> None:
    batch = batch_for(None, 12) | {"labels": torch.arange(12) % 2}
    trainer, seen = train(tmp_path, classifier(), batch, [tfo.LengthCurriculum(8, 3, end=12)])
    assert seen[-1]["input_ids"].shape == (4, 8) and trainer.state.global_step == 3
    with pytest.raises(ValueError, match=r"labels have shape \(4,\).*mode='truncate'"):
        curriculum = tfo.LengthCurriculum(8, 3, end=12, mode="reshape")
        train(tmp_path, classifier(), batch, [curriculum])


@pytest.mark.parametrize("implementation", ["sdpa", "unpadded"])
def test_classified_examples_are_the_same_packed_and_padded(
    implementation: str, tmp_path: Path
) -> None:
    rows = examples(24).add_column("labels", [number % 2 for number in range(24)])
    found = []
    for is_packed in (False, True):
        torch.manual_seed(0)
        model = classifier(vocab_size=NUM_IDS)
        if is_packed and implementation == "unpadded":
            tfo.unpadded_attention(model)
        trainer = tfo.TfoptTrainer(
            tfo.packed_classification(model) if is_packed else model,
            arguments(tmp_path, gradient_accumulation_steps=2),
            data_collator=tfo.ClassificationCollator(make_tokenizer(), is_packed=is_packed),
            train_dataset=rows,
            curriculum=tfo.LengthCurriculum(8, 3),
        )
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == pytest.approx(found[1], abs=1e-6)  # float32, kernels add in other orders


def with_(**columns: Callable[[dict[str, torch.Tensor]], torch.Tensor]) -> dict[str, torch.Tensor]:
    batch = batch_for(None, 4)
    return batch | {name: make(batch) for name, make in columns.items()}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"start_positions": lambda b: b["labels"][:, 0]}, "with start_positions: an answer"),
        ({"next_sentence_label": lambda b: b["labels"][:, 0]}, "lost its second sentence"),
        ({"sentence_order_label": lambda b: b["labels"][:, 0]}, "lost its second sentence"),
        ({"shift_labels": lambda b: b["labels"]}, "give labels"),
        ({"input_ids": lambda b: b["input_ids"].view(4, 2, 6)}, "several choices"),
        (
            {"attention_mask": lambda b: torch.ones(4, 1, 12, 12, dtype=torch.bool)},
            "has no position_ids",
        ),
        (
            {
                "attention_mask": lambda b: torch.ones(4, 1, 12, 12, dtype=torch.bool).tril(),
                "position_ids": lambda b: torch.arange(12).expand(4, 12),
            },
            "cannot make them anew",
        ),
    ],
)
def test_batches_that_cutting_would_corrupt(columns: Any, words: str, tmp_path: Path) -> None:
    curriculum = tfo.LengthCurriculum(8, 2, end=12)
    with pytest.raises(ValueError, match=words):
        train(tmp_path, tiny("bert"), with_(**columns), [curriculum], max_steps=1)


def test_models_and_trainers_it_is_not_for(tmp_path: Path) -> None:
    curriculum = tfo.LengthCurriculum(8, 2, end=12)
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder"):
        train(tmp_path, tiny("t5"), batch_for(None, 4), [curriculum])
    stock = Trainer(
        tiny("bert"),
        arguments(tmp_path),
        train_dataset=Columns(batch_for(None, 4)),
        callbacks=[curriculum],
    )
    with pytest.raises(ValueError, match=r"tfo\.attach"):
        stock.train()
    pictures = {"pixel_values": torch.ones(4, 3), "labels": torch.ones(4, 12)}
    with pytest.raises(ValueError, match=r"no input_ids and no inputs_embeds to cut .only pix"):
        train(tmp_path, tiny("bert"), pictures, [curriculum])


def test_an_end_that_is_not_known_or_not_reached(tmp_path: Path, caplog: Any) -> None:
    with pytest.raises(ValueError, match="longest row of the training dataset has 12 tokens"):
        trainer_with(tmp_path, [tfo.LengthCurriculum(16, 2)]).train()

    def rows() -> Any:
        yield from Columns(batch_for(None, 4))

    stream = datasets.IterableDataset.from_generator(rows)
    trainer = trainer_with(tmp_path, [tfo.LengthCurriculum(8, 2)])
    trainer.train_dataset = stream
    with pytest.raises(ValueError, match="give LengthCurriculum an end"):
        trainer.train()
    with caplog.at_level("WARNING"):
        trainer_with(tmp_path, [tfo.LengthCurriculum(8, 20, end=12)], max_steps=1).train()
    assert "full length after 20 steps, but the run ends after 1" in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": 1}, "a row of one token"),
        ({"start": 8.5}, "start must be a whole number"),
        ({"end": 8}, "no row would ever grow"),
        ({"end": 16.0}, "end must be a whole number"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_steps": 2.5}, "num_steps is 2.5"),
        ({"num_steps": "100"}, "num_steps is '100'"),
        ({"mode": "truncat"}, "did you mean 'truncate'"),
        ({"multiple": 0}, "multiple must be"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tfo.LengthCurriculum(**{"start": 8, "num_steps": 100} | options)
