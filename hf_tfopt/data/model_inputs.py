"""A flat batch of examples -> the tensors that a model with its attention implementation takes."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from hf_tfopt.data.flat_batch import SENTENCE_LABELS, FlatBatch
from hf_tfopt.data.keyed_bits import Integers
from hf_tfopt.data.masking_rule import Targets
from hf_tfopt.data.segments import attention_inputs

IGNORED = -100  # the label that every loss of the host leaves out


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
        """Read the facts from a `PreTrainedModel`, also inside DistributedDataParallel or PEFT."""
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        base = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT's
        config, embedding = base.config, base.get_input_embeddings()
        sized = isinstance(embedding, nn.Embedding)  # its weight may be sharded: ask the module
        first = _first_position(base)
        positions: int | None = getattr(config, "max_position_embeddings", None)
        return cls(
            name=type(base).__name__,
            config=config,
            arguments=frozenset(inspect.signature(base.forward).parameters),
            num_ids=embedding.num_embeddings if sized else config.vocab_size,
            first_position=first,
            num_positions=positions - first if positions and positions > 0 else None,
            # MobileBERT joins each word's embedding with its neighbours' before all attention
            keeps_apart=base._supports_attention_backend
            and not getattr(config, "trigram_input", False),
            dtype=base.dtype,
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


def _first_position(model: nn.Module) -> int:
    """RoBERTa and its kin number positions from padding_idx + 1, all others from 0."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def model_inputs(
    batch: FlatBatch,
    targets: Targets,
    model: ModelFacts | None,
    packed: bool,
    pad_id: int,
    multiple: int = 1,
) -> dict[str, Any]:
    """The keyword arguments of the model's forward.

    Rows of one example: padded, with a 2-D attention mask; or, where the attention takes lengths
    (`joins_rows`), all in one row. Packed rows: padded, with position ids that restart and what
    this attention needs to keep examples apart (`segments.attention_inputs`).

    Args:
        batch: the examples; the model sees `targets.inputs` in them (written into `batch.ids`).
        targets: what is to be guessed; labels are -100 elsewhere.
        model: the facts of the model; None: rows of one example only.
        packed: whether rows hold several examples each.
        pad_id: the token id in padding.
        multiple: the width is padded to a multiple of this.

    Raises:
        ValueError: packed rows without a model or for one that mixes them up; a row too long.
    """
    _check_separable(model, packed)
    apart = packed or (model is not None and model.joins_rows)
    rows = batch.rows if packed or not apart else batch.rows[[0, -1]]
    width = -(-_longest(rows) // multiple) * multiple
    _check_length(model, _longest(batch.examples) if apart else width)
    where = _where(rows, width)
    shape = (len(rows) - 1, width)
    batch.ids[targets.positions] = targets.inputs
    at = targets.positions if where is None else where[targets.positions]
    inputs: dict[str, Any] = {
        "input_ids": _place(batch.ids, where, shape, pad_id),
        "labels": _place(targets.labels, at, shape, IGNORED),
    }
    if batch.token_types is not None and (model is None or "token_type_ids" in model.arguments):
        inputs["token_type_ids"] = _place(batch.token_types, where, shape, 0)
    if batch.sentence_labels is not None:
        inputs |= _sentence_label(batch.sentence_labels, model)
    if apart:
        assert model is not None
        segments = np.split(np.diff(batch.examples), batch.examples.searchsorted(rows[1:-1]))
        inputs |= _kept_apart([s[s > 0] for s in segments], width, model)
    else:
        inputs["attention_mask"] = (
            torch.from_numpy(np.ones(shape, dtype=np.int64))
            if where is None
            else _place(1, where, shape, 0)
        )
    return inputs


def _sentence_label(labels: Integers, model: ModelFacts | None) -> dict[str, torch.Tensor]:
    """The label of each pair, under the name that the model's head has for it, if it has one."""
    known = SENTENCE_LABELS[:1]
    if model is not None:
        known = [name for name in SENTENCE_LABELS if name in model.arguments]
    return {name: torch.from_numpy(labels) for name in known}


def _longest(bounds: Integers) -> int:
    return int((bounds[1:] - bounds[:-1]).max())


def _where(rows: Integers, width: int) -> Integers | None:
    """The place of each flat token among rows of `width` filled up on the right; None: its own."""
    lengths = rows[1:] - rows[:-1]
    if rows[-1] == width * len(lengths):
        return None
    skipped = np.arange(len(lengths)) * width - rows[:-1]
    return np.arange(rows[-1]) + np.repeat(skipped, lengths)


def _place(values: Any, where: Integers | None, shape: tuple[int, int], fill: int) -> torch.Tensor:
    if where is None:
        return torch.from_numpy(values.reshape(shape))
    padded = np.full(shape[0] * shape[1], fill)
    padded[where] = values
    return torch.from_numpy(padded.reshape(shape))


def _kept_apart(segments: Sequence[Integers], width: int, model: ModelFacts) -> dict[str, Any]:
    """Position ids that restart with each example (padding is one too), and the attention's own."""
    count = np.arange(width)
    lengths = [n for row in segments for n in [*row.tolist(), width - int(row.sum())]]
    positions = np.concatenate([count[:n] for n in lengths]).reshape(-1, width)
    return {
        "position_ids": torch.from_numpy(positions + model.first_position),
        **attention_inputs(
            segments,
            width,
            model.implementation,
            layer_windows=model.layer_windows,
            dtype=model.dtype,
        ),
    }


def _check_separable(model: ModelFacts | None, packed: bool) -> None:
    if packed and model is None:
        raise ValueError(
            "the rows are packed (they have position_ids), and it depends on the model's attention "
            "how examples are kept apart: pass model=... to the collator, or callbacks=[collator] "
            "to the Trainer"
        )
    if packed and model is not None and not model.keeps_apart:
        raise ValueError(
            f"{model.name} has an attention of its own, or joins neighbours' embeddings, and would "
            "mix packed examples: leave out tfo.pack for it, or take a model with the common "
            "attention (BERT, RoBERTa, ModernBERT)"
        )


def _check_length(model: ModelFacts | None, longest: int) -> None:
    if model is not None and model.num_positions is not None and longest > model.num_positions:
        raise ValueError(
            f"an example of {longest} tokens does not fit the {model.num_positions} positions of "
            f"{model.name}: tokenize with max_length={model.num_positions}"
        )
