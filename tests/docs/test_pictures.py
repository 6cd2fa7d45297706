"""The pictures are those that their script draws, and all of them are shown."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import pages
from tests.docs.pictures import FOLDER, PICTURES


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_a_picture_is_as_its_script_draws_it(name: str) -> None:
    shown = (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert shown == PICTURES[name]().svg(), "python -m tests.docs.pictures draws them anew"


def test_every_picture_is_shown_on_a_page() -> None:
    shown = {name for page in pages() for name in re.findall(r"\]\([\w./]*pictures/([\w-]+)\.svg\)", page.read_text())}
    assert shown == set(PICTURES) == {file.stem for file in FOLDER.iterdir()}
