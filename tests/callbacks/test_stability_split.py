"""StabilityGuard on two processes, of which one alone has a fault."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models import tiny
from tests.processes import TwoInterpreters


@pytest.fixture(scope="module")
def every_process(
    tmp_path_factory: pytest.TempPathFactory, two_interpreters: TwoInterpreters
) -> list[dict[str, Any]]:
    """What each of two processes ended with, in one start."""
    folder = tmp_path_factory.mktemp("guarded")
    torch.manual_seed(0)
    tiny("bert").save_pretrained(folder / "model")
    out = folder / "out.json"
    two_interpreters.run(Path(__file__).with_name("guarded_run.py"), out, folder)
    return json.loads(out.read_text())


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_all_processes_leave_the_step_out(kind: str, every_process: list[dict[str, Any]]) -> None:
    one, other = (found[kind] for found in every_process)
    assert len(one) == (3 if kind == "fsdp2" else 4)
    for name, found in one.items():
        assert "error" not in found, found["error"]
        assert found == other[name], name
        assert found["is_finite"], name
        (event,) = found["events"]
        assert event["step"] == 2
        if not name.endswith("weight"):
            assert [(b["process"], b["loss"]) for b in event["batches"]] == [(1, "nan")], name
            assert len(event["batches"][0]["rows"]) == 2
        assert found["is_nan"] == [False, True, False][: found["steps"]]
        assert found["steps"] == (2 if name.startswith("stop") else 3)
