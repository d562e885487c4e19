import pytest
import torch
from torch import nn

import hf_tfopt as tfo


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.9), "eps": 1e-6}),
        ("sgd", torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
    ],
)
def test_is_torchs_own_and_fused(name, kind, options) -> None:
    print("seed 0")
    torch.manual_seed(0)
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizer = tfo.build_optimizer(ours, name, lr=0.1, weight_decay=0.0, **options)
    twin = kind(theirs.parameters(), lr=0.1, foreach=False, **options)
    assert isinstance(optimizer, kind)
    assert all(group["fused"] for group in optimizer.param_groups)
    for _ in range(10):
        inputs = torch.randn(8, 4)
        for model, stepped in ((ours, optimizer), (theirs, twin)):
            stepped.zero_grad()
            model(inputs).square().mean().backward()
            stepped.step()
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("adam", {"betas": (1.0, 0.9)}, r"betas\[0\]"),
        ("adam", {"eps": -1}, "eps must be"),
        ("sgd", {"momentum": 1.0}, "momentum must be"),
        ("sgd", {"momentum": 0.0, "nesterov": True}, "nesterov needs a momentum"),
    ],
)
def test_refuses_numbers_outside_their_range(name, options, words) -> None:
    with pytest.raises(ValueError, match=words):
        tfo.build_optimizer(nn.Linear(2, 2), name, lr=0.1, **options)
