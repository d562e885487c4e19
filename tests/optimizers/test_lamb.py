from typing import Any

import pytest
import torch
from torch import nn

import hf_tfopt as tfo
from hf_tfopt.native.build import find_compiler
from hf_tfopt.optimizers import kernels, lamb_passes
from hf_tfopt.optimizers import lamb as module
from hf_tfopt.optimizers.lamb import Lamb, lamb_state, trust_ratio
from hf_tfopt.optimizers.lamb_passes import is_compilable
from tests.references.lamb import NaiveLamb

# of torch 2.13's own compiler
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")

SHAPES = ((24, 24), (12, 48), (7,), (5, 3, 2), (1,), ())


def tensors(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    print("seed", seed)
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]


def set_gradients(parameters: list[nn.Parameter], scale: float = 1.0) -> None:
    for parameter in parameters:
        parameter.grad = scale * torch.randn(parameter.shape).to(parameter.dtype)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "bias_correction": False},
    {"max_trust_ratio": 1.0, "weight_decay": 0.1},
    {"betas": (0.0, 0.9), "eps": 0.1},
    {"betas": (0.9, 0.0), "eps": 1e-3},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("way", ["one by one", "together", "compiled", "native"])
def test_equals_the_reference_for_50_steps(
    options: dict[str, Any], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMALLEST_ALONE", 10**9 if way == "together" else 0)
    if way != "native":
        monkeypatch.setattr(kernels, "library", lambda name: None)
    elif find_compiler() is None:
        pytest.skip("no C++ compiler")
    parameters = tensors()
    optimizer = Lamb(parameters, lr=1e-2, **options, compiled=way == "compiled")
    naive = [NaiveLamb(p.detach(), lr=1e-2, **options) for p in parameters]
    for _ in range(50):
        set_gradients(parameters)
        for twin, parameter in zip(naive, parameters, strict=True):
            twin.step(parameter.grad)
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.99
        for twin in naive:
            twin.lr *= 0.99
    for twin, parameter, ratio in zip(
        naive, parameters, optimizer.trust_ratios().values(), strict=True
    ):
        # fp32 against float64 over 50 steps, each of rounding 6e-8
        torch.testing.assert_close(parameter.detach().double(), twin.theta, rtol=2e-5, atol=1e-6)
        assert ratio == pytest.approx(twin.trust_ratio, rel=1e-4)


def test_equals_timms_where_settings_coincide() -> None:
    timm_lamb = pytest.importorskip("timm.optim.lamb")
    ours, theirs = tensors(), tensors()
    options = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.999), "eps": 1e-6}
    optimizer = Lamb(ours, **options)
    peer = timm_lamb.Lamb(theirs, **options, always_adapt=True, max_grad_norm=None)
    for step in range(20):
        for parameters in (ours, theirs):
            torch.manual_seed(step)
            set_gradients(parameters)
        optimizer.step()
        peer.step()
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_ratio_of_the_paper_is_not_capped() -> None:
    """A weight five times as long as its update, where bitsandbytes' LAMB gives 1."""
    parameter = nn.Parameter(torch.full((4,), 5.0))
    optimizer = Lamb([parameter], lr=0.1, eps=0.0)
    parameter.grad = torch.ones(4)
    optimizer.step()
    assert optimizer.trust_ratios() == {"0": pytest.approx(5.0)}
    torch.testing.assert_close(parameter.detach(), torch.full((4,), 4.5))


