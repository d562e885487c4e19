"""Masked language modelling, one token after the other, in plain Python.

The same decisions from the same hashes as `hf_tfopt.data.masking`, with no array anywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MASK_64 = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
CHOICE, SPAN, REPLACEMENT, FALLBACK = range(4)


def mix(x: int) -> int:
    """The finaliser of splitmix64."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK_64
    return x ^ (x >> 31)


def weight(j: int) -> int:
    return mix((j + 1) * GOLDEN & MASK_64)


def example_key(ids: Sequence[int], seed: int, epoch: int, stream: int) -> int:
    content = len(ids) * weight(len(ids)) + sum(token * weight(j) for j, token in enumerate(ids))
    moment = mix(mix(seed & MASK_64) + epoch & MASK_64)
    return mix(mix(content + moment & MASK_64) + stream * GOLDEN & MASK_64)


def bits(key: int, counter: int) -> int:
    return mix(key + counter * GOLDEN & MASK_64)


def lane(key: int, counter: int) -> int:
    return bits(key, counter // 4) >> (16 * (counter % 4)) & 0xFFFF


def below(size: int, drawn: int) -> int:
    return (drawn >> 32) * size >> 32


@dataclass(frozen=True)
class Spans:
    """The span process: how many lane values start one, and the chances of its length."""

    start: int
    length: list[float]  # P(L = 1), P(L = 2), ...
    residual: list[float]  # where a run begins and no span does: P(0 words left), P(1 left), ...


def spans(probability: float) -> Spans:
    length = [0.2 * 0.8**k for k in range(10)]
    length = [p / sum(length) for p in length]

    def coverage(q: float) -> float:
        return sum(q * (1 - q) ** k * sum(length[k:]) for k in range(10))

    low, high = 0.0, 1.0
    while high - low > 1e-12:
        q = (low + high) / 2
        low, high = (q, high) if coverage(q) < probability else (low, q)
    start = max(round(low * 65536), 1)
    q = start / 65536
    left = [sum(q * (1 - q) ** k * length[r + k] for k in range(10 - r)) for r in range(1, 10)]
    return Spans(start, length, [1 - sum(left), *left])


def inverse(chances: Sequence[float], drawn: int, first: int) -> int:
    """The value whose share of the 65536 lane values `drawn` falls into."""
    total = 0.0
    for value, chance in enumerate(chances, first):
        total += chance
        if drawn < round(total * 65536):
            return value
    return first + len(chances) - 1


def units_of(ids: Sequence[int], special: set[int], starting: set[int]) -> list[list[int]]:
    """The tokens of each word, and every special token by itself, in their order."""
    units: list[list[int]] = []
    for j, token in enumerate(ids):
        after_special = j == 0 or ids[j - 1] in special
        if after_special or token in special or token in starting:
            units.append([j])
        else:
            units[-1].append(j)
    return units


def mask_example(
    ids: Sequence[int],
    special: set[int],
    replacements: Sequence[int],
    mask_id: int,
    unit: str,
    starting: set[int],
    probability: float,
    seed: int,
    epoch: int,
    mask_fraction: float = 0.8,
    random_fraction: float = 0.1,
) -> dict[int, tuple[int, int]]:
    """Position -> (label, what the model sees there)."""
    keys = [example_key(ids, seed, epoch, stream) for stream in range(4)]
    units = [[j] for j in range(len(ids))]
    if unit != "token":
        units = units_of(ids, special, starting)
    words = [number for number, tokens in enumerate(units) if ids[tokens[0]] not in special]
    if unit == "span":
        fates = span_fates(probability, keys, len(units), set(words))
    else:
        threshold = max(round(probability * 65536), 1)
        drawn = {number: lane(keys[CHOICE], number) for number in words}
        fates = {n: v * (2**32 // threshold) for n, v in drawn.items() if v < threshold}
    if not fates and words:
        number = words[below(len(words), keys[FALLBACK])]
        fates = {number: keys[FALLBACK] & 0xFFFFFFFF}
    targets = {}
    for number, fate in fates.items():
        for j in units[number]:
            seen = ids[j]
            if fate < round(mask_fraction * 2**32):
                seen = mask_id
            elif fate < round((mask_fraction + random_fraction) * 2**32):
                seen = replacements[below(len(replacements), bits(keys[REPLACEMENT], j))]
            targets[j] = (ids[j], seen)
    return targets


def span_fates(
    probability: float, keys: Sequence[int], num_units: int, words: set[int]
) -> dict[int, int]:
    """Word -> the fate of the span it is in, of 2^32; the latest start owns it."""
    process, fates = spans(probability), {}
    left, fate = 0, 0
    for number in range(num_units):
        starts = lane(keys[CHOICE], number) < process.start
        drawn = bits(keys[SPAN], number)
        if starts:
            left, fate = inverse(process.length, drawn >> 48, 1), drawn & 0xFFFFFFFF
        elif number - 1 not in words:  # the first of a run
            left, fate = inverse(process.residual, drawn >> 48, 0), drawn & 0xFFFFFFFF
        else:
            left -= 1
        if left > 0 and number in words:
            fates[number] = fate
    return fates
