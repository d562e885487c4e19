"""Listening to methods."""

from typing import Any

from hf_tfopt.callbacks.taps import Tap


class Owner:
    def act(self, number: int) -> int:
        return 2 * number

    @staticmethod
    def free(number: int) -> int:
        return number


def test_taps_come_and_go_in_any_order() -> None:
    owner, seen = Owner(), []
    first = Tap(owner, "act", lambda given: seen.append(given), lambda result: seen.append(result))
    second = Tap(owner, "act", before=lambda given: seen.append("second"))
    assert owner.act(3) == 6
    assert seen == [(3,), "second", 6]
    first.remove()
    first.remove()
    assert owner.act(4) == 8
    assert seen[3:] == ["second"]
    second.remove()
    assert "act" not in vars(owner)
    replaced: Any = lambda number: -number  # noqa: E731
    owner.act = replaced
    tap = Tap(owner, "act")
    assert owner.act(1) == -1
    tap.remove()
    assert owner.act is replaced


def test_a_class_that_is_changed_later_is_heard_too(monkeypatch: Any) -> None:
    owner, seen = Owner(), []
    taps = [Tap(owner, "act", after=seen.append), Tap(owner, "free", after=seen.append)]
    monkeypatch.setattr(Owner, "act", lambda self, number: 3 * number)
    assert owner.act(2) == 6
    assert owner.free(5) == 5
    assert seen == [6, 5]
    for tap in taps:
        tap.remove()
    assert owner.act(2) == 6 and vars(owner) == {}
