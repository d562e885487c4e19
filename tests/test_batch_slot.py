"""The slot for batch plans: every process trains on its share of the plan, whatever loads it."""

import json
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler
from transformers import Trainer

import hf_tfopt as tfo
from hf_tfopt.batch_slot import PlannedBatches, checked_plan
from hf_tfopt.callbacks.base import Callback
from hf_tfopt.callbacks.dataset_rows import dataset_rows
from hf_tfopt.data.batch_plan import BatchPlan, TrainingRun, in_rounds
from hf_tfopt.data.keyed_bits import Integers, shuffled
from tests.batch_slot_run import (
    NUM_ROWS,
    WAYS,
    Noted,
    Numbered,
    curriculum,
    resumed,
    run,
    trainer_for,
)
from tests.models import tiny
from tests.processes import TwoInterpreters
from tests.test_trainer import arguments


class Shuffled(BatchPlan):
    """Every row once an epoch."""

    def prepare(self, run: TrainingRun) -> None:
        self.run = run

    def batches(self, epoch: int) -> list[Integers]:
        return in_rounds(shuffled(len(self.run.dataset), 9, epoch), self.run)


def planned_rows(plan: BatchPlan, num_epochs: int) -> list[list[int]]:
    return [batch.tolist() for epoch in range(num_epochs) for batch in plan.batches(epoch)]


def given_to(how: str, folder: Path, plan: BatchPlan, **options: Any) -> tuple[Trainer, Noted]:
    """A trainer that has been given a plan in one of the ways there are."""
    settings = {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 2, **options}
    args, data, noted = arguments(folder, **settings), Numbered(), Noted()
    if how == "attach":
        trainer = Trainer(tiny("bert"), args, train_dataset=data)
        return tfo.attach(trainer, sampler=plan, callbacks=[noted]), noted
    name = {"sampler": plan} if how == "sampler" else {"curriculum": plan}
    made = tfo.TfoptTrainer(tiny("bert"), args, train_dataset=data, callbacks=[noted], **name)
    return made, noted


@pytest.mark.parametrize("how", ["sampler", "curriculum", "attach"])
@pytest.mark.parametrize("way", WAYS)
def test_trains_on_the_batches_of_the_plan(how: str, way: str, tmp_path: Path) -> None:
    if how == "curriculum" and way == "workers":
        return  # the same as sampler=
    plan = Shuffled()
    trainer, noted = given_to(how, tmp_path, plan, **WAYS[way])
    trainer.train()
    assert list(chain(*noted.steps)) == planned_rows(plan, 2)
    # 61 rows in batches of 4 are 16 batches, so 8 steps of two
    assert trainer.state.max_steps == 16 and [len(step) for step in noted.steps] == [2] * 16
    assert sorted(chain(*chain(*noted.steps[:8]))) == list(range(NUM_ROWS))


def test_what_does_not_fill_a_round_is_left_out_if_asked(tmp_path: Path) -> None:
    plan = Shuffled()
    options = {"dataloader_drop_last": True, "gradient_accumulation_steps": 4}
    trainer, noted = given_to("sampler", tmp_path, plan, **options)
    trainer.train()
    assert list(chain(*noted.steps)) == planned_rows(plan, 2)
    assert [len(step) for step in noted.steps] == [4, 4, 4, 3] * 2
    assert all(len(batch) == 4 for step in noted.steps for batch in step)


def test_the_share_of_a_process() -> None:
    plan = Shuffled()
    plan.prepare(TrainingRun(range(50), 3, num_processes=4))
    shares = [PlannedBatches(plan, process, 4) for process in range(4)]
    for epoch in (0, 3, 1):
        for share in shares:
            share.set_epoch(epoch)
        rounds = list(zip(*shares, strict=True))
        assert [list(batch) for round_ in rounds for batch in round_] == [
            batch.tolist() for batch in plan.batches(epoch)
        ]
        assert sorted(chain(*chain(*rounds))) == list(range(50))
    assert [len(share) for share in shares] == [len(rounds)] * 4
    loader = DataLoader(list(range(50)), batch_sampler=shares[3])
    epoch_1, epoch_2 = [[batch.tolist() for batch in plan.batches(e)[3::4]] for e in (1, 2)]
    assert dataset_rows(loader, 2, [0, 3]) == [epoch_2[0], epoch_2[3]]
    assert list(shares[3]) == epoch_1, "looking leaves it as it is"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """One process, four micro-batches of 4 in a step; checkpoints after every second step."""
    folder = tmp_path_factory.mktemp("alone")
    return folder, run("plain", folder, save_strategy="steps", save_steps=2)


