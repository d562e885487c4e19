"""A training dataset that is another one in every epoch is told which epoch it is."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class DatasetEpochs(TrainerCallback):
    """Calls the training dataset's `set_epoch`, if it has one, before each epoch.

    accelerate does so only in one process, and not in an epoch that a resumed run begins with
    (1.15, data_loader.py, `DataLoaderShard.set_epoch`: a sampler of its own comes first).
    `TfoptTrainer` adds this callback by itself; give it to another Trainer that trains on a
    `tfo.mix(...)`.

    Paper: none.
    """

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Tell the epoch that begins, or that a resumed run goes on with."""
        set_epoch = getattr(getattr(train_dataloader, "dataset", None), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(int(state.epoch or 0))
