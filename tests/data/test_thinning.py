"""Targets let go of, against a loop over the runs."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_tfopt.data.keyed_bits import mix
from hf_tfopt.data.thinning import thinned

GOLDEN = 0x9E3779B97F4A7C15


def masked_rows(num_rows: int, length: int, rate: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens, what the model sees, and the labels; 99 is the mask token."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 90, (num_rows, length), generator=generator)
    is_target = torch.rand(num_rows, length, generator=generator) < rate
    is_target[:, [0, -1]] = False
    return tokens, tokens.masked_fill(is_target, 99), tokens.masked_fill(~is_target, -100)


def looped(ids: Tensor, labels: Tensor, share: float, *key: int) -> tuple[Tensor, Tensor]:
    """One run after the other, with numpy's hash."""
    ids, labels = ids.clone(), labels.clone()
    tokens = torch.where(labels == -100, ids, labels)
    for row in range(len(ids)):
        place = 0
        while place < ids.shape[1]:
            if labels[row, place] == -100:
                place += 1
                continue
            end = place
            while end < ids.shape[1] and labels[row, end] != -100:
                end += 1
            state = np.zeros(1, dtype=np.uint64)
            for word in (*key, *(int(tokens[row, place + step]) for step in (-1, 0, 1))):
                state = mix(state + np.uint64((word + GOLDEN) % 2**64))
            if int(state[0]) % 2**32 >= round(share * 2**32):
                ids[row, place:end] = tokens[row, place:end]
                labels[row, place:end] = -100
            place = end
    return ids, labels


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_runs_stay_or_go_as_a_whole(share: float) -> None:
    tokens, ids, labels = masked_rows(6, 40)
    found, expected = thinned(ids, labels, share, 7, -3), looped(ids, labels, share, 7, -3)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    assert torch.equal(torch.where(found[1] == -100, found[0], found[1]), tokens)
    assert share != 1 or torch.equal(found[1], labels)
    assert share != 0 or bool((found[1] == -100).all())


def test_the_share_is_exact() -> None:
    _, ids, labels = masked_rows(400, 128)
    num_runs = int(((labels != -100)[:, 1:] & (labels == -100)[:, :-1]).sum())
    for step in range(3):
        _, left = thinned(ids, labels, 0.4, step)
        share = float((left != -100).sum() / (labels != -100).sum())
        # four deviations; runs of 1.4 tokens on average spread more than tokens alone
        assert abs(share - 0.4) < 4 * math.sqrt(2 * 0.4 * 0.6 / num_runs), step


def test_it_depends_on_the_step_and_the_text_alone() -> None:
    _, ids, labels = masked_rows(6, 40)
    whole = thinned(ids, labels, 0.5, 1)[1]
    rows = [thinned(ids[i : i + 1], labels[i : i + 1], 0.5, 1)[1] for i in range(6)]
    assert torch.equal(whole, torch.cat(rows))
    joined = thinned(ids.view(1, -1), labels.view(1, -1), 0.5, 1)[1]
    assert torch.equal(whole, joined.view(6, 40))
    assert not torch.equal(whole, thinned(ids, labels, 0.5, 2)[1])
