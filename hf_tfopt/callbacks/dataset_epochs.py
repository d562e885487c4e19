"""A training dataset and its batches, which may be others in every epoch, are told the epoch."""

import math
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class DatasetEpochs(TrainerCallback):
    """Calls `set_epoch` of the training dataset and the batch sampler before each epoch.

    accelerate does so only in one process, and not in an epoch that a resumed run begins with
    (1.15, data_loader.py, `DataLoaderShard.set_epoch`: a sampler of its own comes first).
    `TfoptTrainer` adds this callback by itself; give it to another Trainer that trains on a
    `tfo.mix(...)`.

    Where an epoch ends early (a stream, whose length the host takes to be `max_steps`), the host's
    `state.epoch` stays a fraction of it for all that follow: it is made the number of the next.

    Workers that live on (`dataloader_persistent_workers`) get their seed from a generator of their
    own: drawn from the one that dropout uses, it would be drawn once in a run and once more in a
    resumed one, which would then not be the same.

    Paper: none.
    """

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Give the training DataLoader a generator of its own, where that matters."""
        # accelerate wraps the DataLoader, and setting an attribute does not reach the one inside
        loader = getattr(train_dataloader, "base_dataloader", train_dataloader)
        if args.dataloader_persistent_workers and loader is not None:
            loader.generator = torch.Generator().manual_seed(args.seed + args.process_index)

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Tell the epoch that begins, or that a resumed run goes on with."""
        told: list[Any] = [getattr(train_dataloader, "dataset", None)]
        sampler = getattr(train_dataloader, "batch_sampler", None)
        while sampler is not None:  # accelerate's own are around it
            told.append(sampler)
            sampler = getattr(sampler, "batch_sampler", None)
        for each in told:
            if hasattr(each, "set_epoch"):
                each.set_epoch(int(state.epoch or 0))

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count an epoch that ended early as one."""
        if not control.should_training_stop:
            state.epoch = float(math.ceil(state.epoch or 0))
