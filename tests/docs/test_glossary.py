"""The glossary explains the words that the other pages use, each once and in a sentence or three."""

from __future__ import annotations

import re

import pytest

from tests.docs.pages import ROOT, pages

TEXT = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
ENTRIES: dict[str, str] = dict(re.findall(r"^\*\*(.+?)\*\*\n: ((?:.+\n)+)", TEXT, re.MULTILINE))
OTHERS = "\n".join(
    page.read_text(encoding="utf-8") for page in [*pages(), *(ROOT / "src").rglob("*.py")] if page.name != "glossary.md"
).lower()

EXPECTED = """
    Scope, Unit of work, Attempt, Join, Ambient session, Commit marker, Claim, Commit token, Savepoint, Write skew,
    Serialization failure, Swallowed error, Outcome, Propagation, Factory, Flush, Hook, Conflict, Version, Upsert, Preset
"""


def test_every_word_is_told_once() -> None:
    assert len(ENTRIES) == TEXT.count("\n**")
    assert not set(re.split(r",\s+", EXPECTED.strip())) - set(ENTRIES)


@pytest.mark.parametrize("word", ENTRIES)
def test_a_word_is_short_to_tell_and_is_used(word: str) -> None:
    sentences = re.sub(r"\[.*?\]\(.*?\)|`.*?`", "x", ENTRIES[word], flags=re.DOTALL)
    assert 1 <= len(re.findall(r"[.:!?](?:\s|$)", sentences)) <= 5
    for name in word.lower().split(", "):
        pattern = r"[\s-]".join(map(re.escape, re.split(r"[\s-]", name.removesuffix("y"))))  # anomaly, anomalies
        assert re.search(rf"\b{pattern}", OTHERS)
