"""A run on a stream, stopped and resumed: the same run, and little of the stream is read again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch.utils.data import IterableDataset, get_worker_info
from transformers import BertConfig, BertForMaskedLM

import hf_tfopt as tfo
from tests.callbacks.runs import history_of, weights_of
from tests.data.test_collators import SIZES, WIDTH, examples, make_tokenizer
from tests.test_trainer import arguments

NUM_EXAMPLES, NUM_SHARDS, BUFFER = 160, 4, 10
BATCH = 4
NUM_STEPS = 36  # two and a half passes


class Source:
    """A stream of tokenized examples in shards, that counts how many it was asked for."""

    def __init__(self) -> None:
        self.asked = torch.zeros(2, dtype=torch.int64).share_memory_()  # by worker
        self.dataset = examples(NUM_EXAMPLES)

    def examples(self) -> datasets.IterableDataset:
        return self.dataset.to_iterable_dataset(NUM_SHARDS).map(self._count)

    def packed(self) -> datasets.IterableDataset:
        return tfo.pack_stream(self.examples(), WIDTH, buffer=BUFFER)

    def shuffled(self) -> datasets.IterableDataset:
        return tfo.pack_stream(self.examples().shuffle(3, buffer_size=30), WIDTH, buffer=BUFFER)

    def _count(self, row: dict[str, Any]) -> dict[str, Any]:
        info = get_worker_info()
        self.asked[0 if info is None else info.id] += 1
        return row

    def num_asked(self) -> int:
        """Since the last time."""
        num = int(self.asked.sum())
        self.asked.zero_()
        return num


class Generated(IterableDataset):
    """A stream of nobody's, whose state cannot be had; each worker has every other row."""

    def __init__(self, rows: list[dict[str, Any]]):
        self.rows = rows
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        turned = self.rows[self.epoch :] + self.rows[: self.epoch]
        yield from turned[first::step]


class Watched(tfo.TfoptTrainer):
    """Keeps what it trains on: the rows before they were masked, and what was to be guessed."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.rows: list[torch.Tensor] = []
        self.masks: list[torch.Tensor] = []

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        labels = inputs["labels"]
        self.masks.append(labels != -100)
        self.rows.append(torch.where(labels == -100, inputs["input_ids"], labels))
        return super().training_step(model, inputs, *args)


def make_trainer(
    folder: Path, stream: Any, is_kept: bool = True, resumed: Path | None = None, **options: Any
) -> Watched:
    """Trained, with dropout; a checkpoint of every step."""
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**SIZES))
    settings: dict[str, Any] = {
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 1,
        "disable_tqdm": True,
        **options,
    }
    trainer = Watched(
        model,
        arguments(folder, **settings),
        data_collator=tfo.MaskedLMCollator(make_tokenizer(), probability=0.3),
        train_dataset=stream,
        callbacks=[tfo.StreamState()] if is_kept else [],
    )
    trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    return trainer


def assert_same_run(resumed: Watched, whole: Watched) -> None:
    """Bit for bit: logs, weights, and the batches since."""
    assert history_of(resumed) == history_of(whole)
    assert torch.equal(weights_of(resumed.model), weights_of(whole.model))
    since = whole.rows[-len(resumed.rows) :]
    assert all(torch.equal(a, b) for a, b in zip(resumed.rows, since, strict=True))


def last_steps(whole: Watched) -> list[int]:
    """The last step of each pass."""
    epochs = [entry["epoch"] for entry in history_of(whole)]
    return [step for step, epoch in enumerate(epochs, 1) if epoch == int(epoch)]


@pytest.mark.invariant
@pytest.mark.parametrize("num_workers", [0, 2])
def test_stopped_anywhere_and_resumed(num_workers: int, tmp_path: Path) -> None:
    """In the first and the second pass, at the end of one, and once more in a resumed run."""
    options = {"dataloader_num_workers": num_workers}
    source = Source()
    stream = source.packed()
    source.num_asked()
    whole = make_trainer(tmp_path / "whole", stream, **options)
    all_asked = source.num_asked()
    first, second = last_steps(whole)
    assert second < NUM_STEPS and all_asked > 2 * NUM_EXAMPLES
    folder = tmp_path / "whole"
    for step in (first - 3, first, second - 3):
        stream = source.packed()
        source.num_asked()
        resumed = make_trainer(
            tmp_path / str(step), stream, resumed=folder / f"checkpoint-{step}", **options
        )
        assert_same_run(resumed, whole)
        asked = source.num_asked()
        print(num_workers, step, all_asked, asked, first, second)
        folder = tmp_path / str(step)
