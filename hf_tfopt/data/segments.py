"""The examples of packed rows: found by their position ids, kept apart in the attention."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from hf_tfopt.registry import check_name

MASKED = ("eager", "sdpa", "flex_attention")
UNMASKED = ("flash_attention_2", "flash_attention_3", "flash_attention_4", "unpadded")


def segment_lengths(position_ids: NDArray[Any]) -> NDArray[np.int64]:
    """The lengths of the examples in one row, from position ids that restart with each of them.

    Args:
        position_ids: of the row, without padding; any first position (RoBERTa's is not 0).
    """
    if not len(position_ids):
        return np.empty(0, dtype=np.int64)
    firsts = np.flatnonzero(np.diff(position_ids) != 1) + 1
    return np.diff(np.concatenate([[0], firsts, [len(position_ids)]]))


def attention_inputs(
    rows: Sequence[NDArray[Any]],
    width: int,
    implementation: str,
    *,
    layer_windows: Mapping[str, int | None] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """The model's arguments that keep the examples of a packed batch apart.

    Position i of a row sees position j where both are of the same example; what is left of a row
    behind its examples is padding and counts as one example more, so that no position sees nothing.

    | implementation | arguments |
    |---|---|
    | sdpa | `attention_mask`: bool `[rows, 1, width, width]`, True where seen |
    | eager | `attention_mask`: 0 where seen, `torch.finfo(dtype).min` elsewhere |
    | flex_attention | `attention_mask`: a `BlockMask` |
    | flash_attention_*, unpadded | `cu_seq_lens_q`, `cu_seq_lens_k`: int32, where the examples \
      end in the batch as one row; `max_length_q`, `max_length_k` |

    Args:
        rows: the lengths of the examples of each row.
        width: of the batch, at least the tokens of each row.
        implementation: the model's attention implementation.
        layer_windows: for models whose layers differ: how far each type of layer sees
            (|i - j| <= window; None: everywhere). The attention mask is then a dict by layer type.
            The implementations without a mask have the window from the model.
        dtype: of the eager mask: the model's.

    Raises:
        ValueError: an implementation not listed above, or a row wider than `width`.
    """
    lengths = _with_padding(rows, width)
    return segment_inputs(
        lengths, (len(rows), width), implementation, layer_windows=layer_windows, dtype=dtype
    )


def segment_inputs(
    lengths: NDArray[np.int64],
    shape: tuple[int, int],
    implementation: str,
    *,
    layer_windows: Mapping[str, int | None] | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """`attention_inputs` of a batch of this shape, by the lengths of all its segments.

    Every row is full: what is behind its examples is a segment too.
    """
    check_name("attention implementation", implementation, (*MASKED, *UNMASKED))
    if implementation in UNMASKED:
        ends = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        ends[1:] = torch.from_numpy(np.cumsum(lengths))
        longest = int(lengths.max())
        return {
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    numbers = np.repeat(np.arange(len(lengths)), lengths).reshape(shape)
    segments = torch.from_numpy(numbers)
    windows = {None} if layer_windows is None else set(layer_windows.values())
    masks = {w: _mask(SameSegment(segments, w), implementation, dtype) for w in windows}
    if layer_windows is None:
        return {"attention_mask": masks[None]}
    return {"attention_mask": {name: masks[window] for name, window in layer_windows.items()}}


def _with_padding(rows: Sequence[NDArray[Any]], width: int) -> NDArray[np.int64]:
    """The lengths of all segments of the batch, each row's padding a segment of its own."""
    totals = [int(np.sum(row)) for row in rows]
    if not rows or max(totals) > width:
        raise ValueError(f"rows of {totals} tokens do not fit a batch {width} wide")
    padded = [[*row.tolist(), width - total] for row, total in zip(rows, totals, strict=True)]
    lengths = np.concatenate(padded).astype(np.int64)
    return lengths[lengths > 0]


class SameSegment:
    """May a query see a key: are they of one segment, and no further apart than the window?

    A class rather than a closure, so that a `BlockMask` made of it travels between processes.

    Args:
        segments: the segment of each position, `[rows, width]`.
        window: the largest distance; None: any.
    """

    def __init__(self, segments: torch.Tensor, window: int | None):
        self.segments = segments
        self.window = window

    def __call__(
        self, row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        """The answer at these indices, broadcast against one another; the head plays no part."""
        same = self.segments[row, query] == self.segments[row, key]
        return same if self.window is None else same & ((query - key).abs() <= self.window)


class SegmentBlockMask(BlockMask):
    """A `BlockMask` of `SameSegment` that takes along its tensor to another device."""

    def to(self, device: torch.device | str) -> BlockMask:
        """The mask on `device`; the base class would leave the segments behind."""
        moved, rule = super().to(device), self.mask_mod
        assert isinstance(rule, SameSegment)
        moved.mask_mod = SameSegment(rule.segments.to(device), rule.window)
        return moved


def _mask(rule: SameSegment, implementation: str, dtype: torch.dtype) -> torch.Tensor | BlockMask:
    num_rows, width = rule.segments.shape
    if implementation == "flex_attention":
        mask = create_block_mask(rule, num_rows, None, width, width, device="cpu")
        return SegmentBlockMask.from_kv_blocks(
            mask.kv_num_blocks,
            mask.kv_indices,
            mask.full_kv_num_blocks,
            mask.full_kv_indices,
            BLOCK_SIZE=mask.BLOCK_SIZE,
            mask_mod=rule,
            seq_lengths=mask.seq_lengths,
        )
    row, place = torch.arange(num_rows)[:, None, None, None], torch.arange(width)
    seen = rule(row, row, place[:, None], place)
    if implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
