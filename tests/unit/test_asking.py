"""How the outcome of a COMMIT is asked for while no server answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sessionkit._core import commit

if TYPE_CHECKING:
    import pytest


def test_the_question_is_put_again_soon_however_long_nobody_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(commit, "sleep", lambda seconds, _: waits.append(seconds))
    asked: list[float] = []

    def question(seconds: float) -> Any:
        asked.append(seconds)
        if len(asked) <= 200:
            raise ConnectionRefusedError
        return "committed"

    assert commit._ask(SimpleNamespace(asynchronous=False), question) == "committed"
    assert waits[0] <= 0.02
    assert 0.25 < max(waits) <= 0.5
    assert len(set(waits)) == 200, "writers that lost their COMMIT together ask at the same moments"