@pytest.mark.invariant
@pytest.mark.parametrize("step", [2, 4, 6, 8])
def test_a_stopped_run_goes_on_as_if_never_stopped(
    step: int, alone: tuple[Path, dict[str, Any]]
) -> None:
    """Within the first epoch, at its end, and in the one in which everything becomes eligible."""
    folder, whole = alone
    assert whole["max_steps"] == 12
    options = WAYS["workers"] if step == 6 else {}
    found = resumed(folder, step, **options)
    assert found["steps"] == whole["steps"][step:]
    assert found["losses"] == whole["losses"]
    assert found["weights"] == whole["weights"]


@pytest.mark.parametrize("has_learned", [False, True])
def test_scores_that_are_others_after_a_stop_are_told(has_learned: bool, tmp_path: Path) -> None:
    """As of the model that is trained itself."""

    def score(data: Numbered) -> torch.Tensor:
        return data.ids[:, 2 if is_resumed and has_learned else 1]

    events: list[list[Any]] = []
    for is_resumed in (False, True):
        plan = tfo.DifficultyCurriculum(score, 6, 0.1)
        trainer, _ = trainer_for(tmp_path, plan, max_steps=3, save_strategy="steps", save_steps=2)
        trainer.train(resume_from_checkpoint=is_resumed and str(tmp_path / "checkpoint-2"))
        history = trainer.state.log_history
        events.append([event for entry in history for event in entry.get("events", [])])
    assert events[0] == [] and len(events[1]) == has_learned
    assert all("ranks the rows otherwise" in event["text"] for event in events[1])


@pytest.mark.invariant
def test_a_stopped_run_goes_on_with_the_step_cut_in_another_way(
    alone: tuple[Path, dict[str, Any]],
) -> None:
    folder, whole = alone
    found = resumed(folder, 6, per_device_train_batch_size=8, gradient_accumulation_steps=2)
    assert [list(chain(*step)) for step in found["steps"]] == [
        list(chain(*step)) for step in whole["steps"][6:]
    ]
    # fp32 sums of the same numbers in another order, over some steps
    assert found["losses"] == pytest.approx(whole["losses"], rel=1e-5)


def test_the_rows_are_those_of_the_curriculum(alone: tuple[Path, dict[str, Any]]) -> None:
    plan = curriculum()
    plan.prepare(TrainingRun(Numbered(), 4, num_parts=4, num_epochs=3))
    assert list(chain(*alone[1]["steps"])) == planned_rows(plan, 3)
    easiest = [len({row for batch in step for row in batch}) for step in alone[1]["steps"]]
    assert easiest == [16, 16, 16, 13] * 3, "no row is twice in a step"
    assert sorted(chain(*chain(*alone[1]["steps"][8:]))) == list(range(NUM_ROWS))


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory, two_interpreters: TwoInterpreters
) -> list[dict[str, Any]]:
    """What each of two processes makes of it, two micro-batches of 4 in a step; in one start."""
    folder = tmp_path_factory.mktemp("both")
    out = folder / "out.json"
    two_interpreters.run(Path(__file__).with_name("batch_slot_run.py"), out, folder)
    return json.loads(out.read_text())


@pytest.mark.invariant
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_see_together_what_one_does(
    way: str, both: list[dict[str, Any]], tmp_path: Path
) -> None:
    one = run("plain", tmp_path, optim="sgd")
    assert [sorted(chain(*step)) for step in one["steps"]] == [
        sorted(chain(*first, *second))
        for first, second in zip(both[0][way]["steps"], both[1][way]["steps"], strict=True)
    ]
    for found in both:
        # fp32 sums of the same numbers in another order, over some steps
        assert found[way]["losses"] == pytest.approx(one["losses"], rel=2e-6)
        assert found[way]["weights"] == pytest.approx(one["weights"], rel=2e-6)


