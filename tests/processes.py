"""Programs on two processes, without the start of three interpreters that torchrun needs for each.

Two interpreters import torch and transformers once, and every program runs in a fork of both, with
the environment that torchrun gives. They are two, and not two forks of one, as ranks are: each with
a hash seed of its own, so that what depends on the order of a set differs between them.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).parents[1]
NUM_PROCESSES = 2
# what most programs need; no more than imports: a thread or a CUDA context does not survive a fork
PRELOADED = (
    "torch.distributed.fsdp",
    "hf_tfopt.trainer",
    "hf_tfopt.recipe.execution",
    "matplotlib.pyplot",
    "tests.models",
    "tests.test_trainer",
)


class Said(NamedTuple):
    """What both processes wrote, one between the other."""

    stdout: str
    stderr: str


class TwoInterpreters:
    """Started with the first program; `with` ends them."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "TwoInterpreters":
        return self

    def __exit__(self, *_: object) -> None:
        for interpreter in self._started:
            os.killpg(interpreter.pid, signal.SIGKILL)  # with what it has forked
            interpreter.communicate()
        self._started = []

    def run(self, program: Path, *arguments: object, timeout: float = 300) -> Said:
        """`torchrun --nproc_per_node 2 program arguments`.

        Raises: ChildProcessError with the end of stderr, if a process fails, or is not done in
            `timeout` seconds.
        """
        if not self._started:
            self._started = [_interpreter() for _ in range(NUM_PROCESSES)]
        environment = {**os.environ, **_rendezvous()}
        with tempfile.TemporaryDirectory() as folder:
            said = [Path(folder, name) for name in ("stdout", "stderr")]
            order = {"command": [str(program), *map(str, arguments)], "said": [*map(str, said)]}
            for rank, interpreter in enumerate(self._started):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                _send(interpreter, {**order, "environment": {**environment, **own}})
            codes = _answers(self._started, timeout)
            found = Said(*(path.read_text() if path.exists() else "" for path in said))
        if len(codes) < NUM_PROCESSES:
            self.__exit__()  # one waits for the other, or both do
        if codes != [0] * NUM_PROCESSES:
            raise ChildProcessError(f"{program}: exit codes {codes}\n{found.stderr[-3000:]}")
        return found


def _interpreter() -> subprocess.Popen[str]:
    # NVML counts GPUs without a CUDA context
    options = {"OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    options["PYTHONHASHSEED"] = "random"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.processes"],
        env={**os.environ, **options},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _rendezvous() -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    size = str(NUM_PROCESSES)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return {**place, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}


def _send(interpreter: subprocess.Popen[str], order: dict[str, Any]) -> None:
    assert interpreter.stdin is not None
    interpreter.stdin.write(json.dumps(order) + "\n")
    interpreter.stdin.flush()


def _answers(interpreters: Sequence[subprocess.Popen[str]], timeout: float) -> list[int]:
    """Exit codes, of those that end in time; one that failed leaves the other 20 seconds."""
    waiting: list[IO[str] | None] = [interpreter.stdout for interpreter in interpreters]
    codes: list[int] = []
    end = time.monotonic() + timeout
    while waiting and (ready := wait(waiting, max(0.0, end - time.monotonic()))):
        for answer in ready:
            codes.append(int(answer.readline() or 1))
            waiting.remove(answer)
        if any(codes):
            end = min(end, time.monotonic() + 20)
    return codes


def serve() -> None:
    """Runs the program of each line of stdin in a fork, and writes its exit code to stdout."""
    preload()
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            return become(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def preload() -> None:
    """What libraries say while they are imported is of no test; errors are told."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        for module in PRELOADED:
            importlib.import_module(module)
    finally:
        os.dup2(stderr, 2)


def become(order: dict[str, Any]) -> None:
    """What `python program arguments` does, in an interpreter that has imported much already."""
    files = [os.open(os.devnull, os.O_RDONLY)]
    files += [os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY) for path in order["said"]]
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(order["environment"])
    program = order["command"][0]
    sys.argv = order["command"]
    sys.path.insert(0, str(Path(program).parent))
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    serve()
