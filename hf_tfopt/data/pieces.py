"""The examples of a batch cut into pieces, and where each piece goes in a new one."""

from typing import NamedTuple

import numpy as np

from hf_tfopt.data.keyed_bits import Flags, Integers


class Pieces(NamedTuple):
    """Stretches of a batch's places, which are numbered row after row.

    Args:
        begins: the place of each piece's first token.
        sizes: the tokens of each.
        closers: the place of the token that is put last; -1: the one that stands there.
        numbers: of the example that each is cut from.
    """

    begins: Integers
    sizes: Integers
    closers: Integers
    numbers: Integers


def truncated(begins: Integers, sizes: Integers, length: int, is_closing: Flags | None) -> Pieces:
    """The first `length` tokens of each example; of one that is cut, the last is the closing token.

    Args:
        begins: the place of each example's first token.
        sizes: the tokens of each.
        length: at least 1.
        is_closing: by place, whether a special token stands there that ends rows; None: nowhere.
    """
    last = begins + sizes - 1
    is_closed = np.zeros(len(last), dtype=bool) if is_closing is None else is_closing[last]
    closers = np.where(is_closed & (sizes > length), last, -1)
    return Pieces(begins, np.minimum(sizes, length), closers, np.arange(len(begins)))


def reshaped(begins: Integers, sizes: Integers, length: int, multiple: int = 1) -> Pieces:
    """Every token of each example, in as few pieces of at most `length` as there can be.

    The pieces of an example are of equal size, but for the rounding, which the last one makes up
    for: rows of 512 tokens and a length of 504 become halves, not much padding.

    Args:
        begins: the place of each example's first token.
        sizes: the tokens of each.
        length: at least 1.
        multiple: the size of pieces is rounded up to a multiple of this, but not above `length`.
    """
    counts = -(-sizes // length)
    equal = -(-sizes // np.maximum(1, counts))
    steps = np.minimum(length, -(-equal // multiple) * multiple)
    numbers = np.repeat(np.arange(len(sizes)), counts)
    nth = np.arange(len(numbers)) - (np.cumsum(counts) - counts)[numbers]
    offsets = nth * steps[numbers]
    tokens = np.minimum(sizes[numbers] - offsets, steps[numbers])
    return Pieces(begins[numbers] + offsets, tokens, np.full(len(numbers), -1), numbers)


class Layout(NamedTuple):
    """A new batch, place by place, each of shape [rows, width].

    Args:
        source: the old place of what is put there; -1: padding.
        standing: the old place whose position it has: of its example's first tokens; -1: padding.
        nth: the number of each token in its piece, from 0; -1: padding.
    """

    source: Integers
    standing: Integers
    nth: Integers


def laid_out(
    pieces: Pieces, begins: Integers, rows: Integers, columns: Integers, shape: tuple[int, int]
) -> Layout:
    """Put pieces side by side.

    Args:
        pieces: to put.
        begins: of the examples that they are cut from.
        rows: the new row of each piece.
        columns: where in it the piece begins.
        shape: of the new batch.
    """
    sizes = pieces.sizes
    ends = np.cumsum(sizes)
    piece = np.repeat(np.arange(len(sizes)), sizes)
    nth = np.arange(len(piece)) - (ends - sizes)[piece]
    source = pieces.begins[piece] + nth
    has_closer = pieces.closers >= 0
    source[ends[has_closer] - 1] = pieces.closers[has_closer]
    where = rows[piece], columns[piece] + nth
    placed = [np.full(shape, -1) for _ in range(3)]
    for target, values in zip(
        placed, (source, begins[pieces.numbers][piece] + nth, nth), strict=True
    ):
        target[where] = values
    return Layout(*placed)
