"""Perturbations of embeddings [B, T, E], with one norm and one direction for each example.

Every value depends on its own example alone, so that it is the same however the batch is cut.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """Where the examples of a batch lie in its B * T positions, read as one row.

    Args:
        lengths: [n], the positions of each example, one after the other; they add up to B * T.
        is_real: [B * T], False at padding, which is never perturbed.
    """

    lengths: Tensor
    is_real: Tensor

    @property
    def owners(self) -> Tensor:
        """The number of each position's example, [B * T]."""
        return self.at_positions(torch.arange(len(self.lengths), device=self.lengths.device))

    @property
    def num_real(self) -> Tensor:
        """Each example's positions without padding, [n], in fp32."""
        return self.reduced(self.is_real.float(), "sum")

    def reduced(self, values: Tensor, how: str) -> Tensor:
        """The "sum" or "max" of values [B * T] over each example, [n]."""
        return torch.segment_reduce(values, how, lengths=self.lengths, unsafe=True)

    def at_positions(self, values: Tensor) -> Tensor:
        """Values [n] of examples as those of their positions, [B * T]."""
        return values.repeat_interleave(self.lengths, output_size=self.is_real.numel())


def padded_examples(mask: Tensor) -> Examples:
    """Each row of a mask [B, T] is an example; positions where it is 0 are padding."""
    lengths = torch.full((mask.shape[0],), mask.shape[1], device=mask.device)
    return Examples(lengths, mask.reshape(-1).ne(0))


def end_to_end_examples(ends: Tensor, num_positions: int) -> Examples:
    """Examples one after the other without padding; `ends` [n + 1] as in `cu_seq_lens_q`."""
    is_real = torch.ones(num_positions, dtype=torch.bool, device=ends.device)
    return Examples(ends.diff().long(), is_real)


def packed_examples(starts: Tensor, position_ids: Tensor) -> Examples:
    """Examples that share padded rows.

    Args:
        starts: [n], their first places among all, the first of them 0.
        position_ids: [B, T]; they count up in each example, and stand still in padding.
    """
    places = position_ids.flatten()
    is_real = torch.zeros_like(places, dtype=torch.bool).index_fill(0, starts, True)
    is_real[1:] |= places.diff() == 1
    ends = torch.cat([starts.sort().values, starts.new_tensor([len(places)])])
    return Examples(ends.diff(), is_real)


def norms(values: Tensor, examples: Examples, kind: str = "2") -> Tensor:
    """Each example's norm [n] of values [B, T, E], over its positions and features together.

    Args:
        values: [B, T, E].
        examples: whose positions are whose.
        kind: "2" or "inf".
    """
    flat = values.flatten(0, -2)
    if kind == "inf":
        return examples.reduced(flat.abs().amax(-1), "max")
    return examples.reduced(flat.square().sum(-1), "sum").sqrt()


def direction(gradient: Tensor, examples: Examples, kind: str = "2") -> Tensor:
    """`g / ‖g‖` for each example; 0 where that is 0, infinite or NaN, and at padding.

    A factor of the gradient cancels: a loss scaler's, the batch's count. Large and small gradients
    alike are brought near 1 before they are squared.

    Args:
        gradient: [B, T, E].
        examples: whose positions are whose.
        kind: the norm, "2" or "inf".
    """
    real = examples.is_real.view(*gradient.shape[:-1], 1)
    scaled = torch.where(real, gradient, 0)
    largest = norms(scaled, examples, "inf")
    usable = largest.isfinite() & (largest > 0)
    # 0 * inf is NaN: what cannot be used is replaced, not multiplied away
    keep = _spread(usable, examples, gradient)
    scaled = torch.where(keep, scaled / _spread(largest, examples, gradient), 0)
    if kind == "inf":
        return scaled
    size = norms(scaled, examples)
    return torch.where(keep, scaled / _spread(size, examples, gradient), 0)


def projected(delta: Tensor, examples: Examples, epsilon: float) -> Tensor:
    """Delta [B, T, E] brought back into the ball `‖delta‖₂ <= ε` of each example."""
    shrink = (epsilon / norms(delta, examples).clamp(min=torch.finfo(delta.dtype).tiny)).clamp(
        max=1
    )
    return delta * _spread(shrink, examples, delta)


def _spread(values: Tensor, examples: Examples, like: Tensor) -> Tensor:
    """Values [n] of examples at their positions, [B, T, 1]."""
    return examples.at_positions(values).view(*like.shape[:-1], 1)
