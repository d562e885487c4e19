import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Subset
from transformers import Trainer, TrainerState

import hf_tfopt as tfo
from hf_tfopt.callbacks.noise_scale import Split, signal_and_variance, split_of
from hf_tfopt.callbacks.training import Training
from tests.callbacks.distributed_run import save_model
from tests.callbacks.noise_run import measured, trainer_of, truth
from tests.callbacks.runs import history_of, trainer_with
from tests.invariants.splits import Rows
from tests.models import tiny
from tests.processes import TwoInterpreters
from tests.references.gradients import signal_and_variance as of_examples
from tests.test_trainer import arguments

# fp32 gradients of a model against fp64 ones of each example
ROUNDING = 1e-5


def per_step(trainer: Any, num_parts: int) -> list[tuple[float, float]]:
    """What each step tells, from the gradients of its examples."""
    seen, found = trainer.model.seen, []
    for start in range(0, len(seen), num_parts):
        parts = seen[start : start + num_parts]
        size = len(parts[0])
        small = parts[0].mean(0).square().sum().item()
        large = torch.cat(parts).mean(0).square().sum().item()
        found.append(signal_and_variance(small, large, Split(size, size * num_parts, False)))
    return found


def test_parts_of_one_example_give_the_sample_covariance() -> None:
    """Averaged over all parts, the two lengths hold what all differences from the mean hold."""
    gradients = torch.randn(12, 7, generator=torch.Generator().manual_seed(3)).double() + 0.3
    for size in (1, 3):
        parts = gradients.view(-1, size, 7).mean(1)
        small, large = parts.square().sum(1).mean().item(), parts.mean(0).square().sum().item()
        signal, variance = signal_and_variance(small, large, Split(size, 12, True))
        expected = of_examples(parts)
        assert (signal, variance) == pytest.approx((expected[0], expected[1] * size), rel=1e-12)


@pytest.mark.parametrize(("accumulation", "bound"), [(2, 0.0), (4, 0.01)])
def test_every_step_is_as_its_examples_say(accumulation: int, bound: float, tmp_path: Path) -> None:
    """With clipping too: the gradients are those before it."""
    options = {"gradient_accumulation_steps": accumulation, "max_grad_norm": bound}
    trainer = trainer_of(tmp_path, tfo.NoiseScale(every=1, decay=0.0), **options)
    trainer.train()
    expected = per_step(trainer, accumulation)
    assert len(expected) == 16 // accumulation
    for found, exact in zip(measured(trainer), expected, strict=True):
        assert found == pytest.approx(exact, rel=ROUNDING, abs=ROUNDING * sum(map(abs, exact)))


def test_averages_forget_and_are_divided_last(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, tfo.NoiseScale(every=1, decay=0.5))
    trainer.train()
    steps, weight, sums = per_step(trainer, 2), 0.0, [0.0, 0.0]
    for (signal, variance), entry in zip(steps, history_of(trainer), strict=True):
        weight = 0.5 * weight + 1
        sums = [0.5 * sums[0] + signal, 0.5 * sums[1] + variance]
        found = [entry["gradient_signal"], entry["gradient_variance"]]
        expected = [total / weight for total in sums]
        assert found == pytest.approx(
            expected, rel=ROUNDING, abs=ROUNDING * sum(map(abs, expected))
        )
        assert ("noise_scale" in entry) == (found[0] > 0)
        if found[0] > 0:
            assert entry["noise_scale"] == pytest.approx(found[1] / found[0])


def test_the_estimate_converges_to_the_true_noise(tmp_path: Path) -> None:
    """Within four standard errors of the closed form, which are small enough to tell."""
    seed = 20261122
    print(f"seed {seed}")
    monitor = tfo.NoiseScale(every=1, decay=1 - 1e-9)
    options = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}
    trainer = trainer_of(tmp_path, monitor, 32 * 400, seed, **options, logging_steps=400)
    trainer.train()
    steps = torch.tensor(per_step(trainer, 4), dtype=torch.float64)
    errors = (steps.std(0) / math.sqrt(len(steps))).tolist()
    for found, exact, error in zip(measured(trainer)[0], truth(), errors, strict=True):
        assert abs(found - exact) < 4 * error
        assert error < 0.08 * exact
    entry = history_of(trainer)[0]
    assert entry["noise_scale"] == pytest.approx(truth()[1] / truth()[0], rel=0.25)
    all_examples = of_examples(torch.cat(trainer.model.seen))
    # of the same examples, but of all differences rather than those of four parts
    assert measured(trainer)[0] == pytest.approx(all_examples, rel=0.2)


def test_steps_of_fewer_examples_and_of_no_numbers_are_left_out(tmp_path: Path) -> None:
    monitor = tfo.NoiseScale(every=1, decay=0.0)
    trainer = trainer_of(tmp_path, monitor, max_steps=8, num_train_epochs=2)
    trainer.train_dataset = Subset(trainer.train_dataset, range(22))  # 4 + 4, 4 + 4, 4 + 2
    trainer.train()
    has_one = ["gradient_signal" in entry for entry in history_of(trainer)]
    assert has_one == [True, True, False, True, True, False, True, True]


