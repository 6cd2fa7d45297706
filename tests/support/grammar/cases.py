"""A verb, its rows and its options, as Hypothesis draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from hypothesis import strategies as st

from tests.support.grammar.tables import KEYS, Built, Col, Point, Shape, Told
from tests.support.grammar.words import NAMES, WORDS

Verb = Literal["insert", "update", "upsert", "delete", "get"]
Template = dict[str, Any]

SIZES = {"sqlite": (5, 200), "postgresql": (5, 200, 2_000)}
"""Where the ladders of the dialects go over to another way."""


@dataclass(frozen=True, repr=False)
class Case(Told):
    """A call.

    Attributes:
        rows: patterns of rows, taken in turn; each row gets its label, and its key where the pattern says "key".
        size: how many rows.
        seeds: patterns of the rows that are there before.
        there: how many of the labels, from 0, are there before.
        bad: what is wrong with which rows: (place, "null" | "check" | "label" | "code" | "wrong" | "again" | "stale").
        backwards: the labels go down.
        held: the session holds the rows that are there. Otherwise the call is the first thing of its transaction.
        method: None for every method of the dialect.
    """

    verb: Verb
    shape: Shape
    rows: tuple[Template, ...] = ({},)
    size: int = 1
    seeds: tuple[Template, ...] = ({},)
    there: int = 0
    bad: tuple[tuple[int, str], ...] = ()
    chunk: int | None = None
    backwards: bool = False
    held: bool = False
    returning: Literal["", "columns", "class"] = ""
    render_nulls: bool = False
    status: bool = False
    when_changed: bool = False
    match: Literal["label", "key", "code"] = "label"
    update: tuple[str, ...] | None = None
    on_error: Literal["raise", "collect"] = "raise"
    on_duplicate: Literal["error", "first", "last"] = "error"
    missing: Literal["error", "ignore"] = "error"
    versions: bool = False


def _fitting(backend: str) -> list[str]:
    return [name for name, word in WORDS.items() if backend in word.backends]


@st.composite
def _cols(draw: st.DrawFn, backend: str, verb: Verb, inherits: str) -> tuple[Col, ...]:
    chosen: list[str] = draw(st.lists(st.sampled_from(_fitting(backend)), min_size=0, max_size=4))
    names = draw(st.lists(st.sampled_from(NAMES), min_size=len(chosen), max_size=len(chosen), unique=True))
    made: list[Col] = []
    for name, word in zip(names, chosen, strict=True):
        known = WORDS[word]
        defaults = ["", "", "", "scalar", "callable", "parameters", "isinsert"]
        if word in {"integer", "bigint", "float"}:
            defaults.append("connection")
        if known.server is not None:
            defaults += ["sql", "server"] if word in {"integer", "bigint", "text"} else ["server"]
        if word in {"json", "jsonb", "json without null", "int array", "wrapped", "text array"}:
            defaults = [kind for kind in defaults if kind != "scalar"]
        onupdates = ["", "", "", "", "scalar", "callable"]
        if verb != "upsert":  # which refuses it: it has no row where it updates
            onupdates.append("parameters")
        if word in {"integer", "text"}:
            onupdates.append("sql")
        if known.default is None or isinstance(known.default, dict | list):
            onupdates = [kind for kind in onupdates if kind != "scalar"]
        child = bool(inherits) and draw(st.booleans())
        # A column of a subclass is NULL in the rows of its parent.
        nullable = draw(st.integers(0, 3)) > 0 or (child and inherits == "single")
        checked = word in {"integer", "bigint", "text", "variant"} and draw(st.integers(0, 4)) == 0
        made.append(
            Col(word, name, nullable, draw(st.sampled_from(defaults)), draw(st.sampled_from(onupdates)), checked, child)
        )
    return tuple(made)


@st.composite
def shapes(draw: st.DrawFn, backend: str, verb: Verb) -> Shape:
    """Make a table."""
    inherits = draw(st.sampled_from(["", "", "", "", "single", "joined"]))
    if inherits == "joined" and verb == "upsert":
        inherits = "single"
    keys = [name for name, key in KEYS.items() if backend in key.backends]
    if inherits == "joined":
        keys = [name for name in keys if name in {"auto", "identity", "text", "uuid", "served uuid", "descending"}]
    key = draw(st.sampled_from(keys))
    trigger = draw(st.sampled_from([*[""] * 5, "change", "skip insert", "skip update", "skip delete"]))
    if key == "trigger" or inherits == "joined":
        trigger = ""
    extras = draw(st.sets(st.sampled_from(["point", "synonym", "computed", "unmapped"]), max_size=2))
    if inherits:
        extras -= {"unmapped"}
    return Shape(
        columns=draw(_cols(backend, verb, inherits)),
        name=draw(st.sampled_from(["grammar", "grammar", "Gram%r", 'g"r', "Gram Mar"])),
        key=key,
        # An upsert refuses a version that only Python can make.
        version=draw(st.sampled_from(["", "", "", "count", "kit", *(["twos"] if verb != "upsert" else [])])),
        inherits=inherits,
        uniques=tuple(sorted(draw(st.sets(st.sampled_from(["code", "partial", "lower", "pair"]), max_size=2)))),
        trigger=trigger,
        extras=tuple(sorted(extras)),
    )


@st.composite
def _template(draw: st.DrawFn, shape: Shape, verb: Verb, *, seed: bool = False) -> Template:
    made: Template = {}
    new = seed or verb in {"insert", "upsert"}
    if verb != "update" and draw(st.integers(0, 2)) == 0:
        made["key"] = "given"
    for place, col in enumerate(shape.columns):
        what = draw(st.integers(0, 9))
        demanded = new and not col.nullable and not col.default
        if col.checked and col.word in {"integer", "bigint"}:
            values: Any = st.integers(-999, 2**31 - 1)
        else:
            values = WORDS[col.word].values
        if what < 6 or demanded:
            made[f"attr{place}"] = draw(values)
        elif what < 8 and (col.nullable or (col.default and verb == "insert")):
            made[f"attr{place}"] = None
    if "point" in shape.extras and draw(st.booleans()):
        made["point"] = draw(st.sampled_from([Point(1, 2), Point(None, 3), None]))
    if "synonym" in shape.extras and draw(st.booleans()):
        name: str = draw(st.sampled_from(["alias", "real"]))
        made[name] = draw(st.sampled_from([4, None]))
    if draw(st.integers(0, 4)) and shape.uniques:
        made["code"] = "by label"
    if shape.trigger == "change" and draw(st.booleans()):
        made["note"] = draw(st.sampled_from(["small", "Ünï", None, ""]))
    return made


@st.composite
def _size(draw: st.DrawFn, backend: str) -> int:
    if draw(st.integers(0, 7)):
        return draw(st.integers(1, 9))
    border = draw(st.sampled_from(SIZES[backend]))
    return border + draw(st.sampled_from([-1, 0, 1]))


_BAD: dict[str, list[str]] = {
    "insert": ["null", "check", "label", "code", "wrong", "key"],
    "update": ["null", "check", "label", "code", "wrong", "again", "stale"],
    "upsert": ["null", "check", "code", "wrong", "again"],
    "delete": ["again"],
    "get": [],
}


@st.composite
def cases(draw: st.DrawFn, backend: str, verb: Verb) -> Case:
    """Make a call."""
    shape = draw(shapes(backend, verb))
    size = draw(_size(backend))
    rows = tuple(draw(st.lists(_template(shape, verb), min_size=1, max_size=3)))
    seeds = tuple(draw(st.lists(_template(shape, "insert", seed=True), min_size=1, max_size=2)))
    if verb == "insert":
        there = draw(st.sampled_from([0, 0, 0, 3]))
    elif verb == "upsert":
        there = draw(st.integers(0, size))
    else:
        there = size if draw(st.integers(0, 3)) else draw(st.integers(0, size))
    bad: list[tuple[int, str]] = []
    if _BAD[verb] and size < 1000 and draw(st.integers(0, 3)) == 0:
        count = 1 if size > 10 else draw(st.integers(1, 2))
        bad = [(draw(st.integers(0, size - 1)), draw(st.sampled_from(_BAD[verb]))) for _ in range(count)]
    chunks = [None, None, None, 1, 2, 3, 5, size - 1, size, size + 1]
    chunk = draw(st.sampled_from([c for c in chunks if c is None or (c > 0 and size / c < 100)]))
    options: dict[str, Any] = {}
    if verb in {"insert", "upsert"}:
        options["returning"] = draw(st.sampled_from(["", "columns", "class"]))
        options["render_nulls"] = draw(st.booleans())
    if verb == "upsert":
        options["status"] = draw(st.booleans())
        options["when_changed"] = size < 300 and draw(st.integers(0, 3)) == 0
        matches = ["label", "label", "key"]
        if "code" in shape.uniques:
            matches.append("code")
        options["match"] = draw(st.sampled_from(matches))
        if draw(st.integers(0, 2)) == 0:
            held = sorted({name for row in rows for name in row if name.startswith("attr")})
            options["update"] = tuple(draw(st.sets(st.sampled_from(held)))) if held else ()
    if verb != "get":
        options["on_error"] = draw(st.sampled_from(["raise", "raise", "collect"]))
    if verb in {"update", "upsert", "delete"}:
        options["on_duplicate"] = draw(st.sampled_from(["error", "first", "last"]))
    if verb in {"update", "delete"}:
        options["missing"] = draw(st.sampled_from(["error", "ignore"]))
    if verb == "update" and shape.version:
        options["versions"] = draw(st.booleans())
    if verb == "update" and (there < size or shape.trigger == "skip insert"):
        # Of a row that is not there, what is wrong with its values is another reason.
        bad = [(place, kind) for place, kind in bad if kind != "wrong"]
    if options.get("update") is not None:
        # The database looks at the whole new row before it looks whether there is one.
        bad = [(place, kind) for place, kind in bad if kind in {"again", "code"}]
    return Case(
        verb=verb,
        shape=shape,
        rows=rows,
        size=size,
        seeds=seeds,
        there=there,
        bad=tuple(bad),
        chunk=chunk,
        backwards=draw(st.booleans()),
        held=draw(st.booleans()),
        **options,
    )


def columns_of(attribute: str) -> list[str]:
    """Return the attributes of columns that an attribute of a row stands for."""
    return {"point": ["x", "y"], "alias": ["real"]}.get(attribute, [attribute])


def seed_rows(case: Case) -> list[dict[str, Any]]:
    """Return the rows that are there before."""
    if case.verb == "insert":
        # In the way of nothing, unless a bad row has it so.
        labels = range(-case.there, 0)
    else:
        labels = range(case.there)
    return [_row(case, case.seeds, label) for label in labels]


def call_rows(case: Case, keys: dict[int, tuple[Any, ...]], built: Built, versions: dict[int, Any]) -> list[Any]:
    """Return the rows of the call.

    Args:
        case: the call.
        keys: of the rows that are there, by label.
        built: the class.
        versions: of the rows that are there, by label.
    """
    names = built.keys
    made: list[dict[str, Any]] = []
    labels = range(case.size - 1, -1, -1) if case.backwards else range(case.size)
    for label in labels:
        given = KEYS[case.shape.key].given(label)
        key = dict(zip(names, keys[label], strict=True)) if label in keys else given
        row = _row(case, case.rows, label)
        if case.verb in {"delete", "get"}:
            row = dict(key)
        elif case.verb == "update":
            row.pop("label")
            row = key | row
            if case.versions:
                row[str(built.version)] = versions.get(label, 1)
        elif case.verb == "upsert" and (case.match == "key" or (given.keys() & row.keys() and label in keys)):
            row = row | key
        if case.verb == "upsert" and case.match == "code":
            row["code"] = f"Code {label}"
        made.append(row)
    for place, kind in case.bad:
        _spoil(case, made, place, kind, built)
    return made


def _row(case: Case, templates: tuple[Template, ...], label: int) -> dict[str, Any]:
    template = dict(templates[label % len(templates)])
    key = KEYS[case.shape.key]
    given = key.given(label)
    if template.pop("key", None) is None and key.made is not None:
        given.pop(key.made if key.made in given else "key")
    if template.get("code") is not None:
        template["code"] = f"Code {label}"
    return {**given, "label": label, **template}


def _spoil(case: Case, rows: list[dict[str, Any]], place: int, kind: str, built: Built) -> None:
    names = built.keys
    row, other = rows[place], rows[place - 1]
    cols = {f"attr{number}": col for number, col in enumerate(case.shape.columns)}
    if kind in {"label", "code"} and kind in other:
        row[kind] = other[kind]
    elif kind == "label" and case.verb == "update":
        row["label"] = other.get("label", 0)
    elif kind == "key" and all(name in other for name in names):
        row.update({name: other[name] for name in names})
    elif kind == "again":
        found_by = [case.match] if case.verb == "upsert" and case.match != "key" else names
        row.update({name: other[name] for name in found_by})
    elif kind == "stale" and built.version in row:
        row[str(built.version)] += 5
    elif kind == "null":
        name = next((n for n, col in cols.items() if not col.nullable), "label" if case.verb == "insert" else None)
        if name is not None:
            row[name] = None
    elif kind == "check":
        name = next((n for n, col in cols.items() if col.checked), None)
        if name is not None:
            row[name] = -5000 if cols[name].word in {"integer", "bigint"} else "x" * 20
    elif kind == "wrong" and cols:
        name = next(iter(cols))
        row[name] = WORDS[cols[name].word].wrong
