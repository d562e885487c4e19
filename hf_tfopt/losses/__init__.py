"""Losses: tensors in, a sum and a count out; `losses.reduction` divides."""

from hf_tfopt.losses.cross_entropy import cross_entropy, linear_cross_entropy
from hf_tfopt.losses.reduction import LossSum
from hf_tfopt.registry import Registry

LOSSES = Registry("loss", {"cross_entropy": cross_entropy})

__all__ = ["LOSSES", "LossSum", "cross_entropy", "linear_cross_entropy"]