@pytest.mark.parametrize(("weight", "gradient"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_the_ratio_is_one_where_a_norm_is_zero(weight: float, gradient: float) -> None:
    parameter = nn.Parameter(torch.full((3,), weight))
    optimizer = Lamb([parameter], lr=0.1)
    parameter.grad = torch.full((3,), gradient)
    optimizer.step()
    assert optimizer.trust_ratios() == {"0": 1.0}
    assert torch.isfinite(parameter).all()
    norms = torch.tensor([[weight, 3.0], [gradient, 2.0]])
    assert trust_ratio(norms[0], norms[1], None).tolist() == [1.0, 1.5]


def test_vectors_are_adapted_only_if_asked() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))

    def ratios(**options: Any) -> dict[str, float]:
        optimizer = tfo.build_optimizer(model, "lamb", lr=1e-3, weight_decay=0.1, **options)
        model(torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
        return optimizer.trust_ratios()

    usual = ratios()
    assert usual["0.weight"] != 1
    assert all(usual[name] == 1 for name in ("0.bias", "1.weight", "1.bias"))
    assert ratios(adapt_vectors=True)["1.weight"] != 1


def test_compiled_passes_are_compiled_for_all_sizes_and_taken_where_they_can_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SMALLEST_ALONE", 0)
    monkeypatch.setattr(kernels, "library", lambda name: None)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    parameters = tensors()
    optimizer = Lamb(parameters, lr=1e-2, weight_decay=0.1, compiled=True)
    for step in range(3):
        set_gradients(parameters)
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        optimizer.step()
    assert counters["stats"]["unique_graphs"] == 2
    assert [is_compilable(p) for p in parameters] == [True, True, True, True, False, False]
    assert not is_compilable(torch.zeros(4, 6).t())


@pytest.mark.parametrize("compiled", [False, True])
def test_bf16_weights_are_moved_in_fp32_and_rounded_once(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SMALLEST_ALONE", 0)
    monkeypatch.setattr(kernels, "library", lambda name: None)
    parameters = tensors(dtype=torch.bfloat16)
    wide = [nn.Parameter(p.detach().float()) for p in parameters]
    set_gradients(parameters)
    for w, p in zip(wide, parameters, strict=True):
        w.grad = p.grad.float()
    for group in (parameters, wide):
        Lamb(group, lr=0.1, weight_decay=0.1, compiled=compiled).step()
    for w, p in zip(wide, parameters, strict=True):
        assert torch.equal(w.detach().bfloat16(), p.detach())


def test_strided_parameters_are_moved_whole() -> None:
    storage = torch.randn(6, 8)
    parameter, twin = nn.Parameter(storage.t()), nn.Parameter(storage.t().contiguous())
    gradient = torch.randn(8, 6)
    for tensor in (parameter, twin):
        tensor.grad = gradient.clone()
        Lamb([tensor], lr=0.1, weight_decay=0.1).step()
    torch.testing.assert_close(parameter, twin)


@pytest.mark.parametrize("options", OPTIONS)
def test_pieces_make_a_whole(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of many pieces, of one and a bit, and one that cannot be cut."""
    monkeypatch.setattr(module, "SMALLEST_ALONE", 0)
    monkeypatch.setattr(kernels, "library", lambda name: None)

    def trained(piece: int) -> tuple[list[torch.Tensor], list[float]]:
        monkeypatch.setattr(lamb_passes, "PIECE", piece)
        parameters = [*tensors(), nn.Parameter(torch.randn(9, 4).t())]
        optimizer = Lamb(parameters, lr=1e-2, **options)
        for _ in range(3):
            set_gradients(parameters)
            optimizer.step()
        return [p.detach() for p in parameters], list(optimizer.trust_ratios().values())

    whole, ratios = trained(10**6)
    cut, found = trained(7)
    # the norms' squares are added up in another order
    assert found == pytest.approx(ratios, rel=1e-6)
    for ours, expected in zip(cut, whole, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("smallest_alone", [0, 10**9])
def test_precisions_stand_side_by_side(
    smallest_alone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32 and fp64 in one group; the ratios have the state's precision."""
    monkeypatch.setattr(module, "SMALLEST_ALONE", smallest_alone)
    monkeypatch.setattr(kernels, "library", lambda name: None)
    weights = [torch.randn(5, 4), torch.randn(5, 4).double()]
    parameters = [nn.Parameter(weight) for weight in weights]
    naive = [NaiveLamb(weight, lr=0.1) for weight in weights]
    optimizer = Lamb(parameters, lr=0.1)
    for parameter, twin in zip(parameters, naive, strict=True):
        parameter.grad = torch.randn_like(parameter)
        twin.step(parameter.grad)
    optimizer.step()
    tolerances = (1e-5, 1e-9) if smallest_alone == 0 else (1e-5, 1e-5)
    for parameter, twin, rtol in zip(parameters, naive, tolerances, strict=True):
        torch.testing.assert_close(parameter.double(), twin.theta, rtol=rtol, atol=rtol)


def test_parameters_without_gradient_keep_still_and_have_no_state() -> None:
    parameters = tensors()
    before = parameters[0].detach().clone()
    optimizer = Lamb(parameters, lr=0.1)
    set_gradients(parameters[1:])
    optimizer.step()
    assert torch.equal(parameters[0], before)
    assert "0" not in optimizer.trust_ratios()
    assert optimizer.step(lambda: 3.0) == 3.0
    assert set(lamb_state(parameters[0])) == {"step", "exp_avg", "exp_avg_sq", "trust_ratio"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0}, "lr must be a number above 0"),
        ({"weight_decay": -1}, "weight_decay must be"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must be"),
        ({"eps": -1e-6}, "eps must be"),
        ({"max_trust_ratio": 0}, "max_trust_ratio must be"),
    ],
)
def test_refuses_numbers_outside_their_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Lamb(tensors(), **{"lr": 1e-3, **options})
