"""The embedded corpus: the English documentation that our dependencies bring to every machine.

Docstrings, other documentation strings and block comments of the standard library and of the
packages that come with `pip install hf-tfopt`, read from their source files (nothing is imported or
run), cleaned by `prose`, without any sentence twice.
"""

import ast
import gc
import hashlib
import os
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import datasets

from hf_tfopt.data import prose
from hf_tfopt.data.document_cache import PathLike, cached_documents

STANDARD_LIBRARY = "the standard library"

PACKAGES = {  # name to import -> name to install, in the order of the corpus
    "torch": "torch",
    "transformers": "transformers",
    "accelerate": "accelerate",
    "datasets": "datasets",
    "huggingface_hub": "huggingface-hub",
    "numpy": "numpy",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "matplotlib": "matplotlib",
    "sympy": "sympy",
    "mpmath": "mpmath",
    "networkx": "networkx",
    "fontTools": "fonttools",
    "PIL": "pillow",
    "contourpy": "contourpy",
    "pyparsing": "pyparsing",
    "dateutil": "python-dateutil",
    "fsspec": "fsspec",
    "jinja2": "jinja2",
    "rich": "rich",
    "typer": "typer",
    "click": "click",
    "pygments": "pygments",
    "pydantic": "pydantic",
    "setuptools": "setuptools",
    "packaging": "packaging",
    "filelock": "filelock",
    "dill": "dill",
    "multiprocess": "multiprocess",
    "psutil": "psutil",
    "tqdm": "tqdm",
    "yaml": "pyyaml",
    "regex": "regex",
}

# Tests, copies of other packages, and what some systems leave out of the standard library.
_SKIPPED = (
    "site-packages dist-packages test tests testing _vendor vendor idlelib lib2to3 tkinter "
    "turtledemo ensurepip distutils __pycache__"
)
_SKIPPED_FOLDERS = frozenset(_SKIPPED.split())
_MIN_WORDS = 20
_MIN_LITERAL = 100  # characters from which a string that is no docstring may be documentation

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_COMMENT = re.compile(r"[ \t]*#+:? ?(.*)")
_NAME_OR_NUMBER = re.compile(r"\S*[A-Z_0-9]\S*|[^a-z ]+")


def embedded_corpus(cache_dir: PathLike | None = None) -> datasets.Dataset:
    """The embedded corpus as a dataset with the column "text"; built on first use, about a minute.

    The file on disk is keyed by the versions of Python and the packages and by the cleaning's code.

    Args:
        cache_dir: where the built corpus is kept; None is the cache of `datasets`.
    """
    return cached_documents("embedded", _fingerprint(), lambda: documents(_folders()), cache_dir)


def documents(folders: Mapping[str, Path]) -> Iterator[str]:
    """The documents in the Python files below some folders, in the order of the sorted paths.

    A document is what is written on one thing: a module, a class with its methods, a function, a
    help topic or a block of comments; it has at least 20 words. A sentence is kept where it is met
    first. Sentences that differ in names and numbers only count as one, or every model of a library
    would bring its copy of the same page.

    Args:
        folders: what is read, by a name to show.
    """
    seen: set[str] = set()
    files = [(name, path) for name, folder in folders.items() for path in _python_files(folder)]
    for _, path in datasets.utils.tqdm(files, desc="Reading documentation", unit=" files"):
        for texts in _documentation(path):
            document = _novel_prose(texts, seen)
            if document.count(" ") + document.count("\n") >= _MIN_WORDS - 1:
                yield document


def _folders() -> dict[str, Path]:
    found = {STANDARD_LIBRARY: Path(sysconfig.get_path("stdlib"))}
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            found[name] = Path(spec.submodule_search_locations[0])
    return found


def _fingerprint() -> str:
    parts = [platform.python_version()]
    for distribution in PACKAGES.values():
        try:
            parts.append(f"{distribution} {version(distribution)}")
        except PackageNotFoundError:
            parts.append(f"no {distribution}")
    digest = hashlib.sha256("\n".join(parts).encode())
    for code in (__file__, prose.__file__):
        digest.update(Path(code).read_bytes())
    return digest.hexdigest()[:16]


