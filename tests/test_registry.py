"""A typo is loud: it is answered with the nearest right name."""

import pytest

import hf_tfopt as tfo
from hf_tfopt.registry import Lazy, Registry, UnknownNameError


def make(size: int, depth: int = 1) -> tuple[int, int]:
    """Make a pair."""
    return size, depth


TABLE = Registry("thing", {"small": make, "lazy": Lazy("fractions:Fraction")})


def test_a_name_gives_its_entry() -> None:
    assert TABLE["small"] is make
    assert TABLE["lazy"].__name__ == "Fraction"
    assert list(TABLE) == ["small", "lazy"] and len(TABLE) == 2
    assert TABLE.build("small", 3, depth=2) == (3, 2)


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    expected = r"unknown thing 'smal' \(did you mean 'small'\?\); known: small, lazy"
    with pytest.raises(UnknownNameError, match=expected):
        TABLE["smal"]
    with pytest.raises(ValueError, match="unknown thing"):
        TABLE["zzz"]


def test_a_misspelt_option_is_answered_with_the_nearest() -> None:
    expected = r"thing 'small' has no option 'dept' \(did you mean 'depth'\?\)"
    with pytest.raises(TypeError, match=expected):
        TABLE.build("small", 1, dept=2)


def test_a_missing_extra_names_the_command() -> None:
    table = Registry("thing", {"far": Lazy("no_such_module:X", extra="far")})
    with pytest.raises(ImportError, match=r"pip install 'hf-tfopt\[far\]'"):
        table["far"]


def test_every_public_name_is_there() -> None:
    for name in tfo.__all__:
        assert getattr(tfo, name) is not None, name
    assert set(dir(tfo)) <= set(tfo.__all__)


def test_a_misspelt_public_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match="did you mean 'MaskedLMCollator'"):
        tfo.MaskedLMColator  # noqa: B018
