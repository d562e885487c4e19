"""Two losses of one model are the same to a training: in value, and in every gradient."""

import torch
from transformers import PreTrainedModel


def assert_same_training(
    model: PreTrainedModel, ours: torch.Tensor, theirs: torch.Tensor, tolerance: float
) -> None:
    """To a share of the loss, and of each gradient's largest entry."""
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(theirs, parameters, allow_unused=True)
    found = torch.autograd.grad(ours, parameters, allow_unused=True)
    for gradient, reference in zip(found, expected, strict=True):
        assert (gradient is None) == (reference is None)
        if gradient is not None and reference is not None:
            scale = max(float(reference.abs().max()), 1e-3)
            assert float((gradient - reference).abs().max()) <= tolerance * scale
