"""What a corpus tells a new model before its first step: how often words are, and beside which."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Integers = NDArray[np.int64]

SPREAD = 2.5  # of the new embeddings, in standard deviations of the old ones
SMOOTHING = 0.5  # added to every word's count: one that is not in the corpus is still possible
NEVER = 1e-6  # stands for a count of 0 where it divides; the smallest other count is 1 / window
DOUBT = 5.0  # a word that has so much company is believed by half


def initialize_from_corpus(
    model: Any,
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    window: int = 8,
    num_contexts: int = 1024,
    max_rows: int = 200_000,
) -> Any:
    """Give a new model its words' frequencies and word vectors of the corpus; returns the model.

    The bias of the output embedding, if there is one, becomes `unigram_log_probs`: training begins
    at the loss of the words' frequencies instead of log V. The input embedding, and with it a tied
    output, becomes `word_vectors`, 2.5 times as spread as what was there. Special tokens, and words
    without company in the corpus, keep theirs. No gradients; seconds; the same on every process.

    Args:
        model: a new `PreTrainedModel`; what its embedding has learned would be lost.
        rows: tokenized examples, packed or not: dicts or `ArrowRows` with input_ids.
        tokenizer: its special tokens are not words.
        window: words are company if they stand at most so many tokens apart.
        num_contexts: of the most frequent words, whose company is counted. It takes 8 bytes times
            this times the vocabulary.
        max_rows: of a larger corpus, so many evenly spread over it.

    Raises:
        ValueError: no token but special ones, or ids that the model's embedding does not have.

    Paper: Meister et al. 2023, https://arxiv.org/abs/2212.09686, for the bias; for vectors made
    before training, Qi et al. 2018, https://arxiv.org/abs/1804.06323 (theirs are fastText's).
    """
    embedding: nn.Embedding = model.get_input_embeddings()
    num_ids, dim = embedding.weight.shape
    stream, stretch = words_of(rows, tokenizer.all_special_ids, max_rows)
    is_word = stretch >= 0
    if not is_word.any():
        raise ValueError("the corpus has no word: all of its tokens are special ones, or none")
    if stream.max() >= num_ids:
        raise ValueError(
            f"token id {stream.max()} is none of the {num_ids} of {type(model).__name__}: "
            "was the dataset made with another tokenizer?"
        )
    frequency = np.bincount(stream[is_word], minlength=num_ids)
    contexts = np.argsort(-frequency, kind="stable")[:num_contexts]
    company = cooccurrences(stream, stretch, contexts, num_ids, window)
    is_known = torch.from_numpy(company.any(axis=1))
    vectors = word_vectors(torch.from_numpy(company), dim)[is_known]
    with torch.no_grad():
        weight = embedding.weight
        if len(vectors):
            scale = SPREAD * weight.std() / vectors.std().to(weight.device)
            weight[is_known.to(weight.device)] = vectors.to(weight) * scale
        bias = getattr(model.get_output_embeddings(), "bias", None)
        if bias is not None:
            bias.copy_(unigram_log_probs(torch.from_numpy(frequency)))
    return model


def unigram_log_probs(counts: Tensor) -> Tensor:
    """log((n + 1/2) / sum(n + 1/2)) for each word's count n: [V], fp32."""
    smoothed = counts.double() + SMOOTHING
    return (smoothed / smoothed.sum()).log().float()


def words_of(
    rows: Sequence[Mapping[str, Any]], special_ids: Collection[int], max_rows: int
) -> tuple[Integers, Integers]:
    """All tokens one after the other [N], and of each the number of its stretch, -1 if special.

    A stretch ends at a special token and at the end of a row: two stretches are two texts.
    """
    stride = max(1, math.ceil(len(rows) / max_rows))
    ids = [np.asarray(rows[i]["input_ids"], np.int64) for i in range(0, len(rows), stride)]
    stream = np.concatenate([np.zeros(0, np.int64), *ids])
    is_special = np.isin(stream, list(special_ids))
    ends = is_special.astype(np.int64)
    begins = np.cumsum([0, *map(len, ids)])[:-1]
    np.add.at(ends, begins[begins < len(stream)], 1)
    return stream, np.where(is_special, -1, np.cumsum(ends))


def cooccurrences(
    stream: Integers, stretch: Integers, contexts: Integers, num_ids: int, window: int
) -> NDArray[np.float32]:
    """How often each word stands beside each context, near ones counted more: [V, K].

    n(w, c) = Σ 1 / |i - j| over all i, j of one stretch at most `window` apart, with word w at i
    and the context c at j.

    Args:
        stream: [N] token ids.
        stretch: [N], as from `words_of`.
        contexts: [K] the words whose company is counted.
        num_ids: V.
        window: the largest distance, in tokens.
    """
    column = np.full(num_ids, -1)
    column[contexts] = np.arange(len(contexts))
    columns = column[stream]
    counts = np.zeros(num_ids * len(contexts), np.float32)
    for distance in range(1, window + 1):
        together = (stretch[distance:] == stretch[:-distance]) & (stretch[distance:] >= 0)
        left, right = slice(None, -distance), slice(distance, None)
        for here, there in ((left, right), (right, left)):
            chosen = together & (columns[there] >= 0)
            pairs = stream[here][chosen] * len(contexts) + columns[there][chosen]
            np.add.at(counts, pairs, np.float32(1 / distance))
    return counts.reshape(num_ids, len(contexts))


def word_vectors(company: Tensor, dim: int, seed: int = 0) -> Tensor:
    """Principal components of the words' positive pointwise mutual information: [V, dim], fp32.

        P = max(0, log n(w, c) n / (n(w) n(c))) · n(w) / (n(w) + 5);   (P - mean over w) U R

    with U the first eigenvectors of its covariance and R a random rotation, which spreads the
    large components over all dimensions: a LayerNorm would let the largest rule. Where there are
    fewer contexts than dimensions, the rest are 0 before R.

    Args:
        company: [V, K] counts n(w, c), as from `cooccurrences`; it is overwritten.
        dim: of a vector.
        seed: of the rotation.

    Paper: Levy and Goldberg 2014, https://papers.nips.cc/paper/5477. The last factor, which takes
    rare words less seriously, and the rotation are ours.
    """
    by_word, by_context = company.sum(1, keepdim=True), company.sum(0, keepdim=True)
    company.mul_(by_word.sum() / by_word.clamp(min=NEVER)).div_(by_context.clamp(min=NEVER))
    pmi = company.clamp_(min=1).log_().mul_(by_word / (by_word + DOUBT))
    pmi -= pmi.mean(0)
    _, components = torch.linalg.eigh(pmi.T @ pmi)
    vectors = pmi @ components.flip(1)[:, :dim]
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
    return vectors @ rotation[: vectors.shape[1]]
