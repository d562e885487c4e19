"""MaskedLMCollator in the host's own Trainer: workers, epochs, evaluation, resuming."""

import copy
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from hf_tfopt.data.collators import MaskedLMCollator
from hf_tfopt.data.packing import pack
from hf_tfopt.data.rows import ArrowRows
from hf_tfopt.surgery.attention import unpadded_attention
from tests.data.test_collators import NUM_IDS, SIZES, examples, make_tokenizer

logging.set_verbosity_error()

Labels = list[list[int]]


class Seen(TrainerCallback):
    """The labels of every training and evaluation batch, as the model was given them."""

    def __init__(self) -> None:
        self.training: list[torch.Tensor] = []
        self.evaluation: list[torch.Tensor] = []

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        model.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, model: Any, _: Any, inputs: dict[str, Any]) -> None:
        (self.training if model.training else self.evaluation).append(inputs["labels"])

    def by_epoch(self, num_epochs: int) -> list[Labels]:
        """What was to be guessed in each epoch, in whatever order and padding."""
        size = len(self.training) // num_epochs
        parts = [self.training[i * size : (i + 1) * size] for i in range(num_epochs)]
        return [sorted(row.tolist() for batch in part for row in batch) for part in parts]


def make_trainer(
    folder: Path, dataset: Any, is_callback: bool = True, dropout: float = 0.0, **options: Any
) -> tuple[Trainer, Seen]:
    torch.manual_seed(0)
    config = BertConfig(**SIZES, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    collator = MaskedLMCollator(make_tokenizer(), "word", 0.3)
    seen = Seen()
    trainer = Trainer(
        BertForMaskedLM(config),
        TrainingArguments(str(folder), **settings | options),
        data_collator=collator,
        train_dataset=dataset,
        eval_dataset=dataset,
        callbacks=[*([collator] if is_callback else []), seen],
    )
    return trainer, seen


class Lists(Dataset[dict[str, Any]]):
    """Neither of `datasets` nor ours: the host wraps the collator."""

    def __init__(self, dataset: datasets.Dataset):
        self.rows = list(dataset)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index] | {"text": "a column that no model takes"}


def equally_long(num: int = 16) -> datasets.Dataset:
    """Rows of one length, so that labels can be compared without padding."""
    return datasets.Dataset.from_dict(
        {
            "input_ids": [
                [2, *(5 + (i * 17 + 7 * j) % 195 for j in range(12)), 3] for i in range(num)
            ]
        }
    )


def test_masks_do_not_depend_on_workers_and_change_with_the_epoch(tmp_path: Path) -> None:
    found = []
    for workers, is_persistent, kind in (
        (0, False, datasets.Dataset),
        (0, False, ArrowRows),
        (0, False, Lists),
        (2, False, ArrowRows),
        (2, True, ArrowRows),
    ):
        dataset = equally_long()
        trainer, seen = make_trainer(
            tmp_path,
            dataset if kind is datasets.Dataset else kind(dataset),
            dataloader_num_workers=workers,
            dataloader_persistent_workers=is_persistent,
            num_train_epochs=3,
        )
        trainer.train()
        found.append(seen.by_epoch(3))
    first = found[0]
    assert all(epochs == first for epochs in found)
    assert first[0] != first[1] != first[2] != first[0]


