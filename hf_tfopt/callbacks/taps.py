"""Listening to calls of an object's method, for as long as a training lasts."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from inspect import getattr_static
from typing import Any

Before = Callable[[Sequence[Any]], None]
After = Callable[[Any], None]
Change = Callable[[Any], Any]
Within = Callable[[], AbstractContextManager[None]]


class Tap:
    """A listener to the calls of `owner.name`; it changes nothing that is given.

    Several may listen to one method. The method is the object's own again when the last has gone.

    Args:
        owner: the object.
        name: of its method.
        before: called with the positional arguments.
        after: called with the result.
        within: makes the context in which the method runs.
        change: called with the result, before those of `after`; gives another in its place.
    """

    def __init__(
        self,
        owner: Any,
        name: str,
        before: Before | None = None,
        after: After | None = None,
        within: Within | None = None,
        change: Change | None = None,
    ):
        self.before = before
        self.after = after
        self.within = within
        self.change = change
        known = vars(owner).get(name)
        self._method = known if isinstance(known, _Tapped) else _Tapped(owner, name)
        self._method.taps.append(self)

    def remove(self) -> None:
        """Stop listening."""
        self._method.leave(self)


class _Tapped:
    """In the place of a method: calls the listeners, and the method."""

    def __init__(self, owner: Any, name: str):
        self.taps: list[Tap] = []
        self._owner, self._name = owner, name
        self._original = getattr(owner, name)
        self._replaced = vars(owner).get(name)  # as `attach` puts a schedule there, or a user
        setattr(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for tap in tuple(self.taps):
            if tap.before is not None:
                tap.before(args)
        with ExitStack() as contexts:
            for tap in self.taps:
                if tap.within is not None:
                    contexts.enter_context(tap.within())
            result = self._current()(*args, **kwargs)
        for tap in tuple(self.taps):
            if tap.change is not None:
                result = tap.change(result)
        for tap in tuple(self.taps):
            if tap.after is not None:
                tap.after(result)
        return result

    def _current(self) -> Any:
        """The object's own, or its class's as it is now, which somebody may have replaced."""
        kind = type(self._owner)
        found = getattr_static(kind, self._name, None)
        if self._replaced is not None or not hasattr(found, "__get__"):
            return self._original
        return found.__get__(self._owner, kind)

    def leave(self, tap: Tap) -> None:
        if tap in self.taps:
            self.taps.remove(tap)
        if self.taps or vars(self._owner).get(self._name) is not self:
            return
        if self._replaced is None:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._replaced)
