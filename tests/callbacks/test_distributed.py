"""Every callback on two processes, with DDP and with FSDP2, makes what it makes on one."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.callbacks.distributed_run import run, save_model
from tests.callbacks.examples import EXAMPLES
from tests.callbacks.test_contract import MONITORS
from tests.processes import TwoInterpreters

INTERVENTIONS = [name for name in EXAMPLES if name not in MONITORS]
KINDS = ["ddp", "fsdp2"]
NAMES = ["", "monitors", *INTERVENTIONS]
# fp32 sums in another order, through four updates of AdamW
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def both_kinds(
    tmp_path_factory: pytest.TempPathFactory, two_interpreters: TwoInterpreters
) -> list[dict[str, Any]]:
    """What each of two processes makes of every callback, in one start."""
    folder = tmp_path_factory.mktemp("both")
    for kind in KINDS:
        save_model(folder / kind)
    out = folder / "out.json"
    program = Path(__file__).with_name("distributed_run.py")
    two_interpreters.run(program, out, folder, *NAMES, timeout=600)
    return json.loads(out.read_text())


@pytest.fixture(scope="module", params=KINDS)
def every_process(
    request: pytest.FixtureRequest, both_kinds: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Those of one kind."""
    return [results[request.param] for results in both_kinds]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same on one process."""
    folder = tmp_path_factory.mktemp("alone")
    save_model(folder)
    return {name: run(name, "alone", folder) for name in NAMES}


@pytest.mark.invariant
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_do_what_one_does(
    name: str, every_process: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    ours, others = (results[name] for results in every_process)
    assert "error" not in ours, ours["error"]
    assert ours["weights"] == others["weights"]
    assert ours["weights"] == pytest.approx(alone[name]["weights"], rel=TOLERANCE)
    for found, expected in zip(ours["logs"], alone[name]["logs"], strict=True):
        assert found.keys() == expected.keys()
        assert found["loss"] == pytest.approx(expected["loss"], rel=TOLERANCE)


def test_one_kind_is_sharded(both_kinds: list[dict[str, Any]]) -> None:
    for results in both_kinds:
        assert [results[kind][""]["is_sharded"] for kind in KINDS] == [False, True]


@pytest.mark.invariant
def test_monitors_change_nothing(every_process: list[dict[str, Any]]) -> None:
    for results in every_process:
        assert results["monitors"]["weights"] == results[""]["weights"]


@pytest.mark.invariant
def test_gradients_are_measured_whole(
    every_process: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    """What is of gradients, weights and rates is that of the whole tensors on each process."""
    whole = ("grad_norm", "weight_norm/", "gradient_to_weight/", "update_to_weight/", "lr/")
    for results in every_process:
        for found, expected in zip(
            results["monitors"]["logs"], alone["monitors"]["logs"], strict=True
        ):
            for key in [key for key in expected if key.startswith(whole)]:
                # a near-zero difference of weights has few digits
                assert found[key] == pytest.approx(expected[key], rel=1e-3), key
