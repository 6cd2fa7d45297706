"""The check of plain words: it sees what it should see, and the pages, docstrings, comments and messages pass it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.prose import LONGEST, complaints, sources

Check = Callable[..., list[str]]

OLD = [
    "SQLite's queue is none that is fair.",
    "Who overwrites what they have not seen is told who was faster.",
    "It asks nobody.",
    "Who comes second waits for the first.",
    "Whatever becomes of its COMMIT.",
    "One that is to be retried runs again.",
    "An INSERT in the place of an UPDATE.",
    "The driver finds it by itself.",
    "The tables are made anew.",
    "The caller shall hear what became of it.",
    "Sets are dear.",
    "It is no error for it.",
    "A class of ours.",
    "What is missed cannot be had on this machine.",
    "CPU for each row, the less the better.",
    "A failure that mends itself.",
    "Of both colours.",
]
GOOD = [
    "If there is none, the order stands.",
    "It shows who waits for whom.",
    "Who has the lock?",
    "@media (prefers-color-scheme: dark)",
    "PostgreSQL does not treat this as an error, so no driver reports one.",
    "`nobody` runs the server.",
]


@pytest.fixture
def said_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Return the complaints about a file with a text."""
    monkeypatch.setattr("tests.docs.prose.ROOT", tmp_path)

    def check(text: str, name: str = "page.md") -> list[str]:
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return [str(complaint) for complaint in complaints(file)]

    return check


@pytest.mark.parametrize("sentence", OLD)
def test_a_translated_sentence_is_seen(sentence: str, said_of: Check) -> None:
    assert said_of(f"# Title\n\n{sentence}\n")
    assert said_of(f'"""{sentence}"""\n', "module.py")
    assert said_of(f"# {sentence}\n", "module.py")


def test_a_subject_is_seen_at_the_head_of_a_later_paragraph(said_of: Check) -> None:
    assert len(said_of('"""A row for each key.\n\nWho comes second waits.\n"""\n', "module.py")) == 1


@pytest.mark.parametrize("sentence", GOOD)
def test_a_plain_sentence_passes(sentence: str, said_of: Check) -> None:
    assert said_of(f"# Title\n\n{sentence}\n") == []


def test_the_place_of_a_complaint_is_its_line(said_of: Check) -> None:
    assert [line.split(":")[1] for line in said_of("# Title\n\nOne.\n\nTwo\nshall come.\n")] == ["6"]


def test_code_and_addresses_are_not_prose(said_of: Check) -> None:
    assert said_of("```python\nnobody = shall\n```\n\nSee [this](anew.md), or `by itself`.\n") == []


def test_a_sentence_may_be_so_long_and_no_longer(said_of: Check) -> None:
    assert said_of(f"{'word ' * (LONGEST - 1)}word.\n") == []
    assert len(said_of(f"{'word ' * LONGEST}word.\n")) == 1


def test_a_list_of_names_is_not_one_sentence(said_of: Check) -> None:
    items = "\n".join(f"    name{n}  a meaning of seven words or so" for n in range(9))
    assert said_of(f'"""What there is.\n\n{items}\n"""\n', "module.py") == []


def test_a_literal_that_was_broken_in_a_phrase_is_seen(said_of: Check) -> None:
    broken = 'text = (\n    "a row that the "\n    "database refuses is named in the message of the error that is raised"\n)\n'
    assert ["broken" in line for line in said_of(broken, "module.py")] == [True]


def test_an_f_string_without_a_placeholder_is_seen(said_of: Check) -> None:
    text = 'name = 1\ntext = (\n    f"the row {name} was refused by the database, which named no column; "\n    f"correct it"\n)\n'
    assert ["placeholder" in line for line in said_of(text, "module.py")] == [True]


def test_what_users_read_is_in_plain_words() -> None:
    found = [str(complaint) for path in sources() for complaint in complaints(path)]
    assert not found, "\n".join(found)
