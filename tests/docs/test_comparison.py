"""The pages of the comparison show the last results, and for what is installed here the results are still true.

The other peers are run by `python -m benchmarks compare --write`, whose environment holds them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import _results, _speed_page, bulk_types
from benchmarks.compare import observe, page, peers, stage
from benchmarks.compare.questions import QUESTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.doors import Door

HERE = ("sessionkit", "SQLAlchemy")
RESULTS: dict[str, Any] = _results.load("compare")


def test_the_pages_show_the_last_results() -> None:
    different = _results.differing(page.files(RESULTS))
    assert not different, "run `python -m benchmarks compare --render`"


def test_a_page_that_was_changed_by_hand_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.DETAIL.read_text(encoding="utf-8").replace("lost silently", "no error", 1)
    changed = tmp_path / "comparison-in-detail.md"
    changed.write_text(text, encoding="utf-8")
    monkeypatch.setattr(page, "DETAIL", changed)
    assert _results.differing(page.files(RESULTS)) == [changed]


def test_every_peer_was_asked_every_question() -> None:
    asked = {
        (backend, name, key)
        for backend, of_peers in RESULTS["outcomes"].items()
        for name, outcomes in of_peers.items()
        for key in outcomes
    }
    assert asked == {
        (backend, name, question.key)
        for question in QUESTIONS
        for backend in question.backends
        for name in peers.MODULES
    }


@pytest.mark.parametrize(
    ("name", "files"),
    [("scopes", _speed_page.speed), ("presets", _speed_page.presets), ("bulk-types", bulk_types.pages)],
)
def test_a_page_that_is_written_from_results_shows_them(name: str, files: Callable[[Any], dict[Path, str]]) -> None:
    assert not _results.differing(files(_results.load(name))), f"run `python -m benchmarks {name} --render`"


@pytest.mark.own_database
@pytest.mark.doors("sqlite-sync", "postgresql-sync")
@pytest.mark.parametrize("name", HERE)
def test_what_the_page_says_of_sessionkit_and_sqlalchemy_is_still_true(name: str, doors: Door) -> None:
    found = observe.ask_all(stage.Stage(doors.database.url(doors.driver).set(drivername=doors.backend)), name)
    assert found == RESULTS["outcomes"][doors.backend][name]
