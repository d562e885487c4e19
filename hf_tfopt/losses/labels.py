"""Labels: which rows have one, and whether they are what they should be."""

import torch
from torch import Tensor


def labelled(tensor: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Rows of `tensor` [..., F] that have a label, and their labels.

    Raises:
        ValueError: shapes that do not match.
    """
    if tensor.shape[:-1] != labels.shape:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit {tuple(tensor.shape)}: "
            "all dimensions but the last must be the same"
        )
    targets = labels.reshape(-1)
    index = targets.ne(ignore_index).nonzero().squeeze(-1)
    rows = tensor.reshape(-1, tensor.shape[-1])
    if index.numel() == targets.numel():
        return rows, targets
    return rows.index_select(0, index), targets.index_select(0, index)


def check_labels(targets: Tensor, num_classes: int, ignore_index: int) -> None:
    """Refuse labels outside the range, never taking one for another class.

    On an accelerator a look at the values would cost a synchronisation; its gather asserts.

    Raises:
        ValueError: a label below 0 or not below `num_classes`, or one that is no whole number.
    """
    if targets.is_floating_point():
        raise ValueError(f"labels are {targets.dtype}; classes are whole numbers (torch.long)")
    if targets.device.type != "cpu" or not targets.numel():
        return
    low, high = (int(value) for value in torch.aminmax(targets))
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"label {low if low < 0 else high} is outside [0, {num_classes}); "
            f"positions without a target are labelled {ignore_index}"
        )
