"""The collators: rows of token ids -> the batch that a model trains on."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from hf_tfopt.data.batch_form import Filled, Form, Size, place
from hf_tfopt.data.columns import NO_WORD
from hf_tfopt.data.epoch_clock import EpochClock, EpochCount
from hf_tfopt.data.flat_batch import (
    FlatBatch,
    RowLists,
    Rows,
    flat_lists,
    row_lists,
    sentence_labels,
)
from hf_tfopt.data.keyed_bits import CHOICE, Flags, example_keys
from hf_tfopt.data.masking import choose_targets, set_apart
from hf_tfopt.data.masking_kernel import MaskingKernel
from hf_tfopt.data.masking_rule import MaskingRule, check_rate
from hf_tfopt.data.model_inputs import ModelFacts, batch_form, check_devices, model_inputs
from hf_tfopt.data.training_view import loader_inside, seed_lasting_workers, training_view
from hf_tfopt.data.words import num_ids, word_tables


class MaskedLMCollator(TrainerCallback):
    """Masked language modelling: tokens, whole words or spans, in every form of batch.

    Masks are a pure function of (seed, epoch, the example's token ids): the same for any number of
    workers, ranks and restarts, any batch and any packed row, and different every epoch. Give the
    collator to a stock Trainer twice, so that it hears of the epochs and of the model:
    `Trainer(model, ..., data_collator=collator, callbacks=[collator])`. It then trains on the
    masks of the epoch and evaluates on those of epoch 0, always. Called without a Trainer it
    gives the masks of the epoch last set (`set_epoch`), at first 0.

    Rows are dicts (`datasets.Dataset`) or `ArrowRows`, with `input_ids`; `token_type_ids`,
    `word_ids`, and `position_ids` (which mark packed rows: `tfo.pack`) are used if they are there.
    The batch suits the attention of the model it is bound to: padded; in one row without padding
    ("unpadded", "flash_attention_2"); or packed, with what keeps the examples apart. A stock
    Trainer takes `position_ids` out of the rows, unseen here, if the model has none: packed rows
    need `TfoptTrainer` or `attach`, which refuse that, or `remove_unused_columns=False`.

    Args:
        tokenizer: one with a mask and a padding token; a fast one for words and spans.
        unit: what is chosen as a whole: "token", "word", or "span" (of words).
        probability: the share of tokens to guess, in (0, 1); or a function of the epoch that gives
            it, such as `linear_rate(0.3, 0.15, num_epochs)`.
        seed: of the masks.
        model: the model to make batches for; None: that of the Trainer it is a callback of.
        eval_probability: the share in a Trainer's evaluation; None: that of epoch 0.
        mask_fraction: the share of chosen units that become the mask token.
        random_fraction: the share that become random tokens; the rest stay as they are.
        pad_to_multiple_of: the width of every batch is padded to a multiple of this.

    Raises:
        ValueError: an unknown unit, a rate or fraction out of range, a tokenizer without a mask or
            padding token, of a kind that does not tell words, or with more ids than the model.

    Paper: Devlin et al. 2019, BERT (https://arxiv.org/abs/1810.04805), section 3.1; for spans
    Joshi et al. 2020, SpanBERT (https://arxiv.org/abs/1907.10529), section 3.1. Differs: as
    `masking.choose_targets` says, and every example with anything to guess has a target.
    """

    def __init__(
        self,
        tokenizer: Any,
        unit: str = "token",
        probability: float | Callable[[int], float] = 0.15,
        seed: int = 0,
        *,
        model: Any = None,
        eval_probability: float | None = None,
        mask_fraction: float = 0.8,
        random_fraction: float = 0.1,
        pad_to_multiple_of: int | None = None,
    ):
        self.tokenizer = tokenizer  # under this name the host saves it with its checkpoints
        self.rule = _rule(tokenizer, unit, mask_fraction, random_fraction)
        self.seed = seed
        self.probability = probability
        first = self._rate(0)
        self.eval_probability = first if eval_probability is None else check_rate(eval_probability)
        if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of is {pad_to_multiple_of}: allowed is 1 or more")
        self.pad_to_multiple_of = pad_to_multiple_of
        self._pad_id: int = tokenizer.pad_token_id  # looked up once: the property is slow
        special = ~self.rule.maskable
        self._words = None if unit == "token" else word_tables(tokenizer).set_apart(special)
        self._kernel = MaskingKernel(self.rule, self._words)
        self._model: ModelFacts | None = None
        self._clock = EpochClock()
        self._count = EpochCount()
        if model is not None:
            self.bind(model)

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """The batch of these rows: inside a Trainer for evaluation, else for the epoch last set."""
        if self._clock.is_hosted:
            return self._collate(rows, 0, self.eval_probability)
        return self.for_training(rows)

    def for_training(self, rows: Rows) -> dict[str, Any]:
        """The batch of these rows for training in the epoch that was set last."""
        epoch = self._clock.epoch
        return self._collate(rows, epoch, self._rate(epoch))

    def set_epoch(self, epoch: int) -> None:
        """Give the masks of this epoch from now on, also in workers that are running already."""
        self._clock.set_epoch(epoch)

    def bind(self, model: Any) -> None:
        """Make batches for this model; raises ValueError if the tokenizer has more ids than it."""
        facts = ModelFacts.of(model)
        facts.check_ids(len(self.rule.maskable))
        self._model = facts

    def _join(self, args: TrainingArguments, model: Any) -> None:
        self._clock.enter_trainer()
        self.bind(model)
        check_devices(args.n_gpu, self._model is not None and self._model.joins_rows)

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Know that a Trainer tells the epochs, and which model it trains."""
        self._join(args, model)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Put the training masks into the training DataLoader; evaluation keeps its own."""
        self._join(args, model)
        self._count.start(args, state, train_dataloader)
        seed_lasting_workers(train_dataloader, args)
        loader = loader_inside(train_dataloader)
        view = training_view(loader.collate_fn, self)
        if view is not None:
            loader.collate_fn = view
        else:
            warnings.warn(
                "MaskedLMCollator is a callback of this Trainer but not its data_collator (or is "
                "wrapped in a function): if it makes the training batches, all epochs get the "
                "same masks; pass it as data_collator too",
                stacklevel=2,
            )

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch before the DataLoader's workers begin with it."""
        self.set_epoch(self._count.begin_epoch())

    def _rate(self, epoch: int) -> float:
        rate = self.probability
        return check_rate(rate(epoch) if callable(rate) else rate)

    def _collate(self, rows: Rows, epoch: int, probability: float) -> dict[str, Any]:
        lists = row_lists(rows)
        kernel = self._kernel.batch(lists, probability, self.seed, epoch)
        if kernel is None:
            flat = self._flat(lists)
            form = self._form(lists, Size.of(flat.rows))
            filled = self._filled(flat, form, probability, epoch)
        else:
            form = self._form(lists, kernel.size)
            filled = kernel.fill(form, self._clock.is_watching)
            if filled is None:
                self._flat(lists)  # says what is wrong with these rows
                raise AssertionError("nothing is wrong with these rows")
        if filled.keys is not None:
            self._clock.watch(filled.keys)
        return model_inputs(filled, form, self._model, sentence_labels(rows))

    def _form(self, lists: RowLists, size: Size) -> Form:
        has_token_types = "token_type_ids" in lists.columns
        multiple = self.pad_to_multiple_of or 1
        return batch_form(
            size, self._model, lists.is_packed, has_token_types, self._pad_id, multiple
        )

    def _flat(self, lists: RowLists) -> FlatBatch:
        return flat_lists(lists, lists.is_packed, len(self.rule.maskable))

    def _filled(self, batch: FlatBatch, form: Form, probability: float, epoch: int) -> Filled:
        """What the kernel does, with arrays."""
        keys = example_keys(batch.ids, batch.examples, self.seed, epoch)
        starts = self._word_starts(batch)
        targets = choose_targets(batch.ids, batch.examples, keys, self.rule, probability, starts)
        return place(batch, targets, keys[CHOICE], form)

    def _word_starts(self, batch: FlatBatch) -> Flags | None:
        """Where words start, by the rows' own word_ids or by tables; None: units are tokens."""
        if self._words is None:
            return None
        if batch.word_ids is not None:
            starts = np.diff(batch.word_ids, prepend=NO_WORD) != 0
            return set_apart(starts, ~self.rule.maskable[batch.ids])
        bounds = batch.examples
        return self._words.word_starts(batch.ids, bounds[:-1][bounds[1:] > bounds[:-1]])


def _rule(tokenizer: Any, unit: str, mask_fraction: float, random_fraction: float) -> MaskingRule:
    for role in ("mask", "pad"):
        if getattr(tokenizer, f"{role}_token_id") is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has no {role} token, which masked language modelling "
                f"needs: set tokenizer.{role}_token, or take the tokenizer of a masked model"
            )
    known = np.fromiter(tokenizer.get_vocab().values(), dtype=np.int64)
    maskable = np.ones(num_ids(tokenizer), dtype=np.bool_)
    added = tokenizer.added_tokens_decoder.items()
    special = [*tokenizer.all_special_ids, *(i for i, token in added if token.special)]
    maskable[special] = False
    replacements = np.sort(known[maskable[known]])
    return MaskingRule(
        unit, maskable, replacements, tokenizer.mask_token_id, mask_fraction, random_fraction
    )
