"""A corpus's word vectors the obvious way: every pair of tokens looked at, and numpy's SVD."""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray


def plain_cooccurrences(
    rows: Sequence[Sequence[int]],
    special: Collection[int],
    contexts: Sequence[int],
    num_ids: int,
    window: int,
) -> NDArray[np.float64]:
    counts = np.zeros((num_ids, len(contexts)))
    for row in rows:
        for i, word in enumerate(row):
            for j, context in enumerate(row):
                between = row[min(i, j) : max(i, j) + 1]
                if i == j or abs(i - j) > window or any(token in special for token in between):
                    continue
                if context in contexts:
                    counts[word, list(contexts).index(context)] += 1 / abs(i - j)
    return counts


def similarities(counts: NDArray[np.float64], dim: int) -> NDArray[np.float64]:
    """Products of all pairs of word vectors, which no rotation changes: [V, V]."""
    pmi = np.zeros_like(counts)
    for word, context in np.argwhere(counts):
        by_word, by_context = counts[word].sum(), counts[:, context].sum()
        information = np.log(counts[word, context] * counts.sum() / (by_word * by_context))
        pmi[word, context] = max(0.0, information) * by_word / (by_word + 5)
    left, sizes, _ = np.linalg.svd(pmi - pmi.mean(axis=0), full_matrices=False)
    vectors = (left * sizes)[:, :dim]
    return vectors @ vectors.T
