"""Without a report and its pictures, which take longer than the small trainings themselves."""

import pytest

from hf_tfopt.recipe import execution


@pytest.fixture
def reported() -> None:
    """For the tests that look at the report."""


@pytest.fixture(autouse=True)
def unreported(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Except where a test asks for `reported`; runs of a whole module's fixtures are reported."""
    if "reported" not in request.fixturenames:
        monkeypatch.setattr(execution, "write_report", lambda *_: None)
