import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_tfopt.callbacks.blocks import by_block, by_role, roles
from tests.models import TINY, tiny


@pytest.mark.parametrize("name", TINY)
def test_groups_are_in_order_and_their_norms_make_the_whole(name: str) -> None:
    model = tiny(name)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for groups in (by_block(model), by_role(model)):
        norms = groups.norms(groups.gradients())
        whole = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        # fp32 sums of some 1e4 squares in another order
        torch.testing.assert_close(norms.norm(), whole, rtol=1e-5, atol=0)
        for group, norm in zip(groups.names, norms, strict=True):
            own = torch.cat([p.grad.flatten() for p in groups.of(group)]).norm()
            torch.testing.assert_close(norm, own, rtol=1e-5, atol=0)
    names = by_block(model).names
    assert names[0] == "embeddings" and ("head" not in names or names[-1] == "head")


@pytest.mark.parametrize("name", TINY)
def test_attention_is_found_in_every_architecture(name: str) -> None:
    """All that a layer has beside its norms is attention or feed-forward, and each has both."""
    model = tiny(name)
    words = ("attn", "attention", "SelfAttention", "EncDecAttention")
    inside = {"attention", "feed_forward"}
    for parameter, role in roles(model).items():
        is_in_attention = any(word in parameter for word in words)
        if role in inside:
            assert (role == "attention") == is_in_attention, parameter
    assert inside <= {*by_role(model).names}


def test_frozen_parameters_are_in_no_group() -> None:
    model = tiny("bert")
    for parameter in model.bert.parameters():
        parameter.requires_grad_(False)
    assert by_block(model).names == ("head",)


def test_no_gradient_counts_as_none() -> None:
    groups = by_block(tiny("bert"))
    assert groups.norms([None] * len(groups.parameters)).tolist() == [0.0] * len(groups.names)


def test_a_model_on_several_devices() -> None:
    """Tensors that only say where they are: torch refuses to mix their devices as it would."""
    model = tiny("bert")
    groups = by_block(model)
    with FakeTensorMode():
        tensors: list[torch.Tensor | None] = [
            torch.empty(parameter.shape, device=f"cuda:{number % 2}")
            for number, parameter in enumerate(groups.parameters)
        ]
        tensors[1] = None
        norms = groups.norms(tensors)
    assert norms.device == torch.device("cuda", 0)
    assert norms.shape == (len(groups.names),)


def test_missing_gradients_count_as_none_without_the_compiled_sums() -> None:
    groups = by_block(tiny("bert"))
    generator = torch.Generator().manual_seed(7)
    tensors = [torch.randn(p.shape, generator=generator) for p in groups.parameters]
    some = [None if number % 3 == 0 else tensor for number, tensor in enumerate(tensors)]
    plain = groups.norms(some)
    half = groups.norms([None if tensor is None else tensor.double() for tensor in some])
    # in fp64 they take the way of other devices; fp32 sums of squares in another order
    torch.testing.assert_close(half, plain, rtol=1e-5, atol=0)
    assert half.dtype == torch.float32
