import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers import get_scheduler

import hf_tfopt as tfo
from hf_tfopt.schedules import SCHEDULES, compose, decays
from hf_tfopt.schedules.for_trainer import GroupScheduler, build_scheduler, schedule

NUM, WARMUP = 40, 8


def an_optimizer(*rates: float) -> torch.optim.Optimizer:
    groups = [
        {"params": [nn.Parameter(torch.ones(2))], "lr": rate, "name": f"g{number}"}
        for number, rate in enumerate(rates or (1.0,))
    ]
    return torch.optim.AdamW(groups, lr=1.0)


def rates_of(scheduler: Any, optimizer: torch.optim.Optimizer, num: int = NUM) -> list[list[float]]:
    """Every group's rate at each of so many updates."""
    found = []
    for _ in range(num):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


def ours(name: str, num: int = NUM, warmup_steps: float = WARMUP, **options: Any) -> list[float]:
    optimizer = an_optimizer()
    scheduler = build_scheduler(optimizer, name, NUM, warmup_steps, **options)
    return [rates[0] for rates in rates_of(scheduler, optimizer, num)]


PARITY = [
    ("constant", {}, "constant_with_warmup", {}),
    ("linear", {}, "linear", {}),
    ("cosine", {}, "cosine", {}),
    ("cosine", {"floor": 0.1}, "cosine_with_min_lr", {"min_lr_rate": 0.1}),
    ("cosine_with_restarts", {"num_cycles": 2}, "cosine_with_restarts", {"num_cycles": 2}),
    ("polynomial", {"power": 2.0, "floor": 0.1}, "polynomial", {"power": 2.0, "lr_end": 0.1}),
    ("inverse_sqrt", {}, "inverse_sqrt", {}),
    ("inverse_sqrt", {"timescale": 5}, "inverse_sqrt", {"timescale": 5}),
    *(
        (
            "warmup_stable_decay",
            {"decay_fraction": 0.25, "shape": shape},
            "warmup_stable_decay",
            {"num_decay_steps": 10, "decay_type": shape},
        )
        for shape in ("linear", "cosine", "1-sqrt")
    ),
]


@pytest.mark.parametrize(("name", "options", "host_name", "host_options"), PARITY)
def test_equals_the_host_at_every_step(
    name: str, options: dict[str, Any], host_name: str, host_options: dict[str, Any]
) -> None:
    optimizer = an_optimizer()
    host = get_scheduler(host_name, optimizer, WARMUP, NUM, scheduler_specific_kwargs=host_options)
    expected = [rates[0] for rates in rates_of(host, optimizer)]
    found = ours(name, first_update_moves=False, **options)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_first_update_moves_the_weights_and_the_end_is_held(name: str) -> None:
    found = ours(name, NUM + 20)
    assert found[0] > 0
    last = WARMUP if name == "one_cycle" else WARMUP - 1  # a straight warm-up's last update
    assert max(found) == pytest.approx(found[last])
    after = found[NUM:]
    if name in ("inverse_sqrt", "noam"):  # they do not know of an end
        assert after == sorted(after, reverse=True)
    else:
        assert after == pytest.approx([after[0]] * 20)
    assert all(math.isfinite(rate) and rate >= 0 for rate in found)


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_warm_up_or_with_nothing_else_it_still_runs(name: str) -> None:
    if name != "noam":
        assert ours(name, warmup_steps=0)[0] == pytest.approx(0.04 if name == "one_cycle" else 1)
    if name != "warmup_stable_decay":
        assert max(ours(name, warmup_steps=NUM)) > 0


def test_expected_numbers() -> None:
    assert ours("linear", 3) == [1 / 8, 2 / 8, 3 / 8]
    assert ours("linear", NUM)[8:10] == [1, 31 / 32]
    assert ours("linear", NUM)[-1] == pytest.approx(1 / 32)  # of the 32 after warm-up, one is left
    assert ours("exponential", NUM + 1, end=0.01)[-1] == pytest.approx(0.01)
    assert ours("exponential", NUM, end=0.01)[24] == pytest.approx(0.1)  # halfway: its root
    wsd = ours("warmup_stable_decay", NUM + 1, decay_fraction=0.5)
    assert wsd[8:21] == [1.0] * 13
    assert wsd[25] == pytest.approx(1 - math.sqrt(5 / 20))
    assert wsd[-1] == 0


