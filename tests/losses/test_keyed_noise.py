"""The noise of an example is its own: the same in every batch, place and padding."""

import numpy as np
import pytest
import torch

from hf_tfopt.data import keyed_bits
from hf_tfopt.losses.keyed_noise import mix, normal_noise, uniform_noise
from hf_tfopt.losses.perturbation import end_to_end_examples, padded_examples

WIDTH = 6
LENGTHS = (3, 5, 1)


def sentences() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, 99, (length,), generator=generator) for length in LENGTHS]


def alone(ids: torch.Tensor, seed: int = 3, step: int = 7) -> torch.Tensor:
    row = ids.unsqueeze(0)
    return uniform_noise(row, padded_examples(torch.ones_like(row)), WIDTH, seed, step)[0]


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(side: str) -> None:
    ids, mask = torch.zeros(3, 8, dtype=torch.long), torch.zeros(3, 8, dtype=torch.long)
    places = []
    for row, sentence in enumerate(sentences()):
        start = 0 if side == "right" else 8 - len(sentence)
        places.append(slice(start, start + len(sentence)))
        ids[row, places[row]], mask[row, places[row]] = sentence, 1
    noise = uniform_noise(ids, padded_examples(mask), WIDTH, 3, 7)
    assert not noise[mask == 0].any()
    for row, sentence in enumerate(sentences()):
        assert torch.equal(noise[row, places[row]], alone(sentence))


def test_end_to_end_is_the_same() -> None:
    ends = torch.tensor([0, *LENGTHS]).cumsum(0)
    ids = torch.cat(sentences()).unsqueeze(0)
    noise = uniform_noise(ids, end_to_end_examples(ends, ids.numel()), WIDTH, 3, 7)
    assert torch.equal(noise[0], torch.cat([alone(sentence) for sentence in sentences()]))


def test_an_empty_example_at_the_end() -> None:
    ends = torch.tensor([0, 3, 3])
    ids = sentences()[0].unsqueeze(0)
    noise = uniform_noise(ids, end_to_end_examples(ends, 3), WIDTH, 3, 7)
    assert torch.equal(noise[0], alone(sentences()[0]))


def test_seed_step_tokens_and_order_all_count() -> None:
    ids = sentences()[1]
    noise = alone(ids)
    changed = ids.clone()
    changed[0] += 1
    for other in (alone(ids, seed=4), alone(ids, step=8), alone(changed), alone(ids.flip(0))):
        assert (other != noise).float().mean() > 0.9
    assert torch.equal(alone(ids, seed=3 + 2**64), noise)


def test_the_hash_is_that_of_the_masks() -> None:
    words = torch.randint(-(2**62), 2**62, (1000,), generator=torch.Generator().manual_seed(0))
    expected = keyed_bits.mix(words.numpy().view(np.uint64)).view(np.int64)
    assert torch.equal(mix(words), torch.from_numpy(expected))


@pytest.mark.parametrize(
    ("noise_of", "variance", "fourth"), [(uniform_noise, 1 / 3, 1 / 5), (normal_noise, 1.0, 3.0)]
)
def test_the_distribution(noise_of: object, variance: float, fourth: float) -> None:
    ids = torch.randint(5, 99, (200, 64), generator=torch.Generator().manual_seed(0))
    assert callable(noise_of)
    noise = noise_of(ids, padded_examples(torch.ones_like(ids)), 32, 0, 0).double().flatten()
    # 400k draws: five standard errors of each moment are below 2 per cent (normal, fourth: 4)
    assert abs(noise.mean()) < 0.01
    assert noise.square().mean() == pytest.approx(variance, rel=0.02)
    assert noise.pow(4).mean() == pytest.approx(fourth, rel=0.05)
    by_feature = noise.view(-1, 32)
    related = torch.corrcoef(by_feature.T) - torch.eye(32)
    assert related.abs().max() < 0.06  # 12800 pairs: six standard errors
    if noise_of is uniform_noise:
        assert noise.abs().max() < 1
