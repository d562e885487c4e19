"""What a Trainer trains on in each step: batches by a plan of ours, changed before they count."""

from collections.abc import Generator, Sized
from copy import copy
from typing import Any

from torch.utils.data import IterableDataset
from transformers.trainer_pt_utils import BatchRebalanceSampler

from hf_tfopt.callbacks.base import Callback
from hf_tfopt.callbacks.training import Training
from hf_tfopt.data.batch_plan import BatchPlan, TrainingRun


class PlannedBatches(BatchRebalanceSampler):
    """The batches of one process, as the host's DataLoader asks for them.

    The host (5.23, trainer.py:1044) takes whole batches from a sampler of this class alone, and
    keeps accelerate from dividing them among the processes once more; nothing else is inherited.
    """

    def __init__(self, plan: BatchPlan, process: int, num_processes: int):  # pyright: ignore[reportMissingSuperCall]
        self.plan = plan
        self.process = process
        self.num_processes = num_processes
        self.epoch = 0
        self._num_batches = len(plan.batches(0))
        assert self._num_batches % num_processes == 0, "a round has a batch for each process"

    def set_epoch(self, epoch: int) -> None:
        """Give the batches of this epoch from now on."""
        self.epoch = epoch

    def of_epoch(self, epoch: int) -> "PlannedBatches":
        """A copy that gives the batches of this epoch."""
        found = copy(self)
        found.set_epoch(epoch)
        return found

    def __len__(self) -> int:
        return self._num_batches // self.num_processes

    def __iter__(self) -> Generator[list[int]]:
        batches = self.plan.batches(self.epoch)
        assert len(batches) == self._num_batches, "the host has counted on as many in every epoch"
        for batch in batches[self.process :: self.num_processes]:
            yield batch.tolist()


class SamePlan(Callback):
    """Tells aloud where a resumed run's plan has made something else of the dataset than before."""

    def begin(self, training: Training) -> None:
        """Compare, and remember."""
        plan: BatchPlan | None = getattr(self.trainer, "batch_plan", None)
        found = None if plan is None else plan.digest()
        before = self.remembered.get("digest", found)
        self.remembered["digest"] = found
        if before != found:
            self.tell(
                training,
                "other rows",
                f"{type(plan).__name__} ranks the rows otherwise than before the run was stopped, "
                "so it does not go on as it would have; scores of the model that is trained must "
                "be computed before it is, and given as an array",
            )


def planned(trainer: Any, plan: BatchPlan) -> PlannedBatches:
    """The sampler of a training, its plan prepared for it."""
    plan.prepare(run_of(trainer))
    args = trainer.args
    process = args.process_index if args.world_size > 1 else 0
    return PlannedBatches(plan, process, max(1, args.world_size))


def run_of(trainer: Any) -> TrainingRun:
    """What the trainer is to do, as a plan needs to know it."""
    args = trainer.args
    return TrainingRun(
        dataset=trainer.train_dataset,
        batch_size=trainer._train_batch_size,  # private: what `auto_find_batch_size` has come to
        num_processes=max(1, args.world_size),
        num_parts=args.gradient_accumulation_steps,
        num_epochs=args.num_train_epochs,
        max_steps=args.max_steps if args.max_steps > 0 else None,
        drop_last=args.dataloader_drop_last,
    )


def adopt_batches(trainer: Any, sampler: Any, curriculum: Any) -> None:
    """Give a `HostsCallbacks` its batch plan, which a curriculum may be, or a callback that is one.

    Raises:
        ValueError: two plans, or one that does not fit the trainer.
    """
    if isinstance(curriculum, Callback):
        trainer.add_callback(curriculum)
        curriculum = None
    plan = sampler if curriculum is None else curriculum
    if plan is None:
        return
    known = [p for p in (trainer.batch_plan, sampler, curriculum) if p is not None]
    if len(known) > 1:
        kinds = " and ".join(type(each).__name__ for each in known)
        raise ValueError(f"{kinds} were given; only one can say which rows make up a batch")
    trainer.batch_plan = checked_plan(trainer, plan)
    trainer.add_callback(SamePlan())


def checked_plan(trainer: Any, plan: Any) -> BatchPlan:
    """The plan, unless the trainer cannot take it or orders its rows already."""
    args, dataset = trainer.args, trainer.train_dataset
    if not isinstance(plan, BatchPlan):
        raise ValueError(
            f"sampler is of type {type(plan).__name__}; it must be one of tfo.SAMPLERS or another "
            "BatchPlan"
        )
    if args.train_sampling_strategy != "random":
        raise ValueError(
            f"args.train_sampling_strategy={args.train_sampling_strategy!r} would silently be "
            f"ignored beside sampler={type(plan).__name__}; leave it out"
        )
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized | None):
        raise ValueError(
            f"{type(plan).__name__} chooses rows by number, but the training dataset "
            f"({type(dataset).__name__}) can only be read in its own order"
        )
    if max(trainer.get_tp_size(), trainer.get_cp_size(), trainer.get_sp_size()) > 1:
        raise ValueError(
            f"{type(plan).__name__} gives every process batches of its own, but tensor, context or "
            "sequence parallelism has several work on the same"
        )
    for name in ("split_batches", "dispatch_batches"):
        if getattr(args.accelerator_config, name):
            raise ValueError(
                f"accelerator_config's {name} divides batches among the processes, but "
                f"{type(plan).__name__} makes one for each; leave it out"
            )
    return plan


def collected(trainer: Any, batches: list[Any]) -> list[Any]:
    """The micro-batches of a step, as the trainer's callbacks want them."""
    handler = trainer.callback_handler
    training = Training(
        trainer.args,
        trainer.state,
        trainer.control,
        handler.model,
        handler.optimizer,
        handler.lr_scheduler,
        handler.train_dataloader,
    )
    wanted = batches
    for callback in handler.callbacks:
        if isinstance(callback, Callback) and batches:
            wanted = callback.collected(training, wanted)
            assert len(wanted) == len(batches), "the host has counted its micro-batches"
    return wanted
