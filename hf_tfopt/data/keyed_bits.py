"""Random bits without a generator: hashes of (seed, epoch, the example's own ids, stream, counter).

All examples of a batch lie one after the other in one flat array. Bits that are a function of what
they are for are the same for any number of workers, ranks and restarts.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Words = NDArray[np.uint64]
Flags = NDArray[np.bool_]

FATES = 1 << 32  # a fate is a number below this
LANE = 1 << 16  # values of one 16-bit lane: probabilities are kept to 1/65536

# One stream of bits for each decision, so that none depends on another.
CHOICE, SPAN, REPLACEMENT, FALLBACK = range(4)
NUM_STREAMS = 4

# splitmix64's increment and multipliers (Steele et al. 2014)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31, _32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)
_LOWER = np.uint64(0xFFFFFFFF)
_64_BITS = (1 << 64) - 1


def mix(values: Words) -> Words:
    """Hash 64-bit words one by one: the finaliser of splitmix64."""
    x = values >> _30
    x ^= values
    x *= _FIRST
    shifted = x >> _27
    x ^= shifted
    x *= _SECOND
    np.right_shift(x, _31, out=shifted)
    x ^= shifted
    return x


@lru_cache(maxsize=32)
def _multiples(size: int) -> Words:
    return np.arange(size, dtype=np.uint64) * _GOLDEN


@lru_cache(maxsize=32)
def _weights(size: int) -> Words:
    return mix(_multiples(size + 1)[1:])


def _room(size: int) -> int:
    """The next power of two: tables are cached by size, and few sizes must do."""
    return 1 << max(int(size), 1).bit_length()


def example_keys(ids: Integers, bounds: Integers, seed: int, epoch: int) -> Words:
    """A 64-bit key for every (stream, example), from its content and (seed, epoch).

    `mix(mix(n * w[n] + sum_j ids[j] * w[j] + moment) + stream * golden)` for an example of n
    tokens, with fixed random weights w and `moment = mix(mix(seed) + epoch)`: the order of the
    tokens counts, their type of integer does not.

    Args:
        ids: the token ids of all examples, one after the other.
        bounds: where each example begins, and the end of the last.
        seed: any integer.
        epoch: any integer.

    Returns:
        An array of [number of streams, number of examples].
    """
    lengths = bounds[1:] - bounds[:-1]
    weights = content_weights(int(lengths.max(initial=0)))
    content = _content(ids.view(np.uint64), bounds, lengths, weights)
    moments = content + np.uint64(moment(seed, epoch))
    return mix(mix(moments) + _multiples(NUM_STREAMS)[:, None])


def content_weights(longest: int) -> Words:
    """The weight of every place in an example of at most `longest` tokens, and of its length."""
    return _weights(_room(longest + 1))


def _content(ids: Words, bounds: Integers, lengths: Integers, weights: Words) -> Words:
    longest = int(lengths.max(initial=0))
    content = lengths.view(np.uint64) * weights[lengths]
    if len(ids) == longest * len(lengths):  # all of one length
        table = ids.reshape(len(lengths), longest)
        return content + np.einsum("ij,j->i", table, weights[:longest])
    products = np.concatenate([weights[:n] for n in lengths.tolist()])
    products *= ids
    filled = np.flatnonzero(lengths)  # reduceat would give an empty example the token after it
    content[filled] += np.add.reduceat(products, bounds[filled])
    return content


@lru_cache(maxsize=32)
def moment(seed: int, epoch: int) -> int:
    """The hash of seed and epoch, `mix(mix(seed) + epoch)`."""
    start = mix(np.array([seed & _64_BITS], dtype=np.uint64))
    return int(mix(start + np.uint64(epoch & _64_BITS))[0])


def shuffled(size: int, *key: int) -> Integers:
    """The numbers below `size`, in an order of their own for every key of any integers."""
    state = np.zeros(1, dtype=np.uint64)
    for word in key:
        state = mix(state + np.uint64((word * int(_GOLDEN) + 1) & _64_BITS))
    return mix(state + np.arange(size, dtype=np.uint64) * _GOLDEN).argsort(kind="stable")


def bits(keys: Words, rows: Integers, counters: Integers) -> Words:
    """64 random bits per (row, counter): `mix(keys[row] + counter * golden)`."""
    x = counters.view(np.uint64) * _GOLDEN
    x += keys[rows]
    return mix(x)


def below(size: int | Integers, drawn: Words) -> Integers:
    """A number in [0, size) from the upper half of each word; size up to 2^32."""
    sizes = np.asarray(size).astype(np.uint64)
    scaled = drawn >> _32
    scaled *= sizes
    scaled >>= _32
    return scaled.view(np.int64)


def lower_half(drawn: Words) -> Words:
    """The lower 32 bits of each word."""
    return drawn & _LOWER


def lanes_below(
    threshold: int, keys: Words, bounds: Integers
) -> tuple[Integers, NDArray[np.uint16]]:
    """The flat indices whose 16-bit lane is < threshold, and their lanes.

    The lane of index `bounds[row] + j` is `bits(keys, row, j // 4) >> (16 * (j % 4)) & 0xFFFF`.

    Args:
        threshold: the number of the 65536 lane values that are looked for.
        keys: a key for each row.
        bounds: where each row's indices begin, and the end of the last.
    """
    quads = (bounds[1:] - bounds[:-1] + 3) >> 2
    longest = int(quads.max(initial=0))
    multiples = _multiples(_room(longest))
    is_dense = len(quads) * longest <= 2 * int(quads.sum())
    if is_dense:  # so many for every row: what is too much costs less than pieces
        x = (keys[:, None] + multiples[:longest]).reshape(-1)
    else:
        x = np.concatenate([multiples[:n] for n in quads.tolist()])
        x += np.repeat(keys, quads)
    lanes = mix(x).astype("<u8", copy=False).view("<u2")
    found = np.flatnonzero(lanes < threshold)
    drawn = lanes[found]
    if len(lanes) == bounds[-1]:  # none too much: lanes are indices
        return found, drawn
    if is_dense:
        begins = np.arange(len(quads)) * (4 * longest)
        rows = found // (4 * longest)
    else:
        begins = 4 * (np.cumsum(quads) - quads)
        rows = begins.searchsorted(found, "right") - 1
    indices = found + (bounds[:-1] - begins)[rows]
    real = np.flatnonzero(indices < bounds[1:][rows])
    return indices[real], drawn[real]


def to_lane(probability: float) -> int:
    """The number of the 65536 lane values that stand for `probability`, at least 1."""
    return max(round(probability * LANE), 1)
