"""A training dataset and its batches, which may be others in every epoch, are told the epoch."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_tfopt.data.epoch_clock import EpochCount
from hf_tfopt.data.training_view import seed_lasting_workers


class DatasetEpochs(TrainerCallback):
    """Calls `set_epoch` of the training dataset and the batch sampler before each epoch.

    accelerate does so only in one process, and not in an epoch that a resumed run begins with
    (1.15, data_loader.py, `DataLoaderShard.set_epoch`: a sampler of its own comes first).
    `TfoptTrainer` adds this callback by itself; give it to another Trainer that trains on a
    `tfo.mix(...)`.

    An evaluation tells a dataset another epoch, be it the one that is trained on: it is told that
    of the training again afterwards. (Workers that read ahead meanwhile may have heard the other.)

    Workers that live on (`dataloader_persistent_workers`) get their seed from a generator of their
    own, so that a resumed run is the same.

    Paper: none.
    """

    def __init__(self) -> None:
        self._count = EpochCount()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Give the training DataLoader a generator of its own, where that matters."""
        self._count.start(args, state, train_dataloader)
        seed_lasting_workers(train_dataloader, args)

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Tell the epoch that begins, or that a resumed run goes on with."""
        self._count.begin_epoch()
        self._tell(train_dataloader)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Tell the epoch again: the dataset may be what was evaluated."""
        self._tell(train_dataloader)

    def on_predict(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """As after an evaluation."""
        self.on_evaluate(args, state, control, **kwargs)

    def _tell(self, loader: Any) -> None:
        told: list[Any] = [getattr(loader, "dataset", None)]
        sampler = getattr(loader, "batch_sampler", None)
        while sampler is not None:  # accelerate's own are around it
            told.append(sampler)
            sampler = getattr(sampler, "batch_sampler", None)
        for each in told:
            if hasattr(each, "set_epoch"):
                each.set_epoch(self._count.now)
