"""Our C++ is compiled once, by one of many, and its absence costs time only."""

import ctypes
import logging
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hf_tfopt.native import build

NAMES = sorted(path.stem for path in build.FOLDER.glob("*.cpp"))
needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and nothing loaded before or after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(build.SWITCH, raising=False)
    build.library.cache_clear()
    yield tmp_path / "hf_tfopt"
    build.library.cache_clear()


@needs_compiler
@pytest.mark.parametrize("name", NAMES)
def test_every_source_compiles_without_a_warning(name: str, tmp_path: Path) -> None:
    compiler = build.find_compiler()
    assert compiler is not None
    command = [compiler, *build.FLAGS, "-Wall", "-Wextra", "-Werror", str(build.FOLDER / name)]
    command[-1] += ".cpp"
    subprocess.run([*command, "-o", str(tmp_path / "made.so")], check=True)


@needs_compiler
def test_it_is_compiled_once(cache: Path) -> None:
    assert isinstance(build.library("rows"), ctypes.CDLL)
    (made,) = cache.iterdir()
    before = made.stat().st_mtime_ns
    build.library.cache_clear()
    assert build.library("rows") is not None
    assert made.stat().st_mtime_ns == before


@needs_compiler
def test_many_processes_at_once_leave_one_file(cache: Path) -> None:
    code = "from hf_tfopt.native.build import library; assert library('masked_batch') is not None"
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: subprocess.run([sys.executable, "-c", code]), range(4)))
    assert [run.returncode for run in runs] == [0] * 4
    assert [path.suffix for path in cache.iterdir()] == [".so"]


@needs_compiler
def test_a_changed_source_is_compiled_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    for answer in (1, 2):
        text = f'extern "C" int answer() {{ return {answer}; }}'
        (tmp_path / "changing.cpp").write_text(text)
        build.library.cache_clear()
        library = build.library("changing")
        assert library is not None and library.answer() == answer
    assert len(list(cache.iterdir())) == 2


@needs_compiler
def test_a_changed_header_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    text = '#include "said.h"\nextern "C" int answer() { return kAnswer; }'
    (tmp_path / "changing.cpp").write_text(text)
    for answer in (1, 2):
        (tmp_path / "said.h").write_text(f"constexpr int kAnswer = {answer};")
        build.library.cache_clear()
        library = build.library("changing")
        assert library is not None and library.answer() == answer


def test_the_switch_turns_it_off(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.SWITCH, "0")
    assert build.library("rows") is None
    assert not cache.exists()


def test_without_a_compiler_there_is_none(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("PATH", str(cache))
    monkeypatch.delenv("CXX", raising=False)
    assert build.library("rows") is None


def test_a_compiler_that_fails_is_told_and_survived(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken-compiler"
    broken.write_text("#!/bin/sh\necho 'out of order' >&2\nexit 3\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(broken))
    with caplog.at_level(logging.WARNING):
        assert build.library("rows") is None
    assert "rows.cpp cannot be compiled, and a slower form is used: out of order" in caplog.text
    assert list(cache.iterdir()) == []  # nothing half-made is left


@needs_compiler
def test_a_folder_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    assert build.library("rows") is not None
    assert sorted(os.listdir(tmp_path)) == ["file", "temporary"]
    assert os.listdir(tmp_path / "temporary") == []