def _python_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        found += [Path(parent, name) for name in files if name.endswith(".py")]
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def _novel_prose(texts: Sequence[str], seen: set[str]) -> str:
    """The texts' paragraphs, one a line, without the sentences that were seen before."""
    found: list[str] = []
    for text in texts:
        for paragraph in prose.paragraphs(text):
            novel: list[str] = []
            for sentence in paragraph:
                key = _NAME_OR_NUMBER.sub("", sentence[0].lower() + sentence[1:])
                if key not in seen:
                    seen.add(key)
                    novel.append(sentence)
            if novel:
                found.append(" ".join(novel))
    return "\n".join(found)


def _documentation(path: Path) -> Iterator[list[str]]:
    """The raw texts of each document of one source file."""
    source = path.read_bytes()
    try:
        module = _parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    comments = _block_comments(source.decode("utf-8", "replace"))
    for statement in module.body:
        if isinstance(statement, _DEFINITIONS):
            inner = {node.lineno: str(node.value) for node in _docstrings(statement)}
            for line in range(statement.lineno, (statement.end_lineno or 0) + 1):
                if line in comments:
                    inner[line] = comments.pop(line)
            yield [inner[line] for line in sorted(inner)]
        else:
            yield from ([str(node.value)] for node in _texts(statement))
    yield from ([comment] for comment in comments.values())


def _parse(source: bytes) -> ast.Module:
    """`ast.parse`, without the warnings about others' strings and without the collector.

    A tree is many objects and no cycles: visiting them all again and again is a third of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(source)
    finally:
        if was_enabled:
            gc.enable()


def _docstrings(definition: _Definition) -> Iterator[ast.Constant]:
    """The documentation of a class or function and of what is defined in it."""
    for statement in definition.body:
        if isinstance(statement, _DEFINITIONS):
            yield from _docstrings(statement)
        elif isinstance(definition, ast.ClassDef) or isinstance(statement, ast.Expr):
            yield from _texts(statement)


def _texts(statement: ast.stmt) -> Iterator[ast.Constant]:
    """The strings of a statement that may be documentation: `"..."`, `x = "..."`, `f(x, "...")`."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        if isinstance(statement.value.value, str):
            yield statement.value
    elif isinstance(statement, (ast.Expr, ast.Assign, ast.AnnAssign)):
        yield from _literals(statement.value)
    elif isinstance(statement, (ast.If, ast.Try)):
        for inner in (*statement.body, *statement.orelse):
            yield from _docstrings(inner) if isinstance(inner, _DEFINITIONS) else _texts(inner)


def _literals(node: ast.expr | None) -> Iterator[ast.Constant]:
    """The long strings that are written out in calls, operations and displays."""
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str) and len(node.value) >= _MIN_LITERAL:
            yield node
    elif isinstance(node, ast.Call):
        for child in (node.func, *node.args, *(keyword.value for keyword in node.keywords)):
            yield from _literals(child)
    elif isinstance(node, ast.Attribute):
        yield from _literals(node.value)
    elif isinstance(node, ast.BinOp):
        yield from _literals(node.left)
        yield from _literals(node.right)
    elif isinstance(node, (ast.List, ast.Tuple, ast.Dict)):
        for child in node.values if isinstance(node, ast.Dict) else node.elts:
            yield from _literals(child)


def _block_comments(source: str) -> dict[int, str]:
    """Two or more lines that hold nothing but a comment, by the number of the first one."""
    found: dict[int, str] = {}
    block: list[str] = []
    for number, line in enumerate([*source.splitlines(), ""], start=1):
        comment = _COMMENT.match(line)
        if comment:
            block.append(comment[1])
        elif block:
            if len(block) > 1:
                found[number - len(block)] = "\n".join(block)
            block = []
    return found
