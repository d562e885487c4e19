import sys
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

import hf_tfopt as tfo
from hf_tfopt.cli import main
from tests.callbacks.test_evaluation_weights import Classifier, Points

EXTRAS = {
    "adamw_8bit": "quantization",
    "lion_8bit": "quantization",
    "adamw_8bit_torchao": "torchao",
    "adamw_4bit": "torchao",
}
# bits of one number of the state, its block's fp32 scale with it, and how far a weight is from
# where a state in fp32 leads it, in steps: 8 bits round a number by about 1 %, 4 bits by up to 12 %
BITS = {"adamw_8bit_torchao": (8 + 32 / 256, 1.0), "adamw_4bit": (4 + 32 / 128, 10.0)}
OF_TORCHAO = [pytest.param(name, *limits) for name, limits in BITS.items()]
needs_torchao = pytest.mark.skipif(
    find_spec("torchao") is None, reason="needs pip install 'hf-tfopt[torchao]'"
)
# its import makes script modules
quietly = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")


class Model(nn.Module):
    """A table of 4096 numbers, a matrix of 4096, one of 4095 and vectors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.Embedding(64, 64)
        self.layers = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])
        self.layers.append(nn.Linear(63, 65))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int) -> None:
    for number in range(num_steps):
        generator = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def states(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.dtype]:
    return {
        name: optimizer.state[parameter]["state1"].dtype
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1
    }


@pytest.mark.parametrize("name", ["adamw_8bit", "lion_8bit"])
@pytest.mark.parametrize("embedding_bits", [8, 32])
@pytest.mark.parametrize("min_8bit_size", [4095, 4096])
def test_tables_and_small_tensors_keep_fp32(name, embedding_bits, min_8bit_size) -> None:
    model = Model()
    options = {"embedding_bits": embedding_bits, "min_8bit_size": min_8bit_size}
    optimizer = tfo.build_optimizer(model, name, lr=1e-3, **options)
    step(model, optimizer, 1)
    assert states(model, optimizer) == {
        "embeddings.weight": torch.uint8 if embedding_bits == 8 else torch.float32,
        "layers.0.weight": torch.uint8,
        "layers.1.weight": torch.uint8,
        "layers.2.weight": torch.uint8 if min_8bit_size == 4095 else torch.float32,
    }
    tables = [g for g in optimizer.param_groups if g["role"] == "embeddings"]
    assert [group["optim_bits"] for group in tables] == [embedding_bits]
    assert [group["param_names"] for group in tables] == [["embeddings.weight"]]


def test_a_groups_own_bits_go_first_and_outlast_a_checkpoint() -> None:
    model = Model()
    groups: list[dict[str, Any]] = [
        {"params": [model.layers[0].weight], "optim_bits": 32},
        {"params": [model.layers[1].weight]},
    ]
    optimizer = tfo.OPTIMIZERS["adamw_8bit"](groups, lr=1e-3)
    assert "optim_bits" not in groups[1]
    other = tfo.OPTIMIZERS["adamw_8bit"](
        [{"params": group["params"]} for group in groups], lr=1e-3, min_8bit_size=1
    )
    other.load_state_dict(optimizer.state_dict())
    for built in (optimizer, other):
        for parameter in (model.layers[0].weight, model.layers[1].weight):
            parameter.grad = torch.ones_like(parameter)
        built.step()
        dtypes = [built.state[layer.weight]["state1"].dtype for layer in model.layers[:2]]
        assert dtypes == [torch.float32, torch.uint8]


@pytest.mark.parametrize(
    ("name", "exact", "largest", "mean"),
    # in steps, twice of what is found; Lion's sign turns where the momentum is near 0
    [("adamw_8bit", "adamw", 1.0, 0.2), ("lion_8bit", "lion", 12.0, 0.4)],
)
def test_follows_the_optimizer_of_32_bits(name, exact, largest, mean) -> None:
    print("seed 0")
    models = [Model() for _ in range(3)]
    options = {"lr": 1e-2, "weight_decay": 0.1}
    step(models[0], tfo.build_optimizer(models[0], exact, **options), 30)
    step(models[1], tfo.build_optimizer(models[1], name, **options), 30)
    step(models[2], tfo.build_optimizer(models[2], name, min_8bit_size=10**9, **options), 30)
    for exactly, rounded, wide in zip(*(m.parameters() for m in models), strict=True):
        # the same arithmetic in another order
        torch.testing.assert_close(wide, exactly, rtol=1e-5, atol=1e-6)
        assert (rounded - exactly).abs().max() < largest * options["lr"]
        assert (rounded - exactly).abs().mean() < mean * options["lr"]
    assert not models[1].layers[0].weight.equal(models[0].layers[0].weight)


@needs_torchao
@quietly
@pytest.mark.parametrize(("name", "bits", "largest"), OF_TORCHAO)
def test_torchaos_state_is_small_and_follows_adamw(name, bits, largest) -> None:
    print("seed 0")
    models = [Model() for _ in range(2)]
    options = {"lr": 1e-2, "weight_decay": 0.1}
    exact = tfo.build_optimizer(models[0], "adamw", **options)
    rounded = tfo.build_optimizer(models[1], name, **options)
    with torch.compiler.set_stance("force_eager"):  # seconds for each shape
        step(models[0], exact, 30)
        step(models[1], rounded, 30)
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        assert (one - other).abs().max() < largest * options["lr"]
    state = rounded.state[models[1].layers[0].weight]["exp_avg"]
    num_bytes = state.codes.numel() + 4 * state.scale.numel()
    assert num_bytes * 8 / 4096 == bits
    small = rounded.state[models[1].layers[2].weight]["exp_avg"]
    assert type(small) is torch.Tensor


def trainer(folder: Path, name: str) -> Trainer:
    arguments = TrainingArguments(
        str(folder),
        max_steps=6,
        save_steps=3,
        per_device_train_batch_size=8,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    model = Classifier(width=1024)
    optimizer = tfo.optimizer(name, lr=1e-2, weight_decay=0.1)
    return Trainer(model, arguments, train_dataset=Points(), optimizer_cls_and_kwargs=optimizer)


@pytest.mark.parametrize(
    "name",
    [
        *("adamw_8bit", "lion_8bit"),
        *(pytest.param(name, marks=[needs_torchao, quietly]) for name in BITS),
    ],
)
def test_the_trainer_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    with torch.compiler.set_stance("force_eager") if name in BITS else nullcontext():
        whole = trainer(tmp_path, name)
        whole.train()
        resumed = trainer(tmp_path, name)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(one.equal(other) for one, other in pairs)
    matrix = whole.optimizer.state[whole.model.layers[0].weight]
    kinds = {type(value).__name__ for value in matrix.values()}
    is_8bit = torch.uint8 in {value.dtype for value in matrix.values() if torch.is_tensor(value)}
    assert is_8bit or kinds & {"OptimState8bit", "OptimState4bit"}


@needs_torchao
@quietly
@pytest.mark.filterwarnings("ignore:.*does not implement _stable_hash_for_caching")
def test_torchao_compiles_the_step() -> None:
    print("seed 0")
    models = [nn.Linear(64, 64, bias=False) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model, name in zip(models, ("adamw", "adamw_8bit_torchao"), strict=True):
        step(model, tfo.build_optimizer(model, name, lr=1e-2, weight_decay=0.1), 5)
    difference = (models[0].weight - models[1].weight).abs().max()
    assert 0 < difference < 0.3 * 1e-2  # 8 bits


@needs_torchao
@quietly
def test_stochastic_rounding_keeps_small_steps_of_bf16_on_average() -> None:
    moved = {}
    for is_stochastic in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(64, 64, bias=False).to(torch.bfloat16)
        nn.init.ones_(model.weight)
        optimizer = tfo.build_optimizer(
            model, "adamw_8bit_torchao", lr=1e-4, stochastic_rounding=is_stochastic
        )
        with torch.compiler.set_stance("force_eager"):
            for _ in range(10):
                model.weight.grad = torch.ones_like(model.weight)
                optimizer.step()
        moved[is_stochastic] = 1 - model.weight.float().mean().item()
    assert moved[False] == 0  # 1e-4 is less than half of 1/256
    # the mean of 4096 weights that each step moves by 1/256 with a chance of 0.0256: to 4 %
    assert moved[True] == pytest.approx(10 * 1e-4, rel=0.2)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("adamw_8bit", {"lr": 0}, "lr must be a number above 0"),
        ("adamw_8bit", {"weight_decay": -1}, "weight_decay must be"),
        ("adamw_8bit", {"betas": (0.9, 1.0)}, r"betas\[1\] must be"),
        ("adamw_8bit", {"eps": -1}, "eps must be"),
        ("adamw_8bit", {"min_8bit_size": 0}, "min_8bit_size must be a whole number above 0"),
        ("adamw_8bit", {"embedding_bits": 16}, "embedding_bits must be 8 or 32, got 16"),
        ("lion_8bit", {"embedding_bits": 4}, "embedding_bits must be 8 or 32, got 4"),
        ("lion_8bit", {"lr": "1e-3"}, "lr must be .* got the text '1e-3'"),
        ("adamw_4bit", {"betas": (0.9,)}, "betas must be two numbers"),
        ("adamw_8bit_torchao", {"eps": -1}, "eps must be"),
    ],
)
def test_mistakes_are_refused_before_there_is_a_model(name, options, words) -> None:
    with pytest.raises(ValueError, match=words):
        tfo.optimizer(name, **{"lr": 1e-3, **options})
    with pytest.raises(ValueError, match="a group's optim_bits must be 8 or 32, got 4"):
        tfo.OPTIMIZERS["adamw_8bit"](
            [{"params": [nn.Parameter(torch.ones(2))], "optim_bits": 4}], lr=1e-3
        )


@pytest.mark.parametrize("name", EXTRAS)
def test_says_how_to_install_a_missing_package(name: str, monkeypatch) -> None:
    for module in ("bitsandbytes", "bitsandbytes.optim", "torchao", "torchao.optim"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'hf-tfopt\[{EXTRAS[name]}\]'"):
        tfo.optimizer(name, lr=1e-3)


def test_is_listed_without_its_package(monkeypatch, capsys) -> None:
    for module in ("bitsandbytes", "bitsandbytes.optim", "torchao", "torchao.optim"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    main(["list", "optimizers"])
    lines = capsys.readouterr().out.splitlines()
    described = dict(line.split(maxsplit=1) for line in lines[1:])
    assert set(described) == set(tfo.OPTIMIZERS)
    assert all("Build " in described[name] for name in (*EXTRAS, "schedule_free"))
