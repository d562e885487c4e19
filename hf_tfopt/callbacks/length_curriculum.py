"""Short sequences first: the length of training's rows grows over the run."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any, Literal, get_args

from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer_utils import unwrap_peft_model

from hf_tfopt.callbacks.base import Intervention
from hf_tfopt.callbacks.training import Scalars, Training
from hf_tfopt.data.curriculum import (
    APART,
    CutRule,
    cut_packed,
    cut_rows,
    is_by_token,
    is_packed,
    is_told_apart,
    sequence_length,
    shape_of,
)
from hf_tfopt.data.model_inputs import ModelFacts
from hf_tfopt.data.row_lengths import row_lengths
from hf_tfopt.optimizers.checks import check_count
from hf_tfopt.registry import check_name

logger = logging.getLogger(__name__)

Mode = Literal["truncate", "reshape"]

# What shorter rows would make wrong, and why.
CORRUPTED = {
    "start_positions": "an answer's place may be cut away, or be another one afterwards",
    "end_positions": "an answer's place may be cut away, or be another one afterwards",
    "next_sentence_label": "a row that is cut may have lost its second sentence",
    "sentence_order_label": "a row that is cut may have lost its second sentence",
    "decoder_input_ids": "the decoder's targets are for the whole input",
    "shift_labels": "they are shifted already, and each is of the token behind it: give labels",
}
CLOSING_TOKENS = ("sep", "eos", "cls")  # XLNet's rows end with cls


class LengthCurriculum(Intervention):
    """Train on short sequences first, that grow linearly to their full length.

    The rows of every training batch are cut to `data.curriculum.sequence_length` of the step, which
    depends on nothing else: a resumed run goes on as one that was never stopped would, and all
    processes have the same length. Items are counted afterwards: the loss is that of a dataset with
    such rows. Shorter rows and evaluation stay as they are. Of packed rows each example is cut.

    | mode | a row longer than L |
    |---|---|
    | "truncate" | keeps its first L tokens; if its last is one that closes rows ([SEP], EOS), its \
      first L - 1 and that one, but of causal models, which would learn to end there |
    | "reshape" | becomes several of about equal size; no token is lost, and none is added: only \
      the first piece has a [CLS], only the last a [SEP] |

    Reshaping makes more rows of a batch, of as many tokens. A causal model loses the target of each
    piece's first token, which it has nothing to predict from. Truncation drops what is at the end
    of rows: where only that has targets (answers behind a prompt), short rows teach nothing.

    It goes into `TfoptTrainer(curriculum=...)`, or into the `callbacks` of it or of `tfo.attach`:
    a stock Trainer does not let its callbacks see batches. On a GPU, a step waits once for each
    micro-batch that is cut. `torch.compile` compiles each length anew: there take a large
    `multiple`.

    | name | what |
    |---|---|
    | `length` | the longest row in tokens that the last step may have had |

    Args:
        start: tokens of a row in the first step, at least 2.
        num_steps: steps until the full length; below 1: a share of the run.
        end: tokens from then on: longer rows are cut to it until the run ends; None: the longest
            row of the training dataset.
        mode: "truncate" or "reshape".
        multiple: the lengths between are multiples of this.
        closing_ids: token ids that close a row; None: [SEP], EOS and CLS of the tokenizer
            (`processing_class`, or of the collator), else of the model's configuration. What a
            batch's `special_tokens_mask` tells goes before.

    Raises:
        ValueError: a number out of its range; when training begins or with the first batch: an
            encoder-decoder, labels that cutting would make wrong (places of answers, pairs of
            sentences; of whole rows, where they are reshaped), several choices to a row, a batch
            without tokens, packed rows with a mask of another kind, a dataset without lengths.

    Paper: Li et al. 2022, "The Stability-Efficiency Dilemma", https://arxiv.org/abs/2108.06084,
    section 4 (truncation, linear growth in steps of 8). Differs: the closing token stays; reshaping
    is not in it.
    """

    _rule: CutRule  # while it trains, like the others
    _num_steps: int
    _end: int

    def __init__(
        self,
        start: int,
        num_steps: float,
        end: int | None = None,
        mode: Mode = "truncate",
        multiple: int = 8,
        closing_ids: Sequence[int] | None = None,
    ):
        super().__init__()
        for name, value in {"start": start, "multiple": multiple}.items():
            check_count(name, value)
        if start < 2:
            raise ValueError(f"start is {start}: a row of one token has nothing to learn from")
        if end is not None:
            check_count("end", end)
            if end <= start:
                raise ValueError(f"end is {end}, start is {start}: no row would ever grow")
        _check_steps(num_steps)
        self.start, self.num_steps, self.end, self.multiple = start, num_steps, end, multiple
        self.mode = check_name("mode", mode, get_args(Mode))
        self.closing_ids = None if closing_ids is None else list(closing_ids)
        self._model: Any = None
        self._facts: ModelFacts | None = None  # since a packed batch was looked at

    def begin(self, training: Training) -> None:
        """See whether it suits the model and the data, and how long the run is."""
        trainer = self.trainer
        if trainer is None:
            raise ValueError(
                "LengthCurriculum changes batches before they are counted, which a stock Trainer's "
                "callbacks cannot: use tfo.TfoptTrainer, or tfo.attach(trainer, callbacks=[...])"
            )
        model: Any = trainer.accelerator.unwrap_model(training.model)
        name = type(unwrap_peft_model(model)).__name__
        config: Any = getattr(model, "config", None)
        if getattr(config, "is_encoder_decoder", False):
            raise ValueError(
                f"{name} is an encoder-decoder: of an input that is cut, the targets would still "
                "be those of the whole; shorten both when tokenizing"
            )
        self._end = self.end or _longest_row(trainer.train_dataset)
        if self._end <= self.start:
            raise ValueError(
                f"start is {self.start}, and the longest row of the training dataset has "
                f"{self._end} tokens: nothing would be cut"
            )
        self._num_steps = _steps(self.num_steps, training.state.max_steps)
        tokenizers = list(_tokenizers(trainer))
        pads = [getattr(each, "pad_token_id", None) for each in (*tokenizers, config)]
        self._rule = CutRule(
            is_reshaped=self.mode == "reshape",
            closing_ids=self._closing_ids([*tokenizers, config]),
            pad_id=next((pad for pad in pads if pad is not None), 0),
            is_causal=name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(),
            multiple=self.multiple,
        )
        self._model, self._facts = model, None

    def _closing_ids(self, sources: Sequence[Any]) -> list[int]:
        """Of the first that knows any; those of the constructor go before."""
        if self.closing_ids is not None:
            return self.closing_ids
        for source in sources:
            found = [getattr(source, f"{role}_token_id", None) for role in CLOSING_TOKENS]
            if any(each is not None for each in found):  # some configurations have lists of them
                lists = [each if isinstance(each, list) else [each] for each in found]
                return [number for ids in lists for number in ids if number is not None]
        return []

    def collected(self, training: Training, batches: list[Any]) -> list[Any]:
        """The micro-batches, cut to the length of this step."""
        step = training.state.global_step
        if self.end is None and step >= self._num_steps:
            return batches
        length = self._length_in(step)
        # a new list in any case: all processes must count again if one of them has to
        return [self._cut(batch, length) for batch in batches]

    def _length_in(self, step: int) -> int:
        return sequence_length(step, self.start, self._end, self._num_steps, self.multiple)

    def _cut(self, batch: Any, length: int) -> Any:
        _refuse(batch, self._rule.is_reshaped)
        if shape_of(batch)[1] <= length:
            return batch
        if is_packed(batch):
            cut = cut_packed(batch, length, self._rule, self._checked_facts(batch))
        else:
            cut = cut_rows(batch, length, self._rule)
        return cut if cut is batch or type(batch) is dict else type(batch)(cut)

    def _checked_facts(self, batch: Mapping[str, Any]) -> ModelFacts:
        """What a packed batch must know of the model, once it has shown how it is packed."""
        if self._facts is not None:
            return self._facts
        facts = ModelFacts.of(self._model)
        if "position_ids" not in batch:
            raise ValueError(
                "the batch tells packed examples apart in its attention, but has no position_ids "
                "to find them by: use tfo.pack, or return_position_ids=True"
            )
        if not is_told_apart(batch, self._rule.pad_id, facts):
            raise ValueError(
                "the batch has an attention_mask or cu_seq_lens other than those that keep the "
                f"examples of its position_ids apart for {facts.name} "
                f"({facts.implementation!r}): LengthCurriculum cannot make them anew"
            )
        self._facts = facts
        return facts

    def release(self) -> None:
        """Forget the model."""
        super().release()
        self._model = self._facts = None

    def scalars(self, training: Training) -> Scalars:
        """The length of the last step."""
        return {"length": self._length_in(max(0, training.state.global_step - 1))}


def _check_steps(num_steps: Any) -> None:
    is_number = isinstance(num_steps, int | float) and not isinstance(num_steps, bool)
    if not (is_number and (0 < num_steps < 1 or (num_steps >= 1 and num_steps == int(num_steps)))):
        raise ValueError(
            f"num_steps is {num_steps!r}; it must be a whole number above 0, or a share of the run "
            "between 0 and 1"
        )


def _steps(num_steps: float, max_steps: int) -> int:
    """The steps of the growth in a run of so many."""
    if num_steps < 1:
        return math.ceil(num_steps * max_steps)
    if num_steps > max_steps:
        logger.warning(
            "LengthCurriculum: rows have their full length after %d steps, but the run ends after "
            "%d; num_steps may be a share of the run (0.3)",
            num_steps,
            max_steps,
        )
    return int(num_steps)


def _longest_row(dataset: Any) -> int:
    if not isinstance(dataset, Sized):
        raise ValueError(
            f"how long rows of a {type(dataset).__name__} may be is not known beforehand: give "
            "LengthCurriculum an end, the longest row in tokens"
        )
    try:
        return int(row_lengths(dataset).max(initial=0))
    except ValueError as error:
        raise ValueError(
            f"the longest row of the training dataset is not known ({error}): give "
            "LengthCurriculum an end, in tokens"
        ) from error


def _tokenizers(trainer: Any) -> Iterator[Any]:
    """The trainer's, and that of its collator, also within ours."""
    if trainer.processing_class is not None:
        yield getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    collator = trainer.data_collator
    while collator is not None:
        if getattr(collator, "tokenizer", None) is not None:
            yield collator.tokenizer
        collator = getattr(collator, "collator", None)


