"""What monitors measure arrives in the trackers themselves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# A process of its own: trackio keeps where it writes from its import on, and starts a server.
CODE = """
from pathlib import Path
import trackio
from trackio.sqlite_storage import SQLiteStorage
from tests.callbacks.runs import history_of, trainer_with
import hf_tfopt as tfo

for how in ("attach", "tfopt"):
    trainer = trainer_with(
        Path(how), [tfo.GroupRates()], how, report_to="trackio", project="tried", run_name=how
    )
    trainer.train()
    names = [name for name in history_of(trainer)[0] if name.startswith("lr/")]
    assert len(names) == 3, names
    logs = SQLiteStorage.get_logs("tried", how)
    for name in names:
        assert [log[f"train/{name}"] for log in logs if f"train/{name}" in log] == [1e-3] * 4, logs
"""


def test_trackio_gets_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("trackio")  # of the test extra
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    env = {**os.environ, "PYTHONPATH": path, "TRACKIO_DIR": str(tmp_path / "trackio")}
    env |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