def test_noam_is_the_papers() -> None:
    found = ours("noam", NUM, d_model=64)
    paper = [64**-0.5 * min(n**-0.5, n * WARMUP**-1.5) for n in range(1, NUM + 1)]
    assert found == pytest.approx(paper)


def test_restarts_grow_and_their_peaks_fall() -> None:
    found = ours("cosine_with_restarts", num_cycles=3, growth=2.0, peak_decay=0.5, warmup_steps=0)
    begins = [0, round(40 / 7), round(40 * 3 / 7)]
    assert [found[step] for step in begins] == [1.0, 0.5, 0.25]
    for step in range(1, NUM):
        assert (found[step] > found[step - 1]) == (step in begins)


def test_one_cycle_moves_momentum_the_other_way() -> None:
    optimizer = an_optimizer()
    scheduler = build_scheduler(optimizer, "one_cycle", NUM)
    rates, momenta = [], []
    for _ in range(NUM):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        scheduler.step()
    peak = rates.index(max(rates))
    assert peak == 12  # 30% of 40
    assert (rates[0], rates[peak]) == pytest.approx((0.04, 1.0))
    assert (momenta[0], momenta[peak]) == pytest.approx((0.95, 0.85))
    assert momenta[-1] > 0.94
    assert optimizer.param_groups[0]["betas"][1] == 0.999
    sgd = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0, momentum=0.9)
    build_scheduler(sgd, "one_cycle", NUM)
    assert sgd.param_groups[0]["momentum"] == pytest.approx(0.95)


