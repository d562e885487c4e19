"""Rows of token ids -> the batch of a causal model: padded, in one row, or packed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.distributed as dist
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from hf_tfopt.data.causal_inputs import causal_inputs, targets_of
from hf_tfopt.data.columns import joined
from hf_tfopt.data.flat_batch import FlatBatch, Rows, flatten
from hf_tfopt.data.keyed_bits import Integers
from hf_tfopt.data.model_inputs import IGNORED, ModelFacts, check_devices, unwrapped
from hf_tfopt.data.separation import Documents, why_mixed
from hf_tfopt.data.words import num_ids


class CausalLMCollator(TrainerCallback):
    """Causal language modelling: each token is guessed from those before it in its document.

    The labels are the token ids, but -100 in padding and at the first token of each document,
    which no token of its own comes before: `sum(len(document) - 1)` targets, whatever the batch.
    The model shifts them. A token is padding by its place, not by its id: an end-of-text token that
    is the padding token too is learned.

    Rows are dicts (`datasets.Dataset`) or `ArrowRows` with `input_ids`, without padding; `labels`
    of their own are used if they are there (-100: not a target, such as a prompt; packing takes
    them along), and `position_ids` mark packed rows (`tfo.pack`). The batch suits the model it is
    bound to:

    | rows | attention | batch |
    |---|---|---|
    | of one document | any | padded on the right, a 2-D `attention_mask` |
    | of one document | unpadded, flash_attention_* | all in one row; `position_ids` restart |
    | packed | sdpa, eager, flex_attention | padded; `position_ids` restart, of which the host \
      makes the mask (also of sliding windows); no `attention_mask`, no cache |
    | packed | unpadded, flash_attention_* | padded; and `cu_seq_lens_q`, ..., where documents end |

    For the last three the model is tried out when it is bound: documents of a packed row must give
    what they give alone, with a gradient of exactly 0 towards their neighbours. Models whose state
    runs over the row (Mamba, RWKV), or that have no positions to restart (Bloom), take padded rows
    only.

    Args:
        tokenizer: of the rows; it needs no padding token.
        model: the model to make batches for; None: that of the Trainer it is a callback of
            (`TfoptTrainer` and `attach` see to that; a stock Trainer needs `callbacks=[collator]`).
        labels: the column of the rows' own labels; None: the token ids always.
        pad_to_multiple_of: the width of every batch is padded to a multiple of this.

    A stock Trainer takes `position_ids` out of the rows, unseen here, if the model has none: the
    packed rows then look like one document each. `TfoptTrainer` and `attach` refuse that; else give
    `remove_unused_columns=False`, and this refuses them.

    Raises:
        ValueError: a tokenizer with more ids than the model, a model that is not causal; in a
            batch, rows that are padded, labels that do not fit their tokens, a document longer than
            the model's positions, or packed rows for a model that would mix their documents.

    Paper: none (masking between documents: Grattafiori et al. 2024, "The Llama 3 Herd of Models",
    https://arxiv.org/abs/2407.21783, section 3.2).
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        model: Any = None,
        labels: str | None = "labels",
        pad_to_multiple_of: int | None = None,
    ):
        self.tokenizer = tokenizer  # under this name the host saves it with its checkpoints
        if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of is {pad_to_multiple_of}: allowed is 1 or more")
        self.labels = labels
        self.pad_to_multiple_of = pad_to_multiple_of
        self._num_ids = num_ids(tokenizer)
        # any id will do: nothing sees it, and it is no target
        self._pad_id: int = tokenizer.pad_token_id or 0
        self._model: ModelFacts | None = None
        self._implementation: str | None = None  # that which was tried out
        self._why_mixed: str | None = None
        if model is not None:
            self.bind(model)

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """The batch of these rows."""
        is_packed = "position_ids" in rows[0]
        batch = flatten(rows, is_packed, self._num_ids)
        targets = targets_of(rows, batch, self.labels, self._num_ids)
        if is_packed:
            self._check_separable()
        return self._inputs(batch, targets, is_packed, not is_packed and self._joins_rows())

    def bind(self, model: Any) -> None:
        """Make batches for this model, and try out whether it keeps packed documents apart.

        The model, its training mode and the random numbers are left as they were.

        Raises:
            ValueError: the tokenizer has more ids than the model, or the model is not causal.
        """
        model = unwrapped(model)
        facts = ModelFacts.of(model)
        facts.check_ids(self._num_ids)
        if getattr(facts.config, "is_encoder_decoder", False):
            raise ValueError(
                f"{facts.name} is an encoder and a decoder: its labels are other tokens than its "
                "inputs; take DataCollatorForSeq2Seq of transformers"
            )
        self._model = facts
        self._implementation = facts.implementation
        self._why_mixed = self._try_out(model, facts)

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Know which model the Trainer trains, now that it is where it will be."""
        if not self._is_known(model):
            self.bind(model)
        check_devices(args.n_gpu, self._joins_rows())

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """The same, as a search makes new models and the attention may have been switched.

        All processes try the model out, or none: parts of a sharded one wait for one another.
        """
        if not all(_of_all_processes(self._is_known(model))):
            self.bind(model)
        reasons = _of_all_processes(self._why_mixed)
        self._why_mixed = next((reason for reason in reasons if reason is not None), None)
        check_devices(args.n_gpu, self._joins_rows())

    def _is_known(self, model: Any) -> bool:
        """Whether this very model was tried out, and found to keep documents apart."""
        facts, config = self._model, getattr(unwrapped(model), "config", None)
        is_tried = facts is not None and config is facts.config and self._is_tried(facts)
        return is_tried and self._why_mixed is None

    def _is_tried(self, model: ModelFacts) -> bool:
        """Whether its attention is still the one that was tried out."""
        return model.implementation == self._implementation

    def _try_out(self, model: Any, facts: ModelFacts) -> str | None:
        if "position_ids" not in facts.arguments:
            return "its forward takes no position_ids, which would restart with each document"
        if facts.joins_rows and getattr(facts.config, "attention_chunk_size", None):
            return "its chunks of attention are counted along the row"  # longer than what is tried
        special = self.tokenizer.all_special_ids
        ids = np.setdiff1d(np.arange(self._num_ids), special)

        def packed(rows: Sequence[Documents]) -> dict[str, Any]:
            return self._inputs(*_documents(rows), is_packed=True)

        def padded(rows: Sequence[Documents]) -> dict[str, Any]:
            return self._inputs(*_documents(rows), is_packed=False)

        return why_mixed(model, packed, padded, ids, facts.implementation)

    def _joins_rows(self) -> bool:
        """Whether rows of one document each are put into one row."""
        model = self._model
        if model is None or self._why_mixed is not None:
            return False
        return model.joins_rows and self._is_tried(model)

    def _check_separable(self) -> None:
        if self._model is None:
            raise ValueError(
                "the rows are packed (they have position_ids), and it depends on the model how "
                "documents are kept apart: pass model=... to the collator, or "
                "callbacks=[collator] to the Trainer"
            )
        name = self._model.name
        if not self._is_tried(self._model):
            raise ValueError(
                f"the attention of {name} was {self._implementation!r} when the collator was bound "
                f"to it, and is {self._model.implementation!r} now: call collator.bind(model) again"
            )
        if self._why_mixed is not None:
            raise ValueError(
                f"{name} would mix the documents of packed rows: {self._why_mixed}. Leave out "
                "tfo.pack for it, try tfo.unpadded_attention(model), or take a model with the "
                "host's common attention and position ids (GPT-2, Llama, Mistral, Qwen)"
            )

    def _inputs(
        self, batch: FlatBatch, targets: Integers, is_packed: bool, is_joined: bool = False
    ) -> dict[str, Any]:
        multiple = self.pad_to_multiple_of or 1
        return causal_inputs(
            batch, targets, self._model, is_packed, is_joined, self._pad_id, multiple
        )


def _of_all_processes(fact: Any) -> list[Any]:
    """What each process that trains along says."""
    if not (dist.is_available() and dist.is_initialized()):
        return [fact]
    facts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(facts, fact)
    return facts


def _documents(rows: Sequence[Documents]) -> tuple[FlatBatch, Integers]:
    """Rows of documents as a flat batch; nothing is a target."""
    ids, examples = joined([document for row in rows for document in row])
    ends = np.cumsum([0, *map(len, rows)])
    return FlatBatch(ids, examples[ends], examples), np.full_like(ids, IGNORED)
