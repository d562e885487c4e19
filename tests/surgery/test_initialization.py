import math
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import hf_tfopt as tfo
from hf_tfopt.surgery.initialization import (
    SPREAD,
    cooccurrences,
    initialize_from_corpus,
    unigram_log_probs,
    word_vectors,
    words_of,
)
from tests.models import TINY, VOCABULARY, tiny
from tests.references.initialization import plain_cooccurrences, similarities

SPECIAL = (0, 1, 2, 3, 4)
ABSENT = VOCABULARY - 1


class Tokenizer:
    """All of a tokenizer that is needed."""

    all_special_ids = SPECIAL


def texts(num: int = 60, seed: int = 0) -> list[list[int]]:
    """Rows [CLS] ... [SEP] of few frequent words and many rare ones."""
    print("seed", seed)
    rng = np.random.default_rng(seed)
    words = 5 + (rng.pareto(0.7, (num, 14)) * 3).astype(int) % (ABSENT - 5)
    return [[1, *row[: rng.integers(0, 14)].tolist(), 2] for row in words]


def rows_of(ids: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    return [{"input_ids": row} for row in ids]


@pytest.mark.parametrize("window", [1, 3, 8])
def test_counts_are_those_of_every_pair_looked_at(window: int) -> None:
    ids = [*texts(), [], [7, 8, 2, 9, 9], [10]]  # also with nothing at all, or no special token
    stream, stretch = words_of(rows_of(ids), SPECIAL, max_rows=10**6)
    contexts = np.array([5, 6, 9, 30])
    found = cooccurrences(stream, stretch, contexts, VOCABULARY, window)
    expected = plain_cooccurrences(ids, SPECIAL, contexts.tolist(), VOCABULARY, window)
    np.testing.assert_allclose(found, expected, rtol=1e-5)  # fp32, sums of at most 1,000 numbers


@pytest.mark.parametrize("dim", [2, 16, 40])  # more than there are contexts, too
def test_vectors_are_the_principal_components(dim: int) -> None:
    counts = plain_cooccurrences(texts(), SPECIAL, range(5, 30), VOCABULARY, 4)
    vectors = word_vectors(torch.tensor(counts, dtype=torch.float32), dim).double().numpy()
    assert vectors.shape == (VOCABULARY, dim)
    expected = similarities(counts, dim)
    # eigenvectors of fp32 products: half of its digits
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("name", TINY)
def test_every_family_gets_its_words_and_keeps_the_rest(name: str) -> None:
    model = tiny(name)
    before = model.get_input_embeddings().weight.detach().clone()
    assert initialize_from_corpus(model, rows_of(texts()), Tokenizer()) is model
    after = model.get_input_embeddings().weight.detach()
    kept = [*SPECIAL, ABSENT]
    assert torch.equal(after[kept], before[kept])
    changed = (after != before).any(dim=1)
    assert changed.sum() > 40
    torch.testing.assert_close(after[changed].std(), SPREAD * before.std(), rtol=0.05, atol=0)
    output = model.get_output_embeddings()
    assert (output.weight is model.get_input_embeddings().weight) == (
        model.config.get_text_config().tie_word_embeddings
    )
    if output.bias is not None:
        counts = torch.from_numpy(np.bincount(np.concatenate(texts()), minlength=VOCABULARY))
        counts[list(SPECIAL)] = 0
        assert torch.equal(output.bias, unigram_log_probs(counts))


def test_training_begins_at_the_loss_of_the_frequencies() -> None:
    ids = texts(400)
    words = torch.tensor([token for row in ids for token in row if token not in SPECIAL])
    log_probs = unigram_log_probs(torch.bincount(words, minlength=VOCABULARY))
    assert math.isclose(log_probs.exp().sum().item(), 1, rel_tol=1e-5)
    model = tiny("bert").eval()
    batch = torch.tensor([row[1:9] for row in ids if len(row) > 10])
    masked = torch.full_like(batch, 3)

    def loss() -> float:
        with torch.no_grad():
            return F.cross_entropy(model(masked).logits.flatten(0, 1), batch.flatten()).item()

    first = loss()
    initialize_from_corpus(model, rows_of(ids), Tokenizer())
    expected = -log_probs[batch].mean().item()
    assert abs(loss() - expected) < 0.1 * expected < 0.1 * first  # the embeddings still add noise


def test_packed_rows_and_arrow_rows_count_as_single_examples_do() -> None:
    single = datasets.Dataset.from_dict({"input_ids": [row for row in texts() if len(row) > 2]})
    models = []
    for rows in (single, tfo.ArrowRows(single), tfo.ArrowRows(tfo.pack(single, 40))):
        models.append(initialize_from_corpus(tiny("bert"), rows, Tokenizer()))
    vectors = [model.get_input_embeddings().weight.detach() for model in models]
    assert torch.equal(vectors[0], vectors[1])
    products = [vector @ vector.T for vector in vectors]  # counts of another order: fp32 sums
    torch.testing.assert_close(products[2], products[0], rtol=1e-3, atol=1e-4)


def test_a_large_corpus_is_sampled_evenly() -> None:
    ids = [[1, 5 + number, 2] for number in range(10)]
    stream, stretch = words_of(rows_of(ids), SPECIAL, max_rows=4)
    assert stream[stretch >= 0].tolist() == [5, 8, 11, 14]


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ([], "no word"),
        ([[]], "no word"),
        ([[1, 2], [1, 0, 2]], "no word"),
        ([[1, VOCABULARY, 2]], f"token id {VOCABULARY} is none of the {VOCABULARY} of BertFor"),
    ],
)
def test_a_corpus_that_cannot_be_leaves_the_model_alone(ids: list[list[int]], told: str) -> None:
    model = tiny("bert")
    before = model.get_input_embeddings().weight.detach().clone()
    with pytest.raises(ValueError, match=told):
        initialize_from_corpus(model, rows_of(ids), Tokenizer())
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_words_without_company_keep_their_vectors() -> None:
    model = tiny("bert")
    before = model.get_input_embeddings().weight.detach().clone()
    initialize_from_corpus(model, rows_of([[1, 9, 2], [1, 10, 2]]), Tokenizer())
    assert torch.equal(model.get_input_embeddings().weight, before)
    assert model.get_output_embeddings().bias[9] > model.get_output_embeddings().bias[11]


def test_is_a_surgery_and_a_public_name() -> None:
    assert tfo.SURGERIES["initialize_from_corpus"] is tfo.initialize_from_corpus
