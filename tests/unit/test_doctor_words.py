"""How the doctor says addresses, errors, queries, ages and sizes: without what nobody is to see."""

from __future__ import annotations

import pytest
from sqlalchemy import make_url

from sessionkit.cli.doctor import _words


def test_nothing_of_an_address_that_is_secret_is_said() -> None:
    url = make_url("postgresql://ann:geheim@host/shop?password=geheim&sslpassword=geheim&application_name=web")
    said = _words.address(url)
    assert "geheim" not in said
    assert said.startswith("postgresql://ann:***@host/shop?")
    assert "application_name=web" in said
    assert "geheim" not in _words.error_line(ValueError("with geheim\nand more"), _words.secrets_of(url))


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("SELECT  1\n FROM t", "SELECT 1 FROM t"),
        ("ALTER ROLE ann PASSWORD 'geheim'", "ALTER ROLE ann PASSWORD ..."),
        ("SELECT $tag$geheim$tag$", "SELECT ..."),
        (r"SELECT E'\'geheim'", "SELECT E ..."),
        ("SELECT " + "x" * 100, "SELECT " + "x" * 33 + " ..."),
        ("SELECT $1", "SELECT $1"),
        ("", ""),
    ],
)
def test_of_somebodys_query_the_start_is_said_and_no_value(query: str, said: str) -> None:
    assert _words.query_start(query) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (12.4, "12 s"), (60, "1 min"), (61, "1 min 1 s"), (7260, "2 h 1 min"), (180_000, "2 d 2 h")],
)
def test_ages_are_said_in_two_units(seconds: float, said: str) -> None:
    assert _words.age(seconds) == said


def test_sizes_are_said_in_a_unit_that_can_be_read() -> None:
    assert [_words.size(count) for count in (0, 1023, 2048, 5 * 2**20, 3 * 2**40)] == [
        "0 bytes",
        "1023 bytes",
        "2 kB",
        "5 MB",
        "3 TB",
    ]
