"""Fewer targets in a masked batch: some are guessed no more, and their tokens are seen again."""

from functools import reduce

import torch
from torch import Tensor

from hf_tfopt.data.batch_form import IGNORED

_BITS = 32  # of a draw


def thinned(ids: Tensor, labels: Tensor, share: float, *key: int) -> tuple[Tensor, Tensor]:
    """Let go of targets until a `share` of them is left; `ids` and `labels` anew.

    A run of neighbouring targets (a word, a span) stays or goes as a whole, with probability
    `share`, so that each target does. Where it goes `ids` have the token back, and `labels` -100.
    The draw is a hash of the key and of the three tokens about the run's first: the same in any
    batch, for any number of processes, and nothing waits for an accelerator.

    Args:
        ids: [rows, length], with mask tokens and others in the places of targets.
        labels: the tokens that were there; -100: no target.
        share: in [0, 1].
        key: of the draw, any integers.
    """
    is_target = labels != IGNORED
    tokens = torch.where(is_target, labels, ids)
    is_first = is_target.clone()
    is_first[:, 1:] &= ~is_target[:, :-1]
    around = [tokens.roll(1, dims=1), tokens, tokens.roll(-1, dims=1)]
    drawn = reduce(lambda state, part: _mixed(state + part), [*key, *around], torch.zeros_like(ids))
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    first = torch.where(is_first, places, 0).cummax(dim=1).values  # of the run at each place
    kept = drawn.gather(1, first) & ((1 << _BITS) - 1) < round(share * (1 << _BITS))
    kept &= is_target
    return torch.where(kept, ids, tokens), torch.where(kept, labels, IGNORED)


def _mixed(x: Tensor) -> Tensor:
    """splitmix64's finaliser, on integers with a sign."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
