"""Distances of features the obvious way: one example, one layer, one token after the other."""

import torch
import torch.nn.functional as F


def naive_hidden_states(
    student: torch.Tensor, teacher: torch.Tensor, lengths: list[int]
) -> torch.Tensor:
    """The mean squared difference over all real tokens, [B, T, H]."""
    pieces = [(s[:n], t[:n]) for s, t, n in zip(student, teacher, lengths, strict=True)]
    ours, theirs = (torch.cat(side) for side in zip(*pieces, strict=True))
    return F.mse_loss(ours, theirs)


def naive_cosine(student: torch.Tensor, teacher: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """As DistilBERT's code has it: CosineEmbeddingLoss with target 1, the mean over real tokens."""
    pieces = [(s[:n], t[:n]) for s, t, n in zip(student, teacher, lengths, strict=True)]
    ours, theirs = (torch.cat(side) for side in zip(*pieces, strict=True))
    return F.cosine_embedding_loss(ours, theirs, ours.new_ones(len(ours)))


def naive_attention(student: torch.Tensor, teacher: torch.Tensor, lengths: list[int]):
    """1/h sum over heads of MSE, each example's for each of its tokens; [B, h, T, T]."""
    total = student.new_zeros(())
    for s, t, n in zip(student, teacher, lengths, strict=True):
        heads = [F.mse_loss(s[i, :n, :n], t[i, :n, :n]) for i in range(len(s))]
        total = total + n * torch.stack(heads).mean()
    return total / sum(lengths)


def naive_relations(
    student: list[torch.Tensor], teacher: list[torch.Tensor], lengths: list[int], num_heads: int
) -> torch.Tensor:
    """KL of relations among queries, keys and values, the mean over heads and real tokens."""
    total = student[0].new_zeros(())
    for ours, theirs in zip(student, teacher, strict=True):
        for s, t, n in zip(ours, theirs, lengths, strict=True):
            for a, b in zip(s[:n].chunk(num_heads, -1), t[:n].chunk(num_heads, -1), strict=True):
                q = torch.log_softmax(a @ a.t() / a.shape[-1] ** 0.5, -1)
                p = torch.softmax(b @ b.t() / b.shape[-1] ** 0.5, -1)
                total = total + F.kl_div(q, p, reduction="sum") / num_heads
    return total / sum(lengths)
