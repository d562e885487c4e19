"""StabilityGuard in short trainings with injected faults."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import hf_tfopt as tfo
from tests.callbacks.faults import KINDS, PLACES, Fault
from tests.callbacks.runs import history_of, trainer_with, weights_of

ACTIONS = ("skip", "rollback", "lower_lr", "stop")


def faulty(tmp_path: Path, guards: list[Any], fault: Fault, how: str = "tfopt", **options: Any):
    torch.manual_seed(0)
    trainer = trainer_with(tmp_path, guards, how, **{"max_steps": 5, **options})
    fault.into(trainer)
    return trainer


def events_of(trainer: Any) -> list[dict[str, Any]]:
    return [event for entry in trainer.state.log_history for event in entry.get("events", [])]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("action", ACTIONS)
def test_no_weight_is_spoilt(action: str, place: str, kind: str, tmp_path: Path) -> None:
    how = "attach" if kind == "inf" else "tfopt"
    guard = tfo.StabilityGuard(action, snapshot_every=2)
    trainer = faulty(tmp_path, [guard], Fault(place, KINDS[kind]), how)
    trainer.train()
    assert weights_of(trainer.model).isfinite().all()
    (event,) = events_of(trainer)
    assert (event["step"], event["kind"]) == (3, f"non-finite {_seen_as(place)}")
    steps = 3 if action == "stop" else 5
    history = history_of(trainer)
    assert [entry["num_bad_steps"] for entry in history] == [0, 0, 1, 1, 1][:steps]
    losses = [entry["loss"] for entry in history]
    is_hidden = place != "gradient"  # whose loss is right
    assert [loss == "nan" for loss in losses] == [False, False, is_hidden, False, False][:steps]


def _seen_as(place: str) -> str:
    return "loss" if place == "activation" else place


@pytest.mark.parametrize("place", PLACES)
def test_without_a_guard_every_weight_is_spoilt(place: str, tmp_path: Path) -> None:
    """What it is for; else the tests above show nothing."""
    trainer = faulty(tmp_path, [], Fault(place, math.nan))
    trainer.train()
    assert not weights_of(trainer.model).isfinite().any()
    assert not any(entry["loss"] == "nan" for entry in history_of(trainer)), "the host hides it"


@pytest.mark.parametrize("place", PLACES)
def test_a_warning_changes_nothing(place: str, tmp_path: Path) -> None:
    trainer = faulty(tmp_path, [tfo.StabilityGuard("warn")], Fault(place, math.nan))
    trainer.train()
    assert [event["step"] for event in events_of(trainer)] == [3, 4, 5]
    assert not weights_of(trainer.model).isfinite().any()
    assert [entry["loss"] == "nan" for entry in history_of(trainer)][2:] == [
        place != "gradient",
        True,
        True,
    ]


@pytest.mark.invariant
@pytest.mark.parametrize("action", ["warn", *ACTIONS])
@pytest.mark.parametrize("how", ["tfopt", "attach"])
def test_a_clean_run_is_bit_equal_to_one_without(action: str, how: str, tmp_path: Path) -> None:
    found = []
    for guards in ([], [tfo.StabilityGuard(action, snapshot_every=2)]):
        torch.manual_seed(0)
        trainer = trainer_with(tmp_path, guards, how)
        trainer.train()
        losses = [(e["loss"], e["grad_norm"]) for e in trainer.state.log_history if "loss" in e]
        found.append((weights_of(trainer.model), losses, torch.get_rng_state()))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert torch.equal(found[0][2], found[1][2])