def test_gradients_that_are_no_numbers_do_not_spoil_the_average(tmp_path: Path) -> None:
    monitor = tfo.NoiseScale(every=1)
    trainer = trainer_of(tmp_path, monitor)
    trainer.train()
    before = dict(monitor.remembered)
    for small, large in ((math.inf, 1.0), (1.0, math.nan)):
        monitor.read(None, 9, (), {"small": [small], "large": [large]})
    assert monitor.remembered == before


def test_nothing_is_measured_between(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, tfo.NoiseScale(every=4))
    trainer.train()
    has_one = ["gradient_signal" in entry for entry in history_of(trainer)]
    assert has_one == [False, False, False, True, False, False, False, True]


def test_our_losses_and_the_hosts_are_measured_alike(tmp_path: Path) -> None:
    """`BertForMaskedLM` sums its loss's micro-batches under the stock Trainer, ours divides."""
    found = []
    for how in ("tfopt", "attach"):
        monitor = tfo.NoiseScale(every=1, decay=0.0)
        trainer = trainer_with(tmp_path, [monitor], how, max_grad_norm=0.1, num_rows=16)
        trainer.train()
        found.append(measured(trainer)[0])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_batch_in_one_piece_is_refused(tmp_path: Path) -> None:
    trainer = trainer_with(tmp_path, [tfo.NoiseScale()], gradient_accumulation_steps=1)
    with pytest.raises(ValueError, match="gradient_accumulation_steps is 1, with one process"):
        trainer.train()


def test_batches_of_any_size_are_refused(tmp_path: Path) -> None:
    for plan in (tfo.TokenBudget(64), tfo.BatchSizeWarmup(3, 2)):
        options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
        trainer = trainer_with(tmp_path, [tfo.NoiseScale()], **options)
        tfo.attach(trainer, sampler=plan)
        with pytest.raises(ValueError, match=f"one size, and those of {type(plan).__name__}"):
            trainer.train()


def test_a_stock_trainer_that_clips_is_refused(tmp_path: Path) -> None:
    options = {"gradient_accumulation_steps": 2, "max_steps": 1}
    for bound in (1.0, 0.0):
        args = arguments(tmp_path, max_grad_norm=bound, **options)
        given = {"train_dataset": Rows(12), "callbacks": [tfo.NoiseScale(every=1)]}
        trainer = Trainer(tiny("bert"), args, **given)
        if bound:
            with pytest.raises(ValueError, match=r"tfo\.attach"):
                trainer.train()
        else:
            trainer.train()
            assert "gradient_signal" in history_of(trainer)[0]


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_an_average_forgets_a_share(decay: float) -> None:
    with pytest.raises(ValueError, match=f"decay is {decay}"):
        tfo.NoiseScale(decay=decay)


@pytest.fixture(scope="module")
def two_processes(
    tmp_path_factory: pytest.TempPathFactory, two_interpreters: TwoInterpreters
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("noise")
    save_model(folder)
    program = Path(__file__).with_name("noise_run.py")
    two_interpreters.run(program, folder / "out.json", folder)
    return json.loads((folder / "out.json").read_text())


@pytest.mark.invariant
@pytest.mark.parametrize("accumulation", [1, 2])
def test_processes_see_their_own_part(accumulation: int, two_processes: dict[str, Any]) -> None:
    """Without accumulation by hooks, before DDP has averaged."""
    result = two_processes[f"regression {accumulation}"]
    gradients = torch.tensor(result["gradients"], dtype=torch.float64)
    assert gradients.shape[:3] == (2, accumulation, 4)
    small = gradients[:, 0].mean(1).square().sum(-1).mean().item()
    large = gradients.mean((0, 1, 2)).square().sum().item()
    expected = signal_and_variance(small, large, Split(4, 8 * accumulation, True))
    assert result["found"] == pytest.approx(
        expected, rel=ROUNDING, abs=ROUNDING * sum(map(abs, expected))
    )


@pytest.mark.invariant
def test_sharded_is_as_replicated(two_processes: dict[str, Any]) -> None:
    """FSDP2 has a micro-batch's gradients beside its shards."""
    for sharded, replicated in zip(two_processes["fsdp2"], two_processes["ddp"], strict=True):
        # fp32 sums in another order, through the updates between; differences of two squares
        assert sharded == pytest.approx(replicated, rel=1e-3)


def test_the_batch_is_what_the_host_has_come_to(tmp_path: Path) -> None:
    """`auto_find_batch_size` halves it in the state; the arguments keep what was asked for."""
    trainer = trainer_with(tmp_path, [])
    state = TrainerState(train_batch_size=2)
    training = Training(trainer.args, state, trainer.control, model=trainer.model)
    assert split_of(training, 1) == Split(2, 4, False)
    state.train_batch_size = None
    assert split_of(training, 1) == Split(4, 8, False)
