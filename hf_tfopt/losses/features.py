"""Distances between what a student and its teacher compute inside, summed over real tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_tfopt.losses.divergence import LOG_OF_NOTHING, DivergenceForm, divergence_of_rows
from hf_tfopt.losses.reduction import LossSum


def hidden_state_distance(student: Tensor, teacher: Tensor, is_token: Tensor) -> LossSum:
    """Squared difference of hidden states, the mean over their width, summed over tokens.

    Equals `F.mse_loss(student[is_token], teacher[is_token]) * count`.

    Args:
        student: [B, T, H].
        teacher: [B, T, H].
        is_token: [B, T], False at padding.

    Paper: Jiao et al. 2020, "TinyBERT", https://arxiv.org/abs/1909.10351, equation 8 (its
    projection is applied before).
    """
    pairs = _wide(student) - _wide(teacher).detach()
    return _over_tokens(pairs.square().mean(-1), is_token)


def cosine_distance(student: Tensor, teacher: Tensor, is_token: Tensor) -> LossSum:
    """1 - cos(student, teacher) of hidden states, summed over tokens.

    Args:
        student: [B, T, H].
        teacher: [B, T, H].
        is_token: [B, T], False at padding.

    Paper: Sanh et al. 2019, "DistilBERT", https://arxiv.org/abs/1910.01108, section 2 (L_cos).
    """
    each = 1 - F.cosine_similarity(_wide(student), _wide(teacher).detach(), dim=-1)
    return _over_tokens(each, is_token)


def attention_distance(student: Tensor, teacher: Tensor, is_token: Tensor) -> LossSum:
    """Squared difference of attention maps, the mean over heads and keys, summed over queries.

    For one example of l tokens and h heads it is l / h times the sum over heads of
    `F.mse_loss(student[head, :l, :l], teacher[head, :l, :l])`.

    Args:
        student: [B, h, T, T], of queries and keys.
        teacher: [B, h, T, T].
        is_token: [B, T], False at padding.

    Paper: Jiao et al. 2020, "TinyBERT", https://arxiv.org/abs/1909.10351, equation 7. Differs: maps
    after the softmax, which the host gives; theirs are the scores before it.
    """
    squares = (_wide(student) - _wide(teacher).detach()).square().mean(1)
    num_keys = is_token.sum(-1).clamp(min=1).view(-1, 1)
    return _over_tokens((squares * is_token.unsqueeze(1)).sum(-1) / num_keys, is_token)


def relation_divergence(
    student: Tensor, teacher: Tensor, is_token: Tensor, num_heads: int
) -> LossSum:
    """KL of the teacher's relations to the student's, the mean over heads, summed over tokens.

    A relation of vectors x [T, F] cut into heads of width d = F / num_heads is, in each head,
    softmax(x xᵀ / √d): how near a token's query (key, value) is to those of all tokens.

    Args:
        student: [B, T, F], queries, keys or values of one layer.
        teacher: [B, T, F'], the same of the teacher; its width may differ.
        is_token: [B, T], False at padding.
        num_heads: relation heads, a divisor of both widths.

    Paper: Wang et al. 2021, "MiniLMv2", https://arxiv.org/abs/2012.15828, equations 4 to 8.
    """
    ours, theirs = (_relation_scores(x, is_token, num_heads) for x in (student, teacher.detach()))
    each = divergence_of_rows(ours, theirs, DivergenceForm())
    return _over_tokens(each.mean(1), is_token)


def _relation_scores(vectors: Tensor, is_token: Tensor, num_heads: int) -> Tensor:
    """[B, heads, T, T], with nothing left for padding."""
    heads = _wide(vectors).unflatten(-1, (num_heads, -1)).transpose(1, 2)
    scores = heads @ heads.transpose(-1, -2) / heads.shape[-1] ** 0.5
    return scores.masked_fill(~is_token[:, None, None, :], LOG_OF_NOTHING)


def _over_tokens(each: Tensor, is_token: Tensor) -> LossSum:
    return LossSum(torch.where(is_token, each, 0.0).sum(), is_token.sum())


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
