"""Batches of short sequences: the length of a step, and every row of a batch cut to it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from hf_tfopt.data.keyed_bits import Flags, Integers
from hf_tfopt.data.model_inputs import IGNORED, ModelFacts
from hf_tfopt.data.pieces import Layout, Pieces, laid_out, reshaped, truncated
from hf_tfopt.data.segments import UNMASKED, SameSegment, attention_inputs, segment_lengths

# What padding holds, where it is not 0 (the token ids' is the tokenizer's).
FILLS = {"labels": IGNORED, "special_tokens_mask": 1}
# Arguments that keep packed examples apart: made anew for the examples that are left.
APART = ("attention_mask", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")

STARTS = "example_starts"  # of packed rows that are classified: the place of each example's first


def sequence_length(step: int, start: int, end: int, num_steps: int, multiple: int = 8) -> int:
    """The tokens of a row in a step: linear growth, rounded down.

    L = start + (end - start) * min(step / num_steps, 1);  max(start, L - L mod multiple)

    Args:
        step: finished steps of the run, at least 0.
        start: tokens in the first step.
        end: tokens from step `num_steps` on, not rounded.
        num_steps: of the growth, at least 1.
        multiple: lengths between are multiples of this.

    Paper: Li et al. 2022, https://arxiv.org/abs/2108.06084, section 4 (the linear pacing function
    and its rounding to multiples of 8). Differs: neither start nor end is rounded.
    """
    if step >= num_steps:
        return end
    length = start + (end - start) * step // num_steps
    return max(start, length - length % multiple)


class CutRule(NamedTuple):
    """How batches are cut.

    Args:
        is_reshaped: what is cut off becomes another example, so that no token is lost; else it is
            dropped.
        closing_ids: token ids that stay at the end of an example that is cut short.
        pad_id: the token id in padding.
        is_causal: the model's loss shifts the labels: nothing is there to predict a piece's first.
        multiple: the size of reshaped pieces is a multiple of this, where the length allows it.
    """

    is_reshaped: bool
    closing_ids: Sequence[int] = ()
    pad_id: int = 0
    is_causal: bool = False
    multiple: int = 1

    def pieces(
        self, batch: Mapping[str, Any], begins: Integers, sizes: Integers, length: int
    ) -> Pieces:
        """The pieces of a batch's examples."""
        if self.is_reshaped:
            return reshaped(begins, sizes, length, self.multiple)
        return truncated(begins, sizes, length, self._closing(batch))

    def _closing(self, batch: Mapping[str, Any]) -> Flags | None:
        special, ids = batch.get("special_tokens_mask"), batch.get("input_ids")
        if isinstance(special, Tensor) and not self.is_causal:
            return _read(special.ne(0)).reshape(-1)
        if ids is None or not self.closing_ids or self.is_causal:
            return None
        return np.isin(_read(ids).reshape(-1), self.closing_ids)

    def rearranged(self, batch: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
        """Every entry with a value for each token in the new layout; the others as they are."""
        shape, device = shape_of(batch), _given(batch).device
        source, standing, nth = (torch.from_numpy(places).to(device) for places in layout)
        is_padding, fills = source < 0, {**FILLS, "input_ids": self.pad_id}
        is_no_target = is_padding | (nth == 0) if self.drops_firsts else is_padding

        # a closing token ends the sentence that is left, and has its type
        stands = ("position_ids",) if self.is_reshaped else ("position_ids", "token_type_ids")

        def moved(name: str, value: Tensor) -> Tensor:
            places = standing if name in stands else source
            taken = value.flatten(0, 1)[places.clamp(min=0)]
            is_filled = is_no_target if name == "labels" else is_padding
            is_filled = is_filled.view(*is_filled.shape, *[1] * (taken.dim() - 2))
            return taken.masked_fill_(is_filled, fills.get(name, 0))

        return {
            name: moved(name, value) if is_by_token(name, value, shape) else value
            for name, value in batch.items()
        }

    @property
    def drops_firsts(self) -> bool:
        """Whether the first token of a piece is no target: what came before it is elsewhere."""
        return self.is_reshaped and self.is_causal


def is_by_token(name: str, value: Any, shape: Sequence[int]) -> bool:
    """Whether a batch's entry has a value for each token: [rows, width] or [rows, width, ...]."""
    if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[:2] != torch.Size(shape):
        return False
    # several labels at once are fractions, and may be as many as there are tokens
    return not (name.startswith("label") and value.is_floating_point())


def shape_of(batch: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and width of a batch of tokens or of their embeddings."""
    given = _given(batch)
    return given.shape[0], given.shape[1]


def _given(batch: Mapping[str, Any]) -> Tensor:
    return batch["input_ids"] if "input_ids" in batch else batch["inputs_embeds"]


def is_packed(batch: Mapping[str, Any]) -> bool:
    """Whether rows hold several examples: their attention is told so, or positions restart."""
    mask, positions = batch.get("attention_mask"), batch.get("position_ids")
    if "cu_seq_lens_q" in batch or (mask is not None and _rank(mask) != 2):
        return True
    if mask is not None or positions is None or _rank(positions) != 2:
        return False
    return bool((positions[:, 1:] <= positions[:, :-1]).any())


def _rank(value: Any) -> int:
    return value.dim() if isinstance(value, Tensor) else -1


def cut_rows(batch: Mapping[str, Any], length: int, rule: CutRule) -> dict[str, Any]:
    """A batch of one example to a row, at most `length` wide; padding stays on its side.

    Args:
        batch: wider than `length`; what `attention_mask` [rows, width] leaves out at the ends of a
            row is padding, without one nothing is.
        length: tokens of a row.
        rule: how to cut.
    """
    num_rows, width = shape_of(batch)
    mask = batch.get("attention_mask")
    is_token = np.ones((num_rows, width), dtype=bool) if mask is None else _read(mask.ne(0))
    firsts, ends = is_token.argmax(axis=1), width - is_token[:, ::-1].argmax(axis=1)
    sizes = np.where(is_token.any(axis=1), ends - firsts, 0)
    if not sizes.any():
        sizes[0] = 1  # a batch of padding alone: one place of it has to stay
    begins = np.arange(num_rows) * width + firsts
    pieces = rule.pieces(batch, begins, sizes, length)
    is_left = (firsts > 0) & (ends == width)
    width = int(pieces.sizes.max()) if rule.is_reshaped else length  # of a step, for compilers
    columns = np.where(is_left[pieces.numbers], width - pieces.sizes, 0)
    rows = np.arange(len(columns))
    layout = laid_out(pieces, begins, rows, columns, (len(rows), width))
    new = rule.rearranged(batch, layout)
    is_token = torch.from_numpy(layout.source >= 0)
    if mask is None and not is_token.all():  # pieces of unlike sizes: the padding is the cut's own
        new["attention_mask"] = is_token.long().to(_given(batch).device)
    return new


def cut_packed(
    batch: Mapping[str, Any], length: int, rule: CutRule, facts: ModelFacts
) -> Mapping[str, Any]:
    """A batch of packed rows, its examples of at most `length` tokens and kept apart again.

    Args:
        batch: with `position_ids` that restart with each example, and what its attention needs.
        length: tokens of an example.
        rule: how to cut.
        facts: of the model.
    """
    num_rows, width = shape_of(batch)
    examples = packed_examples(batch, rule.pad_id)
    sizes = np.concatenate(examples)
    if sizes.max() <= length:
        return batch
    row_of = np.repeat(np.arange(num_rows), [len(row) for row in examples])
    begins = row_of * width + _offsets(examples)
    pieces = rule.pieces(batch, begins, sizes, length)
    rows = row_of[pieces.numbers]
    segments = np.split(pieces.sizes, rows.searchsorted(np.arange(1, num_rows)))
    shape = num_rows, max(int(row.sum()) for row in segments)
    layout = laid_out(pieces, begins, rows, _offsets(segments), shape)
    new = rule.rearranged(batch, layout) | kept_apart(batch, segments, shape[1], facts)
    if STARTS in batch:
        source = layout.source.reshape(-1)
        place_of = np.full(num_rows * width, -1)
        place_of[source[source >= 0]] = np.flatnonzero(source >= 0)
        starts = place_of[_read(batch[STARTS])]
        new[STARTS] = torch.from_numpy(starts).to(batch[STARTS].device)
    return new


def packed_examples(batch: Mapping[str, Any], pad_id: int) -> list[Integers]:
    """The lengths of each row's examples, without the padding behind them.

    Padding are the last of what looks like examples, of padding tokens without a label; or what the
    batch has no start of.
    """
    found = [segment_lengths(row) for row in _read(batch["position_ids"])]
    if STARTS in batch:
        starts, width = _read(batch[STARTS]), shape_of(batch)[1]
        begins = [n * width + np.cumsum(row) - row for n, row in enumerate(found)]
        return [row[np.isin(at, starts)] for row, at in zip(found, begins, strict=True)]
    if "input_ids" not in batch:
        return found
    is_pad = batch["input_ids"] == pad_id
    if "labels" in batch and is_by_token("labels", batch["labels"], shape_of(batch)):
        is_pad = is_pad & (batch["labels"] == IGNORED)
    ends = is_pad.shape[1] - (~_read(is_pad))[:, ::-1].argmax(axis=1)
    is_empty = _read(is_pad.all(dim=1))
    return [
        row[: 1 if empty else int((np.cumsum(row) - row < end).sum())]
        for row, end, empty in zip(found, ends, is_empty, strict=True)
    ]


def _offsets(rows: Sequence[Integers]) -> Integers:
    """Where each example begins in its row."""
    return np.concatenate([np.cumsum(row) - row for row in rows])


def kept_apart(
    batch: Mapping[str, Any], examples: Sequence[Integers], width: int, facts: ModelFacts
) -> dict[str, Any]:
    """Position ids, and what else of a batch tells examples apart, for these lengths of them.

    Args:
        batch: packed, of which the first position and the names are taken.
        examples: the lengths of each row's examples.
        width: of the rows, with padding.
        facts: of the model.
    """
    device, positions = _given(batch).device, batch["position_ids"]
    lengths = [n for row in examples for n in (*row.tolist(), width - int(row.sum()))]
    nth = np.concatenate([np.arange(n) for n in lengths]).reshape(-1, width)
    made = {"position_ids": nth + int(positions[0, 0])}
    if "seq_idx" in batch:
        made["seq_idx"] = np.cumsum(nth == 0, axis=1) - 1
    found: dict[str, Any] = {
        name: torch.from_numpy(value).to(device, batch[name].dtype) for name, value in made.items()
    }
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:  # beside lengths, it hides nothing
        found["attention_mask"] = torch.ones(nth.shape, dtype=mask.dtype, device=device)
    if any(name in batch for name in APART):
        is_masked = facts.implementation not in UNMASKED
        apart = attention_inputs(
            examples,
            width,
            facts.implementation,
            layer_windows=facts.layer_windows if is_masked else None,
            dtype=facts.dtype,
        )
        found |= {name: _on(device, value) for name, value in apart.items()}
    return found


def is_told_apart(batch: Mapping[str, Any], pad_id: int, facts: ModelFacts) -> bool:
    """Whether a packed batch has just what `kept_apart` would give it; else it is another mask."""
    made = kept_apart(batch, packed_examples(batch, pad_id), shape_of(batch)[1], facts)
    names = {name for name in APART if name in batch}
    return names == made.keys() & {*APART} and all(is_same(batch[n], made[n]) for n in names)


def _on(device: torch.device, value: Any) -> Any:
    if isinstance(value, Mapping):
        masks = cast(Mapping[str, Any], value)
        return {name: mask.to(device) for name, mask in masks.items()}
    return value.to(device) if isinstance(value, Tensor | BlockMask) else value


def is_same(given: Any, made: Any) -> bool:
    """Whether two arguments that keep examples apart say the same."""
    if isinstance(given, Mapping) and isinstance(made, Mapping):
        theirs, ours = cast(Mapping[str, Any], given), cast(Mapping[str, Any], made)
        return theirs.keys() == ours.keys() and all(is_same(theirs[n], ours[n]) for n in ours)
    if isinstance(given, BlockMask) and isinstance(made, BlockMask):
        rules: tuple[Any, Any] = given.mask_mod, made.mask_mod
        if any(type(rule) is not SameSegment for rule in rules):
            return False
        theirs, ours = (rule.segments.cpu() for rule in rules)
        return torch.equal(theirs, ours) and rules[0].window == rules[1].window
    if isinstance(given, Tensor) and isinstance(made, Tensor):
        return torch.equal(given.to(made.dtype), made)
    return not isinstance(given, Mapping | BlockMask) and bool(given == made)


def _read(values: Tensor) -> NDArray[Any]:
    return values.cpu().numpy()
