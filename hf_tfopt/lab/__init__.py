"""Two or more settings -> one honest comparison; and the learning rate's range test.

`comparison` and `lr_range` hold what is compared and how it is read, for any trainer; `settings`,
`experiment` and `commands` make `hf-tfopt lab` of a recipe, `pictures` draws.
"""

from hf_tfopt.registry import public_names

_EXPORTS = {
    "Comparison": "hf_tfopt.lab.comparison",
    "Standing": "hf_tfopt.lab.comparison",
    "Trial": "hf_tfopt.lab.comparison",
    "compare": "hf_tfopt.lab.comparison",
    "rate_sweep": "hf_tfopt.lab.comparison",
    "RangeReading": "hf_tfopt.lab.lr_range",
    "read_lr_range": "hf_tfopt.lab.lr_range",
    "draw_comparison": "hf_tfopt.lab.pictures",
    "draw_lr_range": "hf_tfopt.lab.pictures",
}

__all__ = [*_EXPORTS]  # pyright: ignore[reportUnsupportedDunderAll]
__getattr__, __dir__ = public_names(__name__, _EXPORTS)
