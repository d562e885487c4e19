"""Name -> thing, where a misspelt name or option is answered with the nearest right one.

Each kind of thing (optimizers, collators, objectives, presets ...) has one `Registry`, written out
as a readable table in the `__init__.py` of its folder.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any


class UnknownNameError(KeyError, ValueError):
    """A name that no table holds."""

    def __str__(self) -> str:  # KeyError would print the message's repr
        return str(self.args[0])


class UnknownOptionError(TypeError, ValueError):
    """An option that an entry of a table does not take."""


@dataclass(frozen=True)
class Lazy:
    """An entry imported on first use, so that listing a table stays cheap and an extra optional.

    Args:
        path: `"module:attribute"`.
        extra: the pip extra that installs the module; empty for what always comes along.
    """

    path: str
    extra: str = ""

    def load(self) -> Any:
        """Import the entry; raises ImportError with the pip command where an extra is missing."""
        module, attribute = self.path.split(":")
        try:
            return getattr(import_module(module), attribute)
        except ImportError as error:
            if not self.extra:
                raise
            raise ImportError(f"{self.path} needs: pip install 'hf-tfopt[{self.extra}]'") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint that ends an error message: ` (did you mean 'adamw'?)`, or nothing."""
    matches = get_close_matches(name, list(known), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def check_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is known; raises UnknownNameError with the nearest right one if not."""
    known = list(known)
    if name not in known:
        raise UnknownNameError(
            f"unknown {kind} {name!r}{nearest(name, known)}; known: {', '.join(known)}"
        )
    return name


class Registry(Mapping[str, Any]):
    """A read-only table of one kind of thing, checked when a name or an option is used."""

    def __init__(self, kind: str, entries: Mapping[str, Any]):
        self.kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Any:
        entry = self._entries[check_name(self.kind, name, self._entries)]
        return entry.load() if isinstance(entry, Lazy) else entry

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def check_options(self, name: str, options: Iterable[str]) -> Callable[..., Any]:
        """Return the entry; raises UnknownOptionError, naming the nearest right one."""
        target = self[name]
        parameters = inspect.signature(target).parameters
        for option in options:
            if option not in parameters:
                raise UnknownOptionError(
                    f"{self.kind} {name!r} has no option {option!r}{nearest(option, parameters)}; "
                    f"options: {', '.join(parameters)}"
                )
        return target

    def build(self, name: str, *args: Any, **options: Any) -> Any:
        """Call the entry with checked options."""
        return self.check_options(name, options)(*args, **options)


def public_names(
    package: str, exports: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's `__getattr__` and `__dir__` (PEP 562): its names and submodules on first use."""

    def load(name: str) -> Any:
        if name in exports:
            return getattr(import_module(exports[name]), name)
        if not name.startswith("_"):
            submodule = f"{package}.{name}"
            try:
                return import_module(submodule)
            except ModuleNotFoundError as error:
                if error.name != submodule:  # the submodule is there; what it imports is not
                    raise
        hint = nearest(name, exports)
        raise AttributeError(f"module {package!r} has no attribute {name!r}{hint}")

    return load, lambda: sorted(exports)
