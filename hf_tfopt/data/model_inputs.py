"""The form of a batch that suits a model and its attention, and the arguments of its forward."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn

from hf_tfopt.data.batch_form import IGNORED, Filled, Form, Size
from hf_tfopt.data.flat_batch import SENTENCE_LABELS
from hf_tfopt.data.keyed_bits import Integers
from hf_tfopt.data.segments import segment_inputs

__all__ = [
    "IGNORED",
    "ModelFacts",
    "batch_form",
    "check_devices",
    "check_length",
    "model_inputs",
    "unwrapped",
]


@dataclass(frozen=True)
class ModelFacts:
    """What a batch must know of the model it is for; the model itself would not fit a worker.

    Args:
        name: the model's class.
        config: its configuration, which holds the attention implementation of the moment.
        arguments: the names that its forward takes.
        num_ids: rows of its input embedding.
        first_position: the position id of an example's first token.
        num_positions: the longest example; None where the configuration sets no limit.
        keeps_apart: its attention is the host's common one, which can separate packed examples, and
            nothing else in it joins neighbours.
        dtype: of its weights.
    """

    name: str
    config: Any
    arguments: frozenset[str]
    num_ids: int
    first_position: int
    num_positions: int | None
    keeps_apart: bool
    dtype: torch.dtype

    @classmethod
    def of(cls, model: Any) -> Self:
        """Read the facts from a `PreTrainedModel`, whatever is around it (`unwrapped`, PEFT).

        Raises:
            ValueError: what its forward takes cannot be read, as something else is around it.
        """
        model = unwrapped(model)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT's
        config, embedding = base.config, base.get_input_embeddings()
        sized = isinstance(embedding, nn.Embedding)  # its weight may be sharded: ask the module
        arguments = frozenset(inspect.signature(base.forward).parameters)
        if "input_ids" not in arguments:
            raise ValueError(
                f"{type(base).__name__}.forward takes {', '.join(sorted(arguments))}, and no "
                "input_ids: give the model of transformers itself, without a wrapper"
            )
        first = _first_position(base)
        positions: int | None = getattr(config, "max_position_embeddings", None)
        return cls(
            name=type(base).__name__,
            config=config,
            arguments=arguments,
            num_ids=embedding.num_embeddings if sized else config.vocab_size,
            first_position=first,
            num_positions=positions - first if positions and positions > 0 else None,
            # MobileBERT joins each word's embedding with its neighbours' before all attention
            keeps_apart=base._supports_attention_backend
            and not getattr(config, "trigram_input", False),
            dtype=base.dtype,
        )

    def check_ids(self, num_ids: int) -> None:
        """Raise ValueError if the tokenizer has more ids than the input embedding."""
        if num_ids > self.num_ids:
            raise ValueError(
                f"the tokenizer has {num_ids} ids, the input embedding of {self.name} only "
                f"{self.num_ids}: call model.resize_token_embeddings({num_ids})"
            )

    @property
    def implementation(self) -> str:
        """The attention implementation of the moment: "sdpa", "unpadded", ..."""
        return self.config._attn_implementation

    @property
    def joins_rows(self) -> bool:
        """Whether this model takes a whole batch as one row without padding."""
        is_unmasked = self.implementation.startswith(("unpadded", "flash_attention"))
        return is_unmasked and self.keeps_apart

    @property
    def layer_windows(self) -> Mapping[str, int | None] | None:
        """Half-width of the attention window by type of layer, where layers differ (ModernBERT)."""
        types: Sequence[str] | None = getattr(self.config, "layer_types", None)
        if types is None:
            return None
        windows = {"full_attention": None, "sliding_attention": self.config.sliding_window}
        return {name: windows[name] for name in set(types)}


def unwrapped(model: Any) -> Any:
    """The model without compilation, DDP or FSDP around it, in any order; adapters stay."""
    while (inner := extract_model_from_parallel(model, keep_torch_compile=False)) is not model:
        model = inner
    return model


def _first_position(model: nn.Module) -> int:
    """RoBERTa and its kin number positions from padding_idx + 1, all others from 0."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def batch_form(
    size: Size,
    model: ModelFacts | None,
    is_packed: bool,
    has_token_types: bool,
    pad_id: int,
    multiple: int = 1,
) -> Form:
    """How these rows lie in the batch of this model.

    Rows of one example: each in a row of the batch, padded; or, where the attention takes lengths
    (`joins_rows`), all in one row. Packed rows: padded.

    Args:
        size: of the rows.
        model: the facts of the model; None: rows of one example only.
        is_packed: whether rows hold several examples each.
        has_token_types: whether rows have token types; they are used if the model takes them.
        pad_id: the token id in padding.
        multiple: the width is padded to a multiple of this.

    Raises:
        ValueError: packed rows without a model or for one that mixes them up; a row too long.
    """
    if is_packed:
        _check_separable(model)
    is_apart = is_packed or (model is not None and model.joins_rows)
    is_joined = is_apart and not is_packed
    longest = size.num_tokens if is_joined else size.longest
    width = -(-longest // multiple) * multiple
    if not is_apart:
        check_length(model, width)
    return Form(
        (1 if is_joined else size.num_rows, width),
        is_joined,
        is_apart,
        has_token_types and (model is None or "token_type_ids" in model.arguments),
        pad_id,
        0 if model is None else model.first_position,
    )


def model_inputs(
    filled: Filled, form: Form, model: ModelFacts | None, labels: Integers | None
) -> dict[str, Any]:
    """The keyword arguments of the model's forward.

    Args:
        filled: the tensors that tokens alone fill.
        form: of the batch.
        model: the facts of the model.
        labels: of pairs of sentences.

    Raises:
        ValueError: an example too long.
    """
    inputs: dict[str, Any] = filled.tensors
    if labels is not None:
        inputs |= _sentence_label(labels, model)
    if filled.ends is None:
        return inputs
    assert model is not None
    check_length(model, filled.longest)
    return inputs | segment_inputs(
        np.diff(filled.ends, prepend=0),
        form.shape,
        model.implementation,
        layer_windows=model.layer_windows,
        dtype=model.dtype,
    )


def _sentence_label(labels: Integers, model: ModelFacts | None) -> dict[str, torch.Tensor]:
    """The label of each pair, under the name that the model's head has for it, if it has one."""
    known = SENTENCE_LABELS[:1]
    if model is not None:
        known = [name for name in SENTENCE_LABELS if name in model.arguments]
    return {name: torch.from_numpy(labels) for name in known}


def _check_separable(model: ModelFacts | None) -> None:
    if model is None:
        raise ValueError(
            "the rows are packed (they have position_ids), and it depends on the model's attention "
            "how examples are kept apart: pass model=... to the collator, or callbacks=[collator] "
            "to the Trainer"
        )
    if not model.keeps_apart:
        raise ValueError(
            f"{model.name} has an attention of its own, or joins neighbours' embeddings, and would "
            "mix packed examples: leave out tfo.pack for it, or take a model with the common "
            "attention (BERT, RoBERTa, ModernBERT)"
        )


def check_devices(num_gpus: int, has_joined_rows: bool) -> None:
    """Raise ValueError if several GPUs in one process would share a batch that cannot be cut."""
    if num_gpus > 1 and has_joined_rows:
        raise ValueError(
            f"{num_gpus} GPUs in one process (DataParallel) would cut batches whose examples share "
            "rows: start one process for each with torchrun, or give padded rows (sdpa, and "
            "is_packed=False for classification)"
        )


def check_length(model: ModelFacts | None, longest: int) -> None:
    """Raise ValueError if the model has no positions for an example of this length."""
    if model is not None and model.num_positions is not None and longest > model.num_positions:
        raise ValueError(
            f"an example of {longest} tokens does not fit the {model.num_positions} positions of "
            f"{model.name}: tokenize with max_length={model.num_positions}"
        )
