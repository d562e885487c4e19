"""The ranges that every optimizer's numbers must lie in, refused before training."""

import math
from collections.abc import Sequence
from typing import Any


def check_positive(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a finite number above 0."""
    if not _is_number(value) or value <= 0:
        raise ValueError(f"{name} must be a number above 0, got {_shown(value)}")


def check_not_negative(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a finite number, 0 or above."""
    if not _is_number(value) or value < 0:
        raise ValueError(f"{name} must be a number, 0 or above, got {_shown(value)}")


def check_share(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is in [0, 1), as the share that an average keeps must be."""
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {_shown(value)}")


def check_count(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a whole number above 0."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number above 0, got {_shown(value)}")


def check_betas(betas: Sequence[float]) -> None:
    """Raise ValueError unless `betas` are Adam's two shares, each in [0, 1)."""
    if len(betas) != 2:
        raise ValueError(f"betas must be two numbers, got {_shown(betas)}")
    for index, beta in enumerate(betas):
        check_share(f"betas[{index}]", beta)


def check_adam(lr: Any, weight_decay: Any, betas: Sequence[float], eps: Any = 0.0) -> None:
    """Raise ValueError for what is out of range in the numbers of AdamW and its kin."""
    check_positive("lr", lr)
    check_not_negative("weight_decay", weight_decay)
    check_betas(betas)
    check_not_negative("eps", eps)


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def _shown(value: Any) -> str:
    # 1e-3 in YAML is text, where 1.0e-3 is a number
    return f"the text {value!r}" if isinstance(value, str) else repr(value)
