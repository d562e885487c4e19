"""A run on a stream, stopped and resumed: the same run, and little of the stream is read again."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from torch.utils.data import IterableDataset, get_worker_info
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainerCallback

import hf_tfopt as tfo
from hf_tfopt.surgery.attention import unpadded_attention
from tests.callbacks.runs import history_of, weights_of
from tests.data.test_collators import SIZES, WIDTH, examples, make_tokenizer
from tests.test_trainer import arguments

NUM_EXAMPLES, NUM_SHARDS, BUFFER = 160, 5, 10
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


class SavedAt(TrainerCallback):
    """Asks for a checkpoint after some of the steps."""

    def __init__(self, steps: Sequence[int]):
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = state.global_step in self.steps


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


def trained(
    folder: Path,
    stream: Any,
    saved_at: Sequence[int] = (),
    resumed: Path | None = None,
    is_kept: bool = True,
    **options: Any,
) -> Watched:
    """After a training with dropout on packed rows."""
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(**SIZES))
    settings: dict[str, Any] = {
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
    }
    if not is_kept:  # the only way to have none
        settings["accelerator_config"] = {"dispatch_batches": True}
    trainer = Watched(
        model,
        arguments(folder, **settings | options),
        data_collator=tfo.MaskedLMCollator(make_tokenizer(), probability=0.3),
        train_dataset=stream,
        callbacks=[*([tfo.StreamState()] if is_kept else []), SavedAt(saved_at)],
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
    """In the first pass, at its end in a resumed run, and from there in the second pass."""
    options = {"dataloader_num_workers": num_workers}
    source = Source()
    stops, last = ((15, 27), 15) if num_workers else ((11, 14, 25), 14)
    folder = tmp_path / "whole"
    whole = trained(folder, source.packed(), stops[:1], **options)
    assert last_steps(whole) == [last, 2 * last]
    source.num_asked()
    for place, step in enumerate(stops):
        later, stream = stops[place + 1 :], source.packed()
        source.num_asked()
        resumed = trained(
            tmp_path / str(step), stream, later, folder / f"checkpoint-{step}", **options
        )
        assert_same_run(resumed, whole)
        folder = tmp_path / str(step)
    # of the second pass there were three steps left, of the third one more than five: 8 / 14 of it,
    # what was read ahead, and 16 rows and a buffer of each worker again
    assert source.num_asked() < 1.4 * NUM_EXAMPLES


def test_passes_have_their_own_masks_and_order_and_the_epoch_counts_them(tmp_path: Path) -> None:
    """With what resumes a stream, and without it."""
    kept, plain = (
        trained(tmp_path, Source().packed(), is_kept=is_kept, max_steps=28)
        for is_kept in (True, False)
    )
    for one, other in zip([*kept.rows, *kept.masks], [*plain.rows, *plain.masks], strict=True):
        assert torch.equal(one, other)
    assert history_of(plain)[14]["epoch"] == history_of(kept)[14]["epoch"] == 1 + 1 / 28
    examples_of = [masks_by_example(kept, slice(i, i + 14)) for i in (0, 14)]
    assert examples_of[0].keys() == examples_of[1].keys()
    differing = sum(examples_of[0][ids] != examples_of[1][ids] for ids in examples_of[0])
    assert differing > 0.8 * NUM_EXAMPLES
    passes = zip(kept.rows[:14], kept.rows[14:], strict=True)
    assert not all(torch.equal(one, other) for one, other in passes), "shards in another order"


def masks_by_example(trainer: Watched, batches: slice) -> dict[tuple[int, ...], tuple[bool, ...]]:
    """Examples begin with token 2 and end with 3."""
    found: dict[tuple[int, ...], tuple[bool, ...]] = {}
    for rows, masks in zip(trainer.rows[batches], trainer.masks[batches], strict=True):
        for row, mask in zip(rows.tolist(), masks.tolist(), strict=True):
            ends = [place + 1 for place, token in enumerate(row) if token == 3]
            for begin, end in zip([0, *ends], ends, strict=False):
                found[tuple(row[begin:end])] = tuple(mask[begin:end])
    return found


def test_the_host_alone_reads_all_again_and_only_in_the_first_pass(tmp_path: Path) -> None:
    """What it is for; when this fails, the host was mended and the docstring must say so."""
    source = Source()
    whole = trained(tmp_path, source.packed(), (11, 25), is_kept=False, max_steps=28)
    found = []
    for step in (11, 25):
        stream = source.packed()
        source.num_asked()
        at = tmp_path / f"checkpoint-{step}"
        resumed = trained(tmp_path / "2", stream, (), at, is_kept=False, max_steps=28)
        found.append((resumed, source.num_asked()))
    (in_first, asked), (in_second, _) = found
    assert_same_run(in_first, whole)
    assert asked == 2 * NUM_EXAMPLES
    assert torch.equal(in_second.rows[0], whole.rows[14]), "the second pass from its begin"


@pytest.mark.invariant
@pytest.mark.parametrize("kind", ["shuffled", "generated", "persistent", "accumulated"])
def test_streams_and_loaders_of_all_kinds(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped in the second pass; said once if the pass must be read again."""
    source = Source()
    options = {"max_steps": 24, "dataloader_num_workers": 2}
    if kind == "persistent":
        options["dataloader_persistent_workers"] = True
    if kind == "accumulated":  # 14 batches and a half, so to say: a pass ends within a step
        options |= {"gradient_accumulation_steps": 4, "max_steps": 8, "dataloader_num_workers": 0}
    rows = list(source.packed())
    make = {"shuffled": source.shuffled, "generated": lambda: Generated(rows)}
    stop = 6 if kind == "accumulated" else 20
    runs = []
    with caplog.at_level(logging.WARNING):
        for folder, at in (("whole", None), ("resumed", tmp_path / f"whole/checkpoint-{stop}")):
            stream = make.get(kind, source.packed)()
            runs.append(trained(tmp_path / folder, stream, [stop], at, **options))
    assert_same_run(runs[1], runs[0])
    assert len(runs[1].rows) < len(runs[0].rows) / 2
    warned = [r for r in caplog.records if "reads the current pass again" in r.getMessage()]
    assert len(warned) == (2 if kind in ("shuffled", "generated") else 0)


