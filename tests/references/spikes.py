"""The spike rule, slowly."""

import numpy as np


def is_spike(value: float, past: list[float], threshold: float = 6.0) -> bool:
    """`past` are values, not logarithms."""
    if len(past) < 100 or value <= 0:
        return False
    logs = np.log(np.array(past))

    def quantile(numbers: np.ndarray, share: float) -> float:
        return np.quantile(
            numbers, int(share * len(numbers)) / (len(numbers) - 1), method="nearest"
        )

    center = quantile(logs, 0.5)
    sigma = max(1.4826 * quantile(np.abs(logs - center), 0.5), 0.02)
    is_far = np.log(value) > center + threshold * sigma
    is_large = value > 3 * np.exp(center)
    top, upper = quantile(logs, 0.99), quantile(logs, 0.9)
    return bool(is_far and is_large and np.log(value) > top + 3 * (top - upper))
