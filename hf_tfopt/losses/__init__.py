"""Losses: tensors in, a sum and a count out; `losses.reduction` divides."""

from hf_tfopt.losses.cross_entropy import cross_entropy, linear_cross_entropy
from hf_tfopt.losses.elementwise import binary_cross_entropy, squared_error
from hf_tfopt.losses.reduction import LossSum
from hf_tfopt.registry import Registry

LOSSES = Registry(
    "loss",
    {
        "cross_entropy": cross_entropy,
        "binary_cross_entropy": binary_cross_entropy,
        "squared_error": squared_error,
    },
)

__all__ = [
    "LOSSES",
    "LossSum",
    "binary_cross_entropy",
    "cross_entropy",
    "linear_cross_entropy",
    "squared_error",
]
