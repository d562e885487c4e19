"""Random numbers that are functions of (seed, step, an example's own tokens, place), anywhere.

The noise of an example is the same whatever batch it comes in, on whichever process, and after a
restart. A hash and no generator: nothing to save, and no wait for the device.
"""

import math

import torch
from torch import Tensor

from hf_tfopt.losses.perturbation import Examples

# splitmix64's increment and multipliers (Steele et al. 2014), as signed numbers
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64
_FRACTION = 23  # bits of a number in (0, 1): fp32 holds 24, and one is for the half


def uniform_noise(ids: Tensor, examples: Examples, width: int, seed: int, step: int) -> Tensor:
    """Numbers in (-1, 1), equally likely everywhere, [B, T, width]; 0 at padding.

    Args:
        ids: the token ids [B, T].
        examples: whose positions are whose.
        width: numbers for each position.
        seed: any integer.
        step: the optimizer step: each has its own noise.
    """
    fraction = _fraction(_words(ids, examples, width, seed, step), 64 - _FRACTION)
    return _at_real(2 * fraction - 1, ids, examples)


def normal_noise(ids: Tensor, examples: Examples, width: int, seed: int, step: int) -> Tensor:
    """Numbers of the standard normal distribution, [B, T, width]; 0 at padding.

    Arguments as those of `uniform_noise`. By Box and Muller 1958, from two fractions.
    """
    words = _words(ids, examples, width, seed, step)
    radius = torch.sqrt(-2 * torch.log(_fraction(words, 64 - _FRACTION)))
    angle = 2 * math.pi * _fraction(words, 64 - 2 * _FRACTION)
    return _at_real(radius * torch.cos(angle), ids, examples)


def _words(ids: Tensor, examples: Examples, width: int, seed: int, step: int) -> Tensor:
    """64 random bits for each number, [B * T, width].

    A token's place is counted without padding, so that padding changes nothing.
    """
    tokens, owners, is_real = ids.reshape(-1).long(), examples.owners, examples.is_real
    before = is_real.long().cumsum(0) - is_real.long()
    starts = examples.lengths.cumsum(0) - examples.lengths
    first = torch.cat([before, before.new_zeros(1)])[starts]  # the last example may be empty
    place = before - first[owners]
    products = torch.where(is_real, (tokens + 1) * mix((place + 1) * _GOLDEN), 0)
    content = products.new_zeros(len(examples.lengths)).index_add_(0, owners, products)
    moment = int(mix(mix(torch.tensor(_signed(seed))) + step))
    keys = mix(content + moment)
    counters = place.unsqueeze(-1) * width + torch.arange(width, device=ids.device)
    return mix(keys[owners].unsqueeze(-1) + counters * _GOLDEN)


def mix(words: Tensor) -> Tensor:
    """Hash 64-bit words one by one: the finaliser of splitmix64."""
    words = words ^ _shifted(words, 30)
    words *= _FIRST
    words ^= _shifted(words, 27)
    words *= _SECOND
    words ^= _shifted(words, 31)
    return words


def _shifted(words: Tensor, by: int) -> Tensor:
    """To the right, filled with zeros: the words stand for numbers without a sign."""
    return (words >> by).bitwise_and_((1 << (64 - by)) - 1)


def _fraction(words: Tensor, by: int) -> Tensor:
    """`_FRACTION` of the words' bits as a number in (0, 1)."""
    bits = _shifted(words, by) & ((1 << _FRACTION) - 1)
    return (bits.float() + 0.5) * 2.0**-_FRACTION


def _at_real(noise: Tensor, ids: Tensor, examples: Examples) -> Tensor:
    noise = torch.where(examples.is_real.unsqueeze(-1), noise, 0)
    return noise.view(*ids.shape, noise.shape[-1])


def _signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63
