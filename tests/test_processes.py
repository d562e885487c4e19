"""Programs on two processes: what they are given, and that none fails unseen."""

import json
from pathlib import Path

import pytest

from tests.processes import TwoInterpreters

TELLS = """
import json, os, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "OMP_NUM_THREADS")
told = [__name__, sys.argv[1:], *(os.environ[name] for name in names), hash("a word")]
print(json.dumps(told) + "\\n", end="")
"""


def test_each_is_a_rank_with_a_hash_seed_of_its_own(
    tmp_path: Path, two_interpreters: TwoInterpreters
) -> None:
    program = tmp_path / "tells.py"
    program.write_text(TELLS)
    told = two_interpreters.run(program, "--steps", 3).stdout.splitlines()
    one, other = sorted(map(json.loads, told), key=lambda found: found[2])
    port = one[5]
    for rank, found in (("0", one), ("1", other)):
        assert found[:-1] == ["__main__", ["--steps", "3"], rank, rank, "2", port, "1"]
    assert one[-1] != other[-1]


def test_one_that_fails_is_told(tmp_path: Path, two_interpreters: TwoInterpreters) -> None:
    program = tmp_path / "fails.py"
    program.write_text("import os\nassert os.environ['RANK'] == '0', 'not the first'\n")
    with pytest.raises(ChildProcessError, match=r"exit codes \[.*1.*\](?s:.*)not the first"):
        two_interpreters.run(program)