def test_groups_keep_their_ratios_and_have_floors_of_their_own() -> None:
    optimizer = an_optimizer(1.0, 0.1, 0.01)
    scheduler = build_scheduler(optimizer, "cosine", NUM, WARMUP, floor={"g1": 0.5})
    found = rates_of(scheduler, optimizer, NUM + 1)
    for first, _, third in found[:-1]:
        assert third == pytest.approx(0.01 * first)
    assert found[-1] == pytest.approx([0, 0.05, 0])
    with pytest.raises(ValueError, match=r"unknown group \(floor\) 'g9'.*known: g0, g1, g2"):
        build_scheduler(optimizer, "cosine", NUM, floor={"g9": 0.5})


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_saved_state_goes_on_and_is_plain(name: str, tmp_path: Any) -> None:
    whole = ours(name)
    optimizer = an_optimizer()
    scheduler = build_scheduler(optimizer, name, NUM, WARMUP)
    rates_of(scheduler, optimizer, 15)
    torch.save(scheduler.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = an_optimizer()
    resumed = build_scheduler(again, name, NUM, WARMUP)
    resumed.load_state_dict(state)
    assert resumed.get_last_lr() == [again.param_groups[0]["lr"]]
    assert [rates[0] for rates in rates_of(resumed, again, NUM - 15)] == whole[15:]


def test_a_run_made_longer_takes_the_longer_runs_rates() -> None:
    optimizer = an_optimizer()
    scheduler = build_scheduler(optimizer, "linear", 20)
    rates_of(scheduler, optimizer, 10)
    again = an_optimizer()
    longer = build_scheduler(again, "linear", NUM)
    longer.load_state_dict(scheduler.state_dict())
    assert again.param_groups[0]["lr"] == 0.75


def test_cooling_down_from_a_checkpoint() -> None:
    stable = build_scheduler(optimizer := an_optimizer(), "constant", 1000, WARMUP)
    rates_of(stable, optimizer, 30)
    cooled = build_scheduler(
        again := an_optimizer(), "warmup_stable_decay", NUM, WARMUP, decay_from=30
    )
    cooled.load_state_dict(stable.state_dict())
    found = [rates[0] for rates in rates_of(cooled, again, 11)]
    assert found == pytest.approx([1 - math.sqrt(n / 10) for n in range(11)])


def test_a_tensor_rate_is_written_in_place() -> None:
    optimizer = an_optimizer()
    rate = optimizer.param_groups[0]["lr"] = torch.tensor(1.0)
    scheduler = build_scheduler(optimizer, "linear", NUM)
    state = scheduler.state_dict() | {"last_epoch": NUM // 2}
    scheduler.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate == 0.5


def test_compositions() -> None:
    two = compose.join([(decays.linear(4), 2), (decays.constant(), 3)], decays.linear(2))
    assert [two(step) for step in range(9)] == [1, 0.75, 1, 1, 1, 1, 0.5, 0, 0]
    assert compose.scaled(decays.constant(), 0.3)(7) == 0.3
    assert [compose.warmup(4)(step) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert [compose.warmup(4, 0.0)(step) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert compose.warmup(0)(0) == compose.warmup(0, 0.0)(0) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        (("cosin",), ValueError, "did you mean 'cosine'"),
        (("cosine", 0.1, 1.0), ValueError, "floor must be"),
        (("cosine", -1), ValueError, "warmup_steps must be"),
        (("cosine", 1.5), ValueError, "warmup_steps must be"),
        (("cosine", "10"), ValueError, "warmup_steps must be"),
        (("noam",), ValueError, "warmup_steps of noam must be above 0"),
    ],
)
def test_bad_arguments_are_answered(arguments: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        schedule(*arguments)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("polynomial", {"power": 0}, "power must be above 0"),
        ("exponential", {"end": 0}, "end must be above 0"),
        ("inverse_sqrt", {"timescale": -1}, "timescale must be above 0"),
        ("noam", {"d_model": 0, "warmup_steps": 4}, "d_model must be above 0"),
        ("cosine_with_restarts", {"num_cycles": 0}, "num_cycles must be 1 or more"),
        ("cosine_with_restarts", {"growth": 0}, "growth must be above 0"),
        ("cosine_with_restarts", {"peak_decay": 1.5}, "peak_decay must be above 0"),
        ("warmup_stable_decay", {"decay_fraction": 0}, "decay_fraction must be above 0"),
        ("warmup_stable_decay", {"shape": "1-sqr"}, "did you mean '1-sqrt'"),
        ("one_cycle", {"start": 1}, "start must be above 0"),
        ("one_cycle", {"end": 1}, "end must be 0 or above"),
        ("one_cycle", {"low_momentum": 0.99}, "at most high_momentum"),
    ],
)
def test_bad_options_are_answered(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        schedule(name, **options)


def test_a_misspelt_option_is_answered() -> None:
    with pytest.raises(TypeError, match=r"no option 'flor'.*did you mean 'floor'"):
        schedule("linear", flor=0.1)
    with pytest.raises(TypeError, match=r"no option 'powr'.*did you mean 'power'"):
        schedule("polynomial", powr=2)


def test_what_does_not_fit_into_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup_steps is 50, the whole run has 40 updates"):
        build_scheduler(an_optimizer(), "linear", NUM, 50)
    with pytest.raises(ValueError, match="would begin at 2; it must be after the 8 of warm-up"):
        build_scheduler(an_optimizer(), "warmup_stable_decay", NUM, WARMUP, decay_fraction=0.95)
    with pytest.raises(ValueError, match="would begin at 50"):
        build_scheduler(an_optimizer(), "warmup_stable_decay", NUM, WARMUP, decay_from=50)


def test_shares_of_warm_up_count_up_as_the_hosts_do() -> None:
    assert ours("constant", warmup_steps=0.16)[:7] == pytest.approx(
        [1 / 7, 2 / 7, 3 / 7, 4 / 7, 5 / 7, 6 / 7, 1]
    )  # 0.16 of 40: 6.4, so 7


def test_public_names() -> None:
    assert tfo.build_scheduler is build_scheduler
    assert tfo.schedule is schedule
    assert tfo.SCHEDULES is SCHEDULES
    assert isinstance(build_scheduler(an_optimizer(), schedule("linear"), NUM), GroupScheduler)


def test_a_moving_momentum_is_refused_where_it_tells_weights_apart() -> None:
    pytest.importorskip("schedulefree")
    optimizer = tfo.build_optimizer(nn.Linear(2, 2), "schedule_free", lr=1e-3)
    with pytest.raises(ValueError, match="use the schedule 'constant' with it"):
        tfo.build_scheduler(optimizer, "one_cycle", num_training_steps=10)
    tfo.build_scheduler(optimizer, "constant", num_training_steps=10)
