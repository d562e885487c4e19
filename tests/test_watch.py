import json
import math
import os
import subprocess
import sys
import threading
import time

import pytest
from rich.console import Console

from hf_tfopt.cli import main
from hf_tfopt.run.unfinished import entries, logged_progress
from hf_tfopt.watch import Follower, screen, sparkline, time_left, watch
from tests.run.histories import full_history
from tests.test_report import write_checkpoint


def write_log(folder, history, ended=None, begun=1000.0, max_steps=1000):
    folder.mkdir(exist_ok=True)
    lines = [{"begun": begun, "step": 0, "max_steps": max_steps}]
    lines += [entry | {"time": begun + entry["step"] * 0.5} for entry in history]
    lines += [{"ended": begun + 500, "step": ended}] if ended else []
    text = "".join(json.dumps(line).replace("NaN", "null") + "\n" for line in lines)
    (folder / "log.jsonl").write_text(text)


def shown(folder, width=80, now=1260.0):
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    progress = Follower(folder).progress()
    assert progress is not None
    console.print(screen(folder, progress, now, width))
    console.file.close()
    return console.export_text()


def test_once_shows_how_far_how_long_and_the_newest_numbers(tmp_path, capsys):
    write_log(tmp_path / "run", full_history())
    main(["watch", str(tmp_path / "run"), "--once"])
    printed = capsys.readouterr().out
    lines = shown(tmp_path / "run").splitlines()
    assert lines[0] == "run" == printed.splitlines()[0]
    assert lines[2] == "step 500 of 1,000, 50%; 4 min 10 s so far, 4 min 10 s left"
    rows = {line[:20].strip(): line[20:] for line in lines}
    assert rows["loss"].split()[0] == f"{full_history()[-2]['loss']:.4g}"
    assert "×" in rows["loss"] and rows["held-out loss"].split()[0] == "3.11"
    assert "240 MiB" in rows["peak memory"] and "%" in rows["padding"]
    assert lines[-4].split()[:3] == ["step", "149", "spike"]
    assert lines[-1] == "Last log 10 s ago (log.jsonl)."


@pytest.mark.parametrize("width", [30, 50, 200])
def test_every_terminal_is_wide_enough(width, tmp_path):
    write_log(tmp_path, full_history())
    assert all(len(line) <= width for line in shown(tmp_path, width).splitlines())


def test_a_stock_trainers_checkpoints_are_enough(tmp_path):
    write_checkpoint(tmp_path, 10)
    lines = shown(tmp_path).splitlines()
    assert "step 10 of 40, 25%" in lines
    assert "checkpoint-10/trainer_state.json" in lines[-1]
    follower = Follower(tmp_path)
    assert follower.progress().step == 10
    write_checkpoint(tmp_path, 20)
    assert follower.progress().step == 20


def test_what_was_logged_is_text(tmp_path):
    event = {"step": 1, "kind": "[red]x", "text": "a\x1b[2Jb"}
    write_log(tmp_path, [{"step": 1, "loss": math.nan, "events": [event]}])
    text = shown(tmp_path)
    assert "[red]x" in text and "\x1b" not in text and "not finite" in text


def test_a_log_is_followed_and_one_begun_anew_is_read_anew(tmp_path):
    log, follower = tmp_path / "log.jsonl", Follower(tmp_path)
    assert follower.progress() is None
    write_log(tmp_path, [{"step": 1, "loss": 3.0}])
    assert follower.progress().step == 1
    with log.open("a") as file:
        file.write('{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    assert follower.progress().step == 2
    with log.open("a") as file:
        file.write('ss": 1.0}\n')
    assert [entry["loss"] for entry in follower.progress().history] == [3, 2, 1]
    other = tmp_path / "other"
    write_log(other, [{"step": 1, "loss": 9.0, "note": "longer than what was there " * 9}])
    (other / "log.jsonl").replace(log)
    assert [entry["loss"] for entry in follower.progress().history] == [9]


def test_the_time_left_is_of_this_process():
    """A run that went on at step 100, two seconds a step."""
    lines = [
        {"begun": 0, "step": 0, "max_steps": 200},
        {"step": 100, "loss": 1.0, "time": 50},
        {"begun": 1000, "step": 100, "max_steps": 200},
        {"step": 110, "loss": 1.0, "time": 1020},
    ]
    progress = logged_progress(lines)
    assert progress is not None
    assert time_left(progress) == 2 * 90
    assert progress.seconds == 50 + 20
    assert time_left(progress._replace(is_ended=True)) is None
    assert time_left(progress._replace(begun=None)) is None


def test_a_torn_log_is_read_as_far_as_it_goes():
    assert [*entries(['{"step": 1}', "[1]", "", '{"st'])] == [{"step": 1}]
    assert logged_progress([]) is None


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([1.0], "▁"),
        ([1.0, 1.0], "▁▁"),
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], "▁▂▃▄▅▆▇█"),
        ([0.0, math.nan, 7.0], "▁×█"),
        ([math.inf], "×"),
    ],
)
def test_sparklines(values, line):
    assert sparkline(values, 8) == line
    assert len(sparkline(values * 50, 8)) == min(8, 50 * len(values))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "no folder nowhere"),
        ([".", "--once"], "has logged nothing yet"),
        ([".", "--every", "0"], "must be at least 0.1"),
    ],
)
def test_mistakes_end_in_one_line(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["watch", *words])
    assert told in capsys.readouterr().err


def test_it_follows_until_the_run_ends_and_sleeps_between(tmp_path, monkeypatch):
    """In a terminal; the processor is idle while nothing is logged."""
    monkeypatch.setattr(Console, "is_terminal", True)
    write_log(tmp_path, full_history(last=50))
    end = threading.Timer(1.0, write_log, (tmp_path, full_history(last=50), 50))
    before = time.process_time()
    end.start()
    watch(tmp_path, every=0.3)
    end.join()
    assert time.process_time() - before < 0.9


def test_it_imports_nothing_heavy(tmp_path):
    write_log(tmp_path, full_history(last=50))
    code = (
        "import sys\n"
        "from hf_tfopt.cli import main\n"
        f"main(['watch', {str(tmp_path)!r}, '--once'])\n"
        "print({'torch', 'transformers', 'datasets', 'matplotlib', 'numpy'} & {*sys.modules})\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "held-out loss" not in out.stderr and out.stdout.endswith("set()\n")
