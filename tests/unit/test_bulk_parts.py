"""The parts of bulk that need no database."""

from __future__ import annotations

import io
import json
import pickle
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import IntegrityError

from sessionkit._dialects._json import dumps
from sessionkit.bulk._duplicates import Seen
from sessionkit.bulk._equality import fold_value
from sessionkit.bulk._faults import search
from sessionkit.bulk._forms import HELPERS
from sessionkit.bulk._progress import Bar
from sessionkit.errors import BulkError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sessionkit.bulk._equality import Equality


@pytest.mark.parametrize(
    ("value", "octets"),
    [
        # What PostgreSQL's numeric_send gives for these, but for zeros at the ends, which the server takes off.
        ("0", "000200010000000000000000"),
        ("1", "000200010000000000000001"),
        ("-12.345", "0002000040000003000c0d7a"),
        ("-0.5", "0001ffff400000011388"),
        ("0.0001", "000200000000000400000001"),
        ("10000", "000200010000000000010000"),
        ("1E+3", "000100000000000003e8"),
        ("0E-9", "0000fffc00000009"),
        ("123456.789", "0003000100000003000c0d801ed2"),
        ("99999999999999999999", "0005000400000000270f270f270f270f270f"),
        ("NaN", "00000000c0000000"),
    ],
)
def test_a_number_is_packed_in_groups_of_four_digits(value: str, octets: str) -> None:
    assert HELPERS["numeric"](Decimal(value)).hex() == octets


@pytest.mark.parametrize("value", [1.5, "1", Decimal("Infinity"), None])
def test_what_is_no_exact_number_is_not_packed(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        HELPERS["numeric"](value)


class Caseless:
    """An equality in which capital letters and small ones are one."""

    def folded(self, keys: Sequence[tuple[Any, ...]]) -> Sequence[tuple[Any, ...]]:
        return [tuple(map(fold_value, key)) for key in keys]

    def one_key(self, a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
        return [str(x).lower() for x in a] == [str(x).lower() for x in b]


def test_a_key_that_ends_one_chunk_and_begins_the_next_is_there_twice() -> None:
    seen, equality = Seen(), cast("Equality", Caseless())
    assert seen.duplicates([(1,), (2,)], range(2), equality) == {}
    assert seen.duplicates([(2,), (3,)], range(2, 4), equality) == {0: 1}


def test_duplicates_are_found_within_and_across_chunks() -> None:
    seen, equality = Seen(), cast("Equality", Caseless())
    assert seen.duplicates([(1,), (3,), (5,)], range(3), equality) == {}
    assert seen.duplicates([(7,), (9,)], range(3, 5), equality) == {}
    assert seen.duplicates([(4,), (3,), (8,), (4,), (9,)], range(5, 10), equality) == {1: 1, 3: 5, 4: 4}
    assert seen.duplicates([("a", 1), ("a", 1)], range(10, 12), equality) == {1: 10}


def test_keys_that_look_alike_are_duplicates_if_they_are_one_key() -> None:
    seen, equality = Seen(), cast("Equality", Caseless())
    assert seen.duplicates([("Bob",), ("b-ob",), ("bOB",), ("b.ob",)], range(4), equality) == {2: 0}
    assert seen.duplicates([("B-OB",), ("bob",), ("b.ob ",)], range(4, 7), equality) == {0: 1, 1: 0}
    assert seen.duplicates([("x",)], range(7, 8), equality) == {}
    assert seen.duplicates([("X",)], range(8, 9), equality) == {0: 7}


@pytest.mark.parametrize(
    ("one", "other"), [("Straße", "STRASSE"), ("é", "e\u0301"), ("é", "E"), ("a ", "a"), ("a-b", "A_B"), ("ﬁn", "FIN")]
)
def test_what_a_collation_may_take_for_one_value_folds_to_one(one: str, other: str) -> None:
    assert fold_value(one) == fold_value(other)


@given(st.integers(1, 400), st.sets(st.integers(0, 399), max_size=30), st.sampled_from([1, 7, 1000]))
def test_bad_places_are_found_block_by_block_and_nothing_good_twice(length: int, bad: set[int], most: int) -> None:
    written: list[int] = []
    asked = 0

    def good(low: int, high: int) -> bool:
        nonlocal asked
        asked += 1
        assert 0 < high - low <= most
        if bad.isdisjoint(range(low, high)):
            written.extend(range(low, high))
            return True
        return False

    wrong = sorted(place for place in bad if place < length)
    assert search(length, most, good) == wrong
    assert written == [place for place in range(length) if place not in bad]
    if most > length:
        assert asked <= 10 + 18 * (len(wrong) + 1)


def test_a_bar_shows_rows_rate_and_what_is_left() -> None:
    now = [0.0]
    out = io.StringIO()
    bar = Bar("insert User", 4000, stream=out, clock=lambda: now[0])
    now[0] = 2.0
    bar(1000, 4000)
    assert bar.line(now[0]).endswith("25%  1,000/4,000 rows  500/s  0:06 left")
    bar.close()
    assert out.getvalue().count("\n") == 1


def test_a_bar_is_drawn_in_what_its_terminal_can_show() -> None:
    def drawn(encoding: str) -> str:
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        return Bar("load", 4, stream=stream, clock=lambda: 0.0).line(1.0)

    assert "░" in drawn("utf-8")
    assert "#" not in drawn("ascii")
    assert drawn("ascii").isascii()
    assert drawn("cp1252").isascii()


def test_a_bar_without_a_length_shows_rows_and_rate() -> None:
    now = [0.0]
    bar = Bar("insert User", stream=io.StringIO(), clock=lambda: now[0])
    now[0] = 3700.0
    bar(37_000)
    assert bar.line(now[0]) == "insert User  37,000 rows  10/s  1:01:40"


def test_a_bulk_error_is_of_the_other_class_too_and_survives_a_pickle() -> None:
    error = BulkError.of(
        IntegrityError("INSERT", {}, ValueError("no")), "row 3 was refused", position=3, row={"a": 1}, column="a"
    )
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, IntegrityError)
    assert isinstance(again, BulkError)
    assert (again.args[0], again.position, again.row, again.column) == ("row 3 was refused", 3, {"a": 1}, "a")
    assert again.statement == "INSERT"


def test_a_bulk_error_of_a_class_that_allows_no_second_base_is_a_bulk_error() -> None:
    error = BulkError.of(UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), "row 0", position=0, row=None)
    assert isinstance(error, BulkError)


@pytest.mark.parametrize(
    "document",
    [None, True, 5, -0.0, float("inf"), 'it\'s "ü"\u2028', [], {}, {"a": [1, {"b": (2, None)}], 3: "c"}, [[[]]]],
)
def test_a_document_is_written_as_json_dumps_would(document: object) -> None:
    assert dumps(document) == json.dumps(document)


def test_what_is_no_document_is_refused_as_by_json_dumps() -> None:
    for wrong in ({1, 2}, object(), {(1, 2): 3}, [b"x"]):
        with pytest.raises(TypeError) as expected:
            json.dumps(wrong)
        with pytest.raises(TypeError) as caught:
            dumps(wrong)
        assert str(caught.value) == str(expected.value)
    circle: list[object] = []
    circle.append(circle)
    with pytest.raises(RecursionError):
        dumps(circle)
    assert dumps([circle[:0]]) == "[[]]"
