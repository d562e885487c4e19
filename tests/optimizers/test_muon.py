import copy
import io

import pytest
import torch
from torch import nn

import hf_tfopt as tfo
from hf_tfopt.optimizers import muon as module
from hf_tfopt.optimizers.muon import Muon, muon_update, update_scale
from tests.references.muon import NaiveAdamW, NaiveMuon


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def matrices(seed: int, *shapes: tuple[int, int]) -> list[nn.Parameter]:
    print("seed", seed)
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def set_gradients(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape).to(parameter.dtype)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
def test_equals_the_reference_for_50_steps(nesterov, scale) -> None:
    trained = matrices(0, (24, 24), (24, 24), (12, 48), (48, 12))
    vectors = [nn.Parameter(torch.randn(7)), nn.Parameter(torch.randn(5, 3))]
    optimizer = Muon(
        [
            {"params": trained, "use_muon": True},
            {"params": vectors, "use_muon": False, "lr": 2e-2, "weight_decay": 0.3},
        ],
        lr=1e-2,
        adamw_lr=1e-3,
        weight_decay=0.1,
        nesterov=nesterov,
        scale=scale,
        precision="float32",
    )
    of_muon = [NaiveMuon(p.detach(), 1e-2, 0.1, 0.95, nesterov, scale) for p in trained]
    # the group's own lr of 2e-2, times adamw_lr / lr
    of_adamw = [NaiveAdamW(p.detach(), 2e-3, 0.3, (0.9, 0.95), 1e-8) for p in vectors]
    for _ in range(50):
        set_gradients(trained + vectors)
        optimizer.step()
        for twin, parameter in zip(of_muon + of_adamw, trained + vectors, strict=True):
            twin.step(parameter.grad)
    for twin, parameter in zip(of_muon + of_adamw, trained + vectors, strict=True):
        # fp32 against float64, 50 updates of about 1e-2 with errors of about 1e-4 of their size
        assert relative_error(parameter.detach(), twin.theta) < 1e-5


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with 2.9")
@pytest.mark.parametrize("shape", [(32, 32), (16, 64), (64, 16)])
@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_equals_torchs_where_settings_coincide(shape, scale, nesterov) -> None:
    ours = matrices(1, shape)
    theirs = copy.deepcopy(ours)
    start = ours[0].detach().clone()
    optimizer = Muon(
        ours, 0.02, weight_decay=0.1, nesterov=nesterov, scale=scale, precision="bfloat16"
    )
    reference = torch.optim.Muon(
        theirs, 0.02, weight_decay=0.1, nesterov=nesterov, adjust_lr_fn=scale
    )
    for _ in range(10):
        set_gradients(ours)
        theirs[0].grad = ours[0].grad.clone()
        optimizer.step()
        reference.step()
    # both round to bf16, at different places: 2% of an update each, and they partly cancel
    assert relative_error(ours[0].detach() - start, theirs[0].detach() - start) < 2e-2


def test_small_matrices_in_a_batch_are_those_one_by_one(monkeypatch) -> None:
    together = matrices(2, *[(16, 16)] * 3, *[(16, 40)] * 2, (40, 16))
    apart = copy.deepcopy(together)
    set_gradients(together)
    for parameter, other in zip(together, apart, strict=True):
        other.grad = parameter.grad.clone()
    Muon(together, lr=0.1, precision="float32").step()
    monkeypatch.setattr(module, "LARGEST_BATCHED_MATRIX", 0)
    Muon(apart, lr=0.1, precision="float32").step()
    for parameter, other in zip(together, apart, strict=True):
        # another kernel may sum in another order
        torch.testing.assert_close(parameter, other, rtol=0, atol=1e-5)


def test_the_momentum_is_brought_up_to_date_in_place() -> None:
    average = torch.zeros(4, 8)
    muon_update([torch.ones(4, 8)], [average], 0.75)
    assert average.eq(0.25).all()


def test_the_scale_counts_outputs_over_inputs() -> None:
    assert update_scale(64, 16, "original") == 2.0
    assert update_scale(16, 64, "original") == 1.0
    assert update_scale(64, 16, "match_rms_adamw") == update_scale(16, 64, "match_rms_adamw")
    # 0.2 √64
    assert update_scale(64, 16, "match_rms_adamw") == pytest.approx(1.6)


def test_an_update_has_adamws_root_mean_square() -> None:
    trained = matrices(3, (64, 64), (32, 128), (128, 32))
    before = [parameter.detach().clone() for parameter in trained]
    set_gradients(trained)
    Muon(trained, lr=1.0).step()
    for parameter, old in zip(trained, before, strict=True):
        # Liu et al.: between 0.2 and 0.4 is AdamW's; the band 0.7-1.2 of Newton-Schulz times 0.2
        assert 0.13 < (parameter.detach() - old).square().mean().sqrt() < 0.25