def _refuse(batch: Any, is_reshaped: bool) -> None:
    """Raise ValueError for a batch that would not be the same task if it were cut."""
    if not isinstance(batch, Mapping) or not {"input_ids", "inputs_embeds"} & batch.keys():
        what = f"only {', '.join(batch)}" if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(
            f"the batch has no input_ids and no inputs_embeds to cut ({what}): LengthCurriculum is "
            "for models of text"
        )
    for name, reason in CORRUPTED.items():
        if batch.get(name) is not None:
            raise ValueError(f"LengthCurriculum cannot cut a batch with {name}: {reason}")
    ids: Any = batch.get("input_ids")
    if isinstance(ids, Tensor) and ids.dim() != 2:
        raise ValueError(
            f"input_ids have shape {tuple(ids.shape)}, not [rows, width]: LengthCurriculum does "
            "not know which tokens of several choices to keep"
        )
    if is_reshaped:
        _refuse_values_of_rows(batch)


def _refuse_values_of_rows(batch: Mapping[str, Any]) -> None:
    shape = shape_of(batch)
    for name, value in batch.items():
        has_places = name in APART or is_by_token(name, value, shape)
        if isinstance(value, Tensor) and value.dim() > 0 and not has_places:
            raise ValueError(
                f"{name} have shape {tuple(value.shape)}, not one value for each token "
                f"{shape}: of a row that becomes several, no piece is known to deserve it; use "
                "mode='truncate'"
            )
