"""Compile a C++ file of ours once for this machine; where that cannot be done, do without.

Every `*.cpp` in this folder is one library with a plain C interface for `ctypes`; `*.h` are shared
by them. It includes no header of Python or torch, so that it is compiled in about a second, and one
library serves all their versions; torch's threads are found by name while it runs. What calls one
has a slower twin of the same results, for want of a compiler.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

SWITCH = "HF_TFOPT_NATIVE"  # 0: compile and load nothing
FOLDER = Path(__file__).parent
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fPIC",
    "-shared",
    "-pthread",
    "-fopenmp-simd",
    "-fno-strict-aliasing",
    "-fno-math-errno",
    "-fno-trapping-math",
)
SECONDS = 120  # a compiler that takes longer is given up

_logger = logging.getLogger(__name__)


@lru_cache
def library(name: str) -> ctypes.CDLL | None:
    """The library of `name`.cpp, compiled the first time; None where there is none to be had.

    It is kept in the user's cache folder under a hash of the source, the compiler and the
    processor, so a changed file or a home shared by different machines compiles again. A file
    appears whole or not at all: any number of processes may do this at once.

    `HF_TFOPT_NATIVE=0` in the environment switches all libraries off; `CXX` names the compiler.
    """
    if os.environ.get(SWITCH) == "0":
        return None
    compiler = find_compiler()
    if compiler is None:
        _logger.info("no C++ compiler found: %s runs without its compiled form", name)
        return None
    try:
        path = _compiled(FOLDER / f"{name}.cpp", compiler)
        loaded = ctypes.CDLL(str(path))
        if path.parent != cache_folder():
            shutil.rmtree(path.parent, ignore_errors=True)  # it stays loaded
        return loaded
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # Runtime: no home
        said = getattr(error, "stderr", None) or error
        _logger.warning("%s.cpp cannot be compiled, and a slower form is used: %s", name, said)
        return None


def address(array: NDArray[Any], kind: str) -> ctypes.c_void_p:
    """Where the values of an array begin: of this dtype, and one after the other."""
    assert array.dtype == kind and array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


def find_compiler() -> str | None:
    """The path of `CXX`, c++, g++ or clang++, whichever is found first."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def cache_folder() -> Path:
    """Where libraries are kept: `hf_tfopt` in `XDG_CACHE_HOME`, which is ~/.cache if not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_tfopt"


def _compiled(source: Path, compiler: str) -> Path:
    """The library of this source; compiled where it is not yet there."""
    headers = (path.read_bytes() for path in sorted(source.parent.glob("*.h")))
    flags = " ".join(FLAGS).encode()
    parts = (source.read_bytes(), *headers, compiler.encode(), flags, _processor())
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    path = cache_folder() / f"{source.stem}-{digest}.so"
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            work = tempfile.mkdtemp(dir=path.parent)
        except OSError:  # a home that cannot be written: for this process only
            work = tempfile.mkdtemp()
            path = Path(work) / path.name
        made = Path(work) / "library"
        command = [compiler, *FLAGS, str(source), "-o", str(made)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
            made.replace(path)
        finally:
            if path.parent != Path(work) or not path.exists():
                shutil.rmtree(work, ignore_errors=True)
    return path


def _processor() -> bytes:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
    wanted = (b"model name", b"flags", b"Features", b"CPU part")
    return b"\n".join(sorted({line for line in lines if line.startswith(wanted)}))