def test_matrices_stored_transposed_get_the_scale_of_their_layer() -> None:
    upright, transposed = matrices(4, (64, 16), (16, 64))
    gradient = torch.randn(64, 16)
    upright.data.zero_()
    transposed.data.zero_()
    upright.grad, transposed.grad = gradient, gradient.T.contiguous()
    groups = [
        {"params": [upright], "is_transposed": False},
        {"params": [transposed], "is_transposed": True},
    ]
    Muon(groups, lr=0.1, scale="original", precision="float32").step()
    torch.testing.assert_close(upright.detach(), transposed.detach().T, rtol=0, atol=1e-6)


def test_bf16_parameters_stay_bf16_with_an_fp32_state_that_survives_saving() -> None:
    def build() -> tuple[nn.Module, Muon]:
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 8)).bfloat16()
        return model, tfo.build_optimizer(model, "muon", lr=1e-2)

    model, optimizer = build()
    for _ in range(3):
        set_gradients(list(model.parameters()))
        optimizer.step()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    values = [value for state in optimizer.state.values() for value in state.values()]
    assert {value.dtype for value in values} == {torch.float32}

    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    _, resumed = build()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    loaded = [value for state in resumed.state.values() for value in state.values()]
    assert len(loaded) == len(values) > 0
    assert all(a.equal(b) for a, b in zip(values, loaded, strict=True))
    # nothing that bf16 would have kept: the test would not notice a cast
    assert not all(value.equal(value.bfloat16().float()) for value in values)


def test_bf16_second_moments_do_not_stand_still() -> None:
    vector = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    matrix = nn.Parameter(torch.zeros(2, 2))
    groups = [{"params": [matrix]}, {"params": [vector], "use_muon": False}]
    optimizer = Muon(groups, lr=1e-3, betas=(0.9, 0.999))
    vector.grad = torch.ones_like(vector)
    for _ in range(500):
        optimizer.step()
    # 1 - 0.999^500 = 0.39; kept in bf16, v stops at 0.25, where (1 - v) / 1000 is below half a bit
    assert optimizer.state[vector]["exp_avg_sq"][0] == pytest.approx(0.394, abs=1e-3)


def test_groups_built_twice_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    groups = tfo.param_groups(model, lr=0.02)
    for _ in range(2):
        optimizer = Muon(groups, lr=0.02, adamw_lr=0.001)
    assert [group["lr"] for group in groups] == [0.02, 0.02]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.001])


def test_the_scale_follows_from_whether_one_lr_serves_both() -> None:
    (matrix,) = matrices(6, (4, 4))
    assert Muon([matrix], lr=0.02).param_groups[0]["scale"] == "match_rms_adamw"
    assert Muon([matrix], lr=0.02, adamw_lr=1e-3).param_groups[0]["scale"] == "original"


def test_parameters_without_a_gradient_are_left_alone() -> None:
    first, second = matrices(7, (4, 4), (4, 4))
    before = second.detach().clone()
    first.grad = torch.ones(4, 4)
    optimizer = Muon([first, second], lr=0.1, weight_decay=0.1)
    optimizer.step()
    assert second.equal(before)
    assert set(optimizer.state) == {first}


def test_step_returns_the_loss_of_its_closure() -> None:
    (matrix,) = matrices(8, (4, 4))
    optimizer = Muon([matrix], lr=0.1)

    def closure() -> float:
        loss = matrix.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    assert matrix.grad is not None


def test_refuses_the_state_of_another_optimizer() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    saved = tfo.build_optimizer(model, "adamw", lr=1e-3).state_dict()
    with pytest.raises(ValueError, match="not of a Muon with these groups"):
        tfo.build_optimizer(model, "muon", lr=1e-3).load_state_dict(saved)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0}, "lr must be a number above 0, got 0"),
        ({"lr": float("nan")}, "lr must be"),
        ({"lr": 0.1, "adamw_lr": -1.0}, "adamw_lr must be a number above 0, got -1.0"),
        ({"lr": 0.1, "weight_decay": -0.1}, "weight_decay must be a number, 0 or above"),
        ({"lr": 0.1, "momentum": 1.0}, "momentum must be at least 0 and below 1"),
        ({"lr": 0.1, "num_steps": 0}, "num_steps must be a whole number above 0"),
        ({"lr": 0.1, "num_steps": 2.5}, "num_steps must be a whole number above 0"),
        ({"lr": 0.1, "scale": "orginal"}, "unknown scale 'orginal' .did you mean 'original'"),
        ({"lr": 0.1, "precision": "bf16"}, "unknown precision 'bf16'.*bfloat16"),
        ({"lr": 0.1, "betas": (0.9, 1.0)}, r"betas\[1\] must be at least 0 and below 1"),
        ({"lr": 0.1, "betas": (0.9,)}, "betas must be two numbers"),
        ({"lr": 0.1, "eps": -1e-8}, "eps must be"),
    ],
)
def test_refuses_numbers_outside_their_range(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        Muon(matrices(9, (4, 4)), **options)


def test_refuses_what_muon_cannot_train() -> None:
    with pytest.raises(ValueError, match=r"Muon trains matrices, got a tensor of shape \[4\]"):
        Muon([nn.Parameter(torch.zeros(4))], lr=0.1)
    with pytest.raises(ValueError, match="no group of hidden matrices"):
        tfo.build_optimizer(nn.LayerNorm(4), "muon", lr=0.1)
