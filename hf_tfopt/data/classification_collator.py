"""Rows with labels -> one batch, padded or without padding, for any head that classifies."""

from typing import Any

import numpy as np
import torch
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from hf_tfopt.data.example_labels import IGNORED, Labels, fitting, labels_of
from hf_tfopt.data.flat_batch import FlatBatch, Rows, flatten
from hf_tfopt.data.model_inputs import ModelFacts, check_devices, check_length
from hf_tfopt.data.packed_rows import example_starts, in_rows, placed, row_inputs, share_rows
from hf_tfopt.data.training_view import loader_inside, training_view
from hf_tfopt.data.words import num_ids


class ClassificationCollator(TrainerCallback):
    """Batches for classification and regression of sequences, pairs and tokens, without padding.

    The examples of a batch lie end to end in one row where the attention takes lengths ("unpadded",
    "flash_attention_2"); else they share rows as long as the longest of them, kept apart by
    a mask (sdpa, eager). The head of a sequence classifier must read each example's first token,
    `tfo.packed_classification(model)`: labels and logits are then one for each example, in their
    order. Heads of tokens read every position as they are, and are packed in training only
    (`for_training`): metrics must find each example in a row of its own.

    Give it to a stock Trainer twice, so that it hears of the model and of the training:
    `Trainer(model, ..., data_collator=collator, callbacks=[collator])`.

    Rows are dicts (`datasets.Dataset`) or `ArrowRows`, with `input_ids`; `token_type_ids` if they
    are there; and "labels", "label" or "label_ids", as `labels_of` reads them, or none.

    Args:
        tokenizer: has the padding token.
        model: the model to make batches for; None: that of the Trainer it is a callback of.
        is_packed: whether to leave padding out; False: padded, one row for each example.
        pad_to_multiple_of: the width of every batch is padded to a multiple of this.

    Raises:
        ValueError: in a batch, rows that are empty, padded or packed already, or longer than the
            model's positions; labels that do not fit; no model, or one that cannot be packed.

    Paper: Krell et al. 2021, https://arxiv.org/abs/2107.02027. Differs: examples share a row within
    their batch only, so that batches hold the same examples as padded ones.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        model: Any = None,
        is_packed: bool = True,
        pad_to_multiple_of: int | None = None,
    ):
        if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of is {pad_to_multiple_of}: allowed is 1 or more")
        if tokenizer.pad_token_id is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has no pad token: set tokenizer.pad_token"
            )
        self.tokenizer = tokenizer  # under this name the host saves it with its checkpoints
        self.is_packed = is_packed
        self.pad_to_multiple_of = pad_to_multiple_of
        self._pad_id: int = tokenizer.pad_token_id  # looked up once: the property is slow
        ends = (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id)
        self._pads_alone = self._pad_id not in ends
        self._num_ids = num_ids(tokenizer)
        self._model: ModelFacts | None = None
        self._reads_starts = False
        if model is not None:
            self.bind(model)

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """The batch of these rows for evaluation, and for training where heads read examples."""
        return self._collate(rows, is_training=False)

    def for_training(self, rows: Rows) -> dict[str, Any]:
        """The batch of these rows for training."""
        return self._collate(rows, is_training=True)

    def bind(self, model: Any) -> None:
        """Make batches for this model; raises ValueError if the tokenizer has more ids than it."""
        facts = ModelFacts.of(model)
        facts.check_ids(self._num_ids)
        self._model = facts
        # what tfo.packed_classification leaves on the model, whatever is wrapped around it
        self._reads_starts = any(
            getattr(module, "reads_example_starts", False) for module in model.modules()
        )

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Know which model is trained."""
        check_devices(args.n_gpu, self.is_packed)
        self.bind(model)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Put the batches of training into the training DataLoader."""
        self.bind(model)
        loader = loader_inside(train_dataloader)
        loader.collate_fn = training_view(loader.collate_fn, self) or loader.collate_fn

    def _collate(self, rows: Rows, is_training: bool) -> dict[str, Any]:
        batch = self._flat(rows)
        lengths = np.diff(batch.rows)
        labels = labels_of(rows, lengths)
        if labels is not None and self._model is not None:
            labels = fitting(labels, self._model.config)
        is_apart = self._is_apart(labels, is_training)
        longest, order = int(lengths.max()), np.arange(len(rows))
        check_length(self._model, longest if is_apart else self._rounded(longest))
        if is_apart and self._model is not None:
            if self._model.joins_rows:
                batch = batch._replace(rows=batch.rows[[0, -1]])
            else:
                batch, order, places = share_rows(batch, self._rounded(longest))
                if labels is not None and labels.is_by_token:
                    labels = labels._replace(values=labels.values[places])
        width = self._rounded(int(np.diff(batch.rows).max()))
        inputs = row_inputs(batch, self._model, is_apart, self._pad_id, width)
        if is_apart and self._reads_starts:
            inputs["example_starts"] = torch.from_numpy(example_starts(batch, order, width))
            inputs["num_examples"] = len(rows)
        if labels is not None:
            inputs["labels"] = (
                placed(labels.values, in_rows(batch, width), IGNORED)
                if labels.is_by_token
                else torch.from_numpy(labels.values)
            )
        return inputs

    def _rounded(self, width: int) -> int:
        multiple = self.pad_to_multiple_of or 1
        return -(-width // multiple) * multiple

    def _is_apart(self, labels: Labels | None, is_training: bool) -> bool:
        """Whether the examples of this batch are packed; raises ValueError where they cannot be."""
        if not self.is_packed:
            return False
        if self._model is None:
            raise ValueError(
                "how examples are kept apart without padding depends on the model's attention: "
                "pass model=... to the collator, or callbacks=[collator] to the Trainer; or give "
                "is_packed=False"
            )
        name, is_by_token = self._model.name, labels is not None and labels.is_by_token
        if self._reads_starts and is_by_token:
            raise ValueError(f"the rows have labels of tokens, but {name} classifies examples")
        if labels is not None and not self._reads_starts and not is_by_token:
            raise ValueError(
                f"the head of {name} would read the first example of each packed row only: call "
                "tfo.packed_classification(model) before the Trainer is made, or give "
                "is_packed=False"
            )
        if not self._model.keeps_apart:  # the surgery has tried what it was given
            raise ValueError(
                f"{name} has an attention of its own, or joins neighbours' embeddings, and would "
                "mix packed examples: give is_packed=False"
            )
        return self._reads_starts or (is_training and is_by_token)

    def _flat(self, rows: Rows) -> FlatBatch:
        if "position_ids" in rows[0]:
            raise ValueError(
                "the rows are packed already (they have position_ids), and tfo.pack leaves labels "
                "behind: give unpacked rows, whose examples this collator packs by itself"
            )
        batch = flatten(rows, False, self._num_ids)
        empty = np.flatnonzero(np.diff(batch.rows) == 0)
        if len(empty):
            raise ValueError(f"row {empty[0]} of a batch has no tokens: leave empty rows out")
        ends = batch.ids[[*batch.rows[:-1], *(batch.rows[1:] - 1)]]
        if self._pads_alone and (ends == self._pad_id).any():
            raise ValueError(
                "the rows are padded already (one begins or ends with the padding token): tokenize "
                "with padding=False"
            )
        return batch
