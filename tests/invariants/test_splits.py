"""8x1 = 1x8 = 4x2 = two processes: the same loss, gradient norm, weights and evaluation."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.invariants.cases import all_cases
from tests.invariants.splits import run
from tests.processes import TwoInterpreters

# fp32 sums of the same numbers in another order: relative error of a few 2^-24.
TOLERANCE = 1e-6
CASES = list(all_cases())

pytestmark = pytest.mark.invariant


@pytest.fixture(scope="module")
def two_processes(
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    two_interpreters: TwoInterpreters,
) -> dict[str, Any]:
    """What two processes make of the cases that are asked for, in one start."""
    asked = [item for item in request.session.items if item.module is request.module]
    calls = [item.callspec for item in asked if "two_processes" in item.fixturenames]
    names = [call.params["name"] for call in calls]
    out = tmp_path_factory.mktemp("splits") / "two.json"
    two_interpreters.run(Path(__file__).with_name("splits.py"), out, 4, 1, *names)
    return json.loads(out.read_text())


@cache
def whole(name: str) -> dict[str, Any]:
    return run(name, 8, 1)


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, rel=TOLERANCE, nan_ok=True), key


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 8), (4, 2)])
def test_accumulation_changes_nothing(name: str, batch_size: int, accumulation: int) -> None:
    assert_same(run(name, batch_size, accumulation), whole(name))


@pytest.mark.parametrize("name", CASES)
def test_two_processes_change_nothing(name: str, two_processes: dict[str, Any]) -> None:
    assert_same(two_processes[name], whole(name))


@pytest.mark.parametrize("name", ["bert", "t5", "gpt2"])
def test_attach_makes_a_stock_trainer_exact(name: str) -> None:
    # The host's evaluation loop still averages batch means, so its eval_loss is not compared; the
    # perplexity of training is TfoptTrainer's own.
    left_out = ("eval_", "perplexity")
    expected = {key: value for key, value in whole(name).items() if not key.startswith(left_out)}
    assert_same(run(name, 2, 4, how="attach"), expected)


def test_the_stock_trainer_is_not_exact() -> None:
    """What all this is for; when this fails, the host was mended and the README must say so."""
    stock = run("bert", 2, 4, how="stock")
    ratio = stock["loss"][0] / whole("bert")["loss"][0]
    assert 3.5 < ratio < 4.5