def test_evaluation_has_the_same_masks_before_between_and_after_epochs(tmp_path: Path) -> None:
    trainer, seen = make_trainer(tmp_path, ArrowRows(equally_long()), eval_strategy="epoch")
    before = trainer.evaluate()["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == before
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    logged = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    assert logged[-1] == logged[-2] == after != before  # the last epoch's, and this one
    size = len(seen.evaluation) // 5
    passes = [torch.cat(seen.evaluation[i * size : (i + 1) * size]) for i in range(5)]
    assert all(torch.equal(labels, passes[0]) for labels in passes)
    assert sorted(passes[0].tolist()) == seen.by_epoch(2)[0]  # those of epoch 0
    assert sorted(passes[0].tolist()) != seen.by_epoch(2)[1]


@pytest.mark.parametrize("persistent", [False, True])
def test_evaluation_in_workers_keeps_its_masks(tmp_path: Path, persistent: bool) -> None:
    trainer, seen = make_trainer(
        tmp_path,
        ArrowRows(equally_long()),
        eval_strategy="epoch",
        dataloader_num_workers=1,
        dataloader_persistent_workers=persistent,
    )
    trainer.train()
    first, second = seen.evaluation[: len(seen.evaluation) // 2], seen.evaluation[2:]
    assert torch.equal(torch.cat(first), torch.cat(second))


def test_the_rate_of_evaluation_is_its_own(tmp_path: Path) -> None:
    trainer, seen = make_trainer(tmp_path, ArrowRows(equally_long()))
    collator: Any = trainer.data_collator
    collator.eval_probability = 0.9
    trainer.train()
    trainer.evaluate()
    share = (torch.cat(seen.evaluation) != -100).sum() / (16 * 12)
    assert share > 0.75  # 192 tokens at 0.9, six standard deviations; 0.3 in training
    assert (torch.cat(seen.training) != -100).sum() / (2 * 16 * 12) < 0.5


def test_a_collator_that_hears_of_no_epoch_says_so(tmp_path: Path) -> None:
    trainer, seen = make_trainer(tmp_path, ArrowRows(equally_long()), is_callback=False)
    with pytest.warns(UserWarning, match=r"for training pass callbacks=\[collator\]"):
        trainer.train()
    first, second = seen.by_epoch(2)
    assert first == second


def test_a_callback_that_is_no_collator_says_so(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, equally_long())
    collator: Any = trainer.data_collator
    trainer.data_collator = lambda rows: collator(rows)
    with pytest.warns(UserWarning, match="but not its data_collator"):
        trainer.train()


def test_wrappers_of_the_collator_are_kept_and_not_shared(tmp_path: Path) -> None:
    class Wrapper:
        def __init__(self, collator: Any):
            self.collator = collator

        def __call__(self, rows: Any) -> Any:
            return self.collator(rows)

    trainer, seen = make_trainer(tmp_path, ArrowRows(equally_long()))
    collator = trainer.data_collator
    trainer.data_collator = Wrapper(collator)
    trainer.train()
    assert trainer.data_collator.collator is collator
    first, second = seen.by_epoch(2)
    assert first != second


@pytest.mark.parametrize("is_packed", [False, True])
def test_the_batch_suits_the_trainers_model(tmp_path: Path, is_packed: bool) -> None:
    dataset = examples(16)
    trainer, seen = make_trainer(tmp_path, ArrowRows(pack(dataset, 64) if is_packed else dataset))
    unpadded_attention(trainer.model)  # after the collator was bound
    trainer.train()
    total = sum(map(len, dataset["input_ids"]))
    tokens = sum(labels.numel() for labels in seen.training[: len(seen.training) // 2])
    assert tokens >= total if is_packed else tokens == total
    assert trainer.state.log_history[-1]["train_loss"] > 0


def test_the_tokenizer_is_saved_with_the_model(tmp_path: Path) -> None:
    trainer, _ = make_trainer(tmp_path, equally_long())
    trainer.save_model(str(tmp_path / "model"))
    assert (tmp_path / "model" / "tokenizer.json").exists()


def test_a_model_smaller_than_the_tokenizer_stops_before_training(tmp_path: Path) -> None:
    collator = MaskedLMCollator(make_tokenizer())
    model = BertForMaskedLM(BertConfig(**SIZES | {"vocab_size": NUM_IDS - 1}))
    with pytest.raises(ValueError, match="resize_token_embeddings"):
        Trainer(
            model,
            TrainingArguments(str(tmp_path), report_to="none", use_cpu=True),
            data_collator=collator,
            train_dataset=equally_long(),
            callbacks=[collator],
        )


@pytest.mark.invariant
@pytest.mark.parametrize(
    ("workers", "is_persistent", "dropout"), [(0, False, 0.1), (2, False, 0.1), (2, True, 0.1)]
)
def test_a_run_that_stops_goes_on_bit_for_bit(
    tmp_path: Path, workers: int, is_persistent: bool, dropout: float
) -> None:
    """From a checkpoint in the middle of an epoch: equal losses and weights to the last bit."""

    def run(folder: Path, checkpoint: Path | None = None) -> tuple[dict[int, float], Any]:
        trainer, _ = make_trainer(
            folder,
            ArrowRows(examples(40)),
            dropout=dropout,
            gradient_accumulation_steps=2,
            num_train_epochs=3,  # of 10 batches, 5 steps
            save_strategy="steps",
            save_steps=2,
            dataloader_num_workers=workers,
            dataloader_persistent_workers=is_persistent,
        )
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        history = [row for row in trainer.state.log_history if "loss" in row]
        return {row["step"]: row["loss"] for row in history}, copy.deepcopy(
            trainer.model.state_dict()
        )

    losses, weights = run(tmp_path / "whole")
    for step in (2, 8, 10):  # in the middle of the first and second epoch, and at the third's begin
        folder = tmp_path / f"from_{step}"
        found, resumed = run(folder, tmp_path / "whole" / f"checkpoint-{step}")
        assert found == losses
        assert all(torch.equal(value, resumed[name]) for name, value in weights.items())