def test_a_stream_of_less_than_a_batch_or_nothing(tmp_path: Path) -> None:
    """Each pass is a step; with nothing to read the host stops by itself."""
    rows = list(Source().packed())

    def stream() -> datasets.IterableDataset:
        numbers = datasets.Dataset.from_dict({"n": [0, 1]}).to_iterable_dataset()
        return numbers.map(lambda row: rows[row["n"]], remove_columns=["n"])

    whole = trained(tmp_path, stream(), [3], max_steps=5)
    assert [entry["epoch"] for entry in history_of(whole)] == [1, 2, 3, 4, 5]
    at = tmp_path / "checkpoint-3"
    assert_same_run(trained(tmp_path / "2", stream(), (), at, max_steps=5), whole)
    nothing = trained(tmp_path / "3", stream().filter(lambda row: False), max_steps=5)
    assert nothing.state.global_step == 0


@pytest.mark.parametrize("is_evaluated", [False, True])
def test_batches_in_one_row_arrive_whole(is_evaluated: bool, tmp_path: Path) -> None:
    """accelerate's dispatcher would cut `cu_seq_lens_q` to as many as there are rows."""
    model = unpadded_attention(BertForMaskedLM(BertConfig(**SIZES)))
    trainer = tfo.TfoptTrainer(
        model,
        arguments(tmp_path, max_steps=1),
        data_collator=tfo.MaskedLMCollator(make_tokenizer()),
        train_dataset=Source().packed(),
        eval_dataset=Source().packed(),
    )
    if is_evaluated:
        assert trainer.evaluate()["eval_loss"] > 0
        return
    assert trainer.train().global_step == 1


def test_an_example_longer_than_a_row(tmp_path: Path) -> None:
    stream = tfo.pack_stream(Source().examples(), 16, buffer=BUFFER)
    with pytest.raises(ValueError, match="do not fit a row of 16 tokens"):
        trained(tmp_path, stream, max_steps=2)


def test_what_would_not_be_the_same_run_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, Source().packed(), [1], max_steps=2)
    at = tmp_path / "checkpoint-1"
    with pytest.raises(ValueError, match="resume with 0"):
        trained(tmp_path / "2", Source().packed(), (), at, max_steps=2, dataloader_num_workers=1)
    other = tfo.pack_stream(Source().examples(), WIDTH, buffer=BUFFER, seed=1)
    with pytest.raises(ValueError, match="must be the same stream"):
        trained(tmp_path / "2", other, (), at, max_steps=2)
    again = trained(tmp_path / "2", Source().packed(), (), at, max_steps=2, ignore_data_skip=True)
    assert again.args.ignore_data_skip, "asked for: the stream from its begin"
    assert again.state.global_step == 2


class Several(SimpleNamespace):
    """A Trainer of two processes, which weak references can be had of."""


def test_trainers_and_processes_it_cannot_serve(tmp_path: Path) -> None:
    model = BertForMaskedLM(BertConfig(**SIZES))
    stream, callbacks = Source().packed(), [tfo.StreamState()]
    args = arguments(tmp_path)
    with pytest.raises(ValueError, match="give it to a TfoptTrainer"):
        Trainer(model, args, train_dataset=stream, callbacks=callbacks).train()
    trainer = Several(args=SimpleNamespace(world_size=2))
    state, data = tfo.StreamState(), SimpleNamespace(dataset=stream)
    state.join(trainer)
    with pytest.raises(ValueError, match="of one process, but there are 2"):
        state.begin(SimpleNamespace(args=trainer.args, data=data))