@pytest.mark.invariant
def test_two_processes_stopped_go_on_as_if_never_stopped(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert found["resumed"]["steps"] == found["plain"]["steps"][6:]
        assert found["resumed"]["losses"] == found["plain"]["losses"]
        assert found["resumed"]["weights"] == found["plain"]["weights"]


def test_the_host_takes_whole_batches_of_each_process(
    both: list[dict[str, Any]], tmp_path: Path
) -> None:
    """What `PlannedBatches` rests on; when this fails, the host treats its own sampler anew."""
    trainer, _ = trainer_for(tmp_path, Shuffled())
    loader = trainer.get_train_dataloader()
    assert type(loader.batch_sampler) is PlannedBatches and loader.batch_size is None
    assert [found["around"] for found in both] == [["BatchSamplerShard", 1, 0]] * 2

    class Plain(Sampler[Any]):
        def __init__(self) -> None:
            pass

        def __len__(self) -> int:
            return 4

    trainer._get_train_sampler = lambda *_: Plain()
    cut = trainer.get_train_dataloader().batch_sampler
    assert type(cut) is BatchSampler, "the host takes batches of any sampler now: do not derive"


def test_an_automatic_batch_size_is_planned_for(tmp_path: Path) -> None:
    """The host begins anew with less; the first try ends in its first step."""
    plan, tried = Shuffled(), []

    class Full(Callback):
        def before_step(self, training: Any) -> None:
            if plan.run.batch_size not in tried:
                tried.append(plan.run.batch_size)
            if plan.run.batch_size > 4:
                raise RuntimeError("CUDA out of memory.")

    settings = {"auto_find_batch_size": True, "per_device_train_batch_size": 5, "max_steps": 3}
    trainer, noted = given_to("sampler", tmp_path, plan, **settings)
    trainer.add_callback(Full())
    trainer.train()
    assert tried == [5, 4]
    assert list(chain(*noted.steps[-3:])) == planned_rows(plan, 1)[:6]


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(Numbered())


REFUSED: dict[str, tuple[dict[str, Any], Any, str]] = {
    "no plan": ({}, [0, 1, 2], "sampler is of type list; it must be one of tfo.SAMPLERS"),
    "a class": ({}, Shuffled, "sampler is of type type"),
    "a strategy": (
        {"train_sampling_strategy": "group_by_length"},
        Shuffled(),
        "train_sampling_strategy='group_by_length' would silently be ignored",
    ),
    "split batches": (
        {"accelerator_config": {"split_batches": True}},
        Shuffled(),
        "split_batches divides batches",
    ),
    "dispatched batches": (
        {"accelerator_config": {"dispatch_batches": True}},
        Shuffled(),
        "dispatch_batches divides batches",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_would_be_ignored(name: str, tmp_path: Path) -> None:
    options, plan, message = REFUSED[name]
    args = arguments(tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        tfo.TfoptTrainer(tiny("bert"), args, train_dataset=Numbered(), sampler=plan)


def test_refuses_a_stream_and_a_second_plan(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    with pytest.raises(ValueError, match="Stream\\) can only be read in its own order"):
        tfo.TfoptTrainer(tiny("bert"), args, train_dataset=Stream(), sampler=Shuffled())
    both = {"sampler": Shuffled(), "curriculum": curriculum()}
    with pytest.raises(ValueError, match="Shuffled and DifficultyCurriculum were given; only one"):
        tfo.TfoptTrainer(tiny("bert"), args, train_dataset=Numbered(), **both)
    trainer, _ = given_to("sampler", tmp_path, Shuffled())
    with pytest.raises(ValueError, match="only one can say which rows"):
        tfo.attach(trainer, sampler=curriculum())


@pytest.mark.parametrize("sizes", [(2, 1, 1), (1, 2, 1), (1, 1, 2)])
def test_refuses_processes_that_need_the_same_batch(
    sizes: tuple[int, int, int], tmp_path: Path
) -> None:
    trainer = SimpleNamespace(
        args=arguments(tmp_path),
        train_dataset=Numbered(),
        get_tp_size=lambda: sizes[0],
        get_cp_size=lambda: sizes[1],
        get_sp_size=lambda: sizes[2],
    )
    with pytest.raises(ValueError, match="has several work on the same"):
        checked_plan(trainer, Shuffled())


def test_a_plan_that_does_not_fit_says_so_before_training(tmp_path: Path) -> None:
    trainer, noted = given_to("sampler", tmp_path, tfo.DifficultyCurriculum("length", 3))
    trainer.train_dataset = torch.utils.data.Subset(Numbered(), [])
    with pytest.raises(ValueError, match="no rows"):
        trainer.train()
    assert not noted.steps
