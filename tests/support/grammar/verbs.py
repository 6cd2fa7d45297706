"""Each verb twice: as `bulk` does it, and as the unit of work does."""

from __future__ import annotations

import gc
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import literal, null, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import flag_modified
from sqlalchemy.orm.exc import ObjectDeletedError, StaleDataError

from sessionkit import bulk
from sessionkit.errors import OptionError
from tests.support.grammar.cases import call_rows, columns_of, seed_rows
from tests.support.grammar.judging import SETTINGS, Failure, Outcome, differences, keys_by_label, stored, told
from tests.support.grammar.tables import build

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection

    from tests.support.grammar.cases import Case
    from tests.support.grammar.tables import Built

Row = dict[str, Any]

METHODS: dict[tuple[str, str], tuple[str, ...]] = {
    ("sqlite", "insert"): ("auto", "executemany", "sqlalchemy"),
    ("sqlite", "update"): ("auto", "executemany", "sqlalchemy"),
    ("sqlite", "upsert"): ("auto", "executemany", "sqlalchemy"),
    ("sqlite", "delete"): ("auto", "executemany", "sqlalchemy"),
    ("postgresql", "insert"): ("auto", "copy", "unnest", "temp", "sqlalchemy"),
    ("postgresql", "update"): ("auto", "unnest", "temp", "sqlalchemy"),
    ("postgresql", "upsert"): ("auto", "unnest", "temp", "sqlalchemy"),
    ("postgresql", "delete"): ("auto", "unnest", "temp", "sqlalchemy"),
}


class Invalid(Exception):
    """The rows that are to be there before cannot be, so that the case tells nothing."""


def faults(connection: Connection, case: Case) -> Iterator[str]:
    """Yield in what the ways of bulk differ from the unit of work, for a case, on a connection without a transaction."""
    built = build(case.shape)
    connection.execute(SETTINGS[connection.dialect.name])
    connection.commit()
    built.create(connection)
    connection.commit()
    try:
        with Session(connection) as session:
            try:
                session.add_all([built.entity(**row) for row in seed_rows(case)])
                session.commit()
            except SQLAlchemyError as error:
                raise Invalid from error
        expected = _Reference(connection, built, case).outcome()
        connection.rollback()
        for method in METHODS.get((connection.dialect.name, case.verb), ("",)):
            found = _Bulk(connection, built, case, method).outcome()
            connection.rollback()
            if found is not None:
                yield from (f"{method or case.verb}: {line}" for line in differences(expected, found))
    finally:
        connection.rollback()
        built.drop(connection)
        connection.commit()
        gc.collect(0)


class _Call:
    """A call in a transaction that is rolled back after it."""

    def __init__(self, connection: Connection, built: Built, case: Case) -> None:
        self.connection = connection
        self.built = built
        self.case = case
        with Session(connection) as session:
            self.keys = keys_by_label(session, built)
            version = built.entity.__mapper__.version_id_col
            known: Any = [] if version is None else session.execute(select(built.entity.label, version))
            versions: Any = dict(map(tuple, known))
        self.rows: list[Any] = call_rows(case, self.keys, built, versions)  # type: ignore[arg-type]
        self.labels: list[int] = [row.get("label", -1) for row in self.rows]

    def key_of(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in self.built.keys)

    def entities(self, session: Session) -> list[Any]:
        return list(session.scalars(select(self.built.entity)).unique())


class _Bulk(_Call):
    def __init__(self, connection: Connection, built: Built, case: Case, method: str) -> None:
        super().__init__(connection, built, case)
        self.method = method

    def outcome(self) -> Outcome | None:
        """Return what came of it; None if the method refuses the columns."""
        found = Outcome()
        with Session(self.connection) as session:
            held = self.entities(session) if self.case.held else []
            try:
                result = self._call(session)
            except Exception as error:  # noqa: BLE001 - it is what is looked at
                if isinstance(error, OptionError) and self.method not in {"auto", "sqlalchemy"}:
                    return None
                found.failure = Failure.of(error)
            else:
                self._note(session, result, found)
            session.execute(select(literal(1)))
            found.stored = stored(session, self.built, self.case.verb)
            found.stale = self._stale(session, held)
        return found

    def _call(self, session: Session) -> Any:
        case, entity = self.case, self.built.entity
        if case.verb == "get":
            return bulk.get(session, entity, self._keys(), chunk=case.chunk)
        options: dict[str, Any] = {"chunk": case.chunk, "method": self.method, "on_error": case.on_error}
        if case.verb in {"insert", "upsert"}:
            asked = {"": None, "columns": [getattr(entity, name) for name in self.built.attributes], "class": [entity]}
            options |= {"returning": asked[case.returning], "render_nulls": case.render_nulls}
        if case.verb == "insert":
            return bulk.insert(session, entity, self.rows, **options)
        options["on_duplicate"] = case.on_duplicate
        if case.verb == "upsert":
            options |= {"status": case.status, "when_changed": case.when_changed}
            options["match"] = self.built.keys if case.match == "key" else [case.match]
            options["update"] = None if case.update is None else list(case.update)
            return bulk.upsert(session, entity, self.rows, **options)
        options["missing"] = case.missing
        if case.verb == "update":
            return bulk.update(session, entity, self.rows, **options)
        return bulk.delete(session, entity, self._keys(), **options)

    def _keys(self) -> list[Any]:
        return [key[0] if len(key) == 1 else key for key in map(self.key_of, self.rows)]

    def _note(self, session: Session, result: Any, found: Outcome) -> None:
        labels = {key: label for label, key in keys_by_label(session, self.built).items()}
        if self.case.verb == "get":
            found.returned = [_told_of(self.built, labels, obj) for obj in result]
            return
        names = ("inserted", "updated", "unchanged", "deleted")
        found.counts = {name: getattr(result, name) for name in names}
        found.status = list(result.status)
        found.rejected = {r.position: Failure.of(r.error) for r in result.rejected}
        if self.case.returning == "class":
            found.returned = [_told_of(self.built, labels, obj) for obj in result.returned]
        else:
            found.returned = [told(self.built, labels, row) for row in result.returned]

    def _stale(self, session: Session, held: list[Any]) -> list[str]:
        """Tell which objects of the session do not say what is in the database."""
        columns = [getattr(self.built.entity, name) for name in self.built.attributes]
        now = {}
        for row in session.execute(select(*columns)):
            values = dict(zip(self.built.attributes, row, strict=True))
            now[self.key_of(values)] = values
        for obj in held:
            try:
                values = {name: getattr(obj, name) for name in self.built.attributes}
            except ObjectDeletedError:
                continue
            stale = {n: v for n, v in values.items() if repr(v) != repr(now.get(self.key_of(values), {}).get(n))}
            if stale:
                return [f"an object of the session is stale: {stale}"]
        return []


def _told_of(built: Built, labels: Any, obj: Any) -> Any:
    return None if obj is None else told(built, labels, [getattr(obj, name) for name in built.attributes])


class _Reference(_Call):
    """The unit of work: all rows in one flush; if it fails, one row after the other, to find which one."""

    def outcome(self) -> Outcome:
        expected = Outcome()
        case = self.case
        with Session(self.connection, autoflush=False) as session:
            self._begin(session.connection())
            before = stored(session, self.built, self.case.verb)
            self.session = session
            if case.verb == "get":
                labels = {key: label for label, key in self.keys.items()}
                expected.returned = [_told_of(self.built, labels, self._get(row)) for row in self.rows]
                expected.stored = before
                return expected
            self._all(self._without_duplicates(expected), expected)
            expected.stored = stored(session, self.built, self.case.verb)
            if expected.failure is not None:
                expected.stored = before
            self._finish(expected)
        return expected

    @staticmethod
    def _begin(connection: Connection) -> None:
        # SQLite's driver begins with the first change, but not with a SAVEPOINT.
        driver: Any = connection.connection.driver_connection
        if connection.dialect.name == "sqlite" and not driver.in_transaction:
            connection.exec_driver_sql("BEGIN")

    def _found_by(self, row: Row) -> Any:
        if self.case.verb == "upsert" and self.case.match != "key":
            return row[self.case.match]
        return self.key_of(row)

    def _without_duplicates(self, expected: Outcome) -> list[int]:
        """Return the places of the rows that count."""
        places = range(len(self.rows))
        self.twice: dict[int, int] = {}
        if self.case.verb == "insert":
            return list(places)
        seen: dict[Any, int] = {}
        kept: list[int] = []
        for place in places:
            found_by = self._found_by(self.rows[place])
            if found_by not in seen:
                seen[found_by] = place
                kept.append(place)
                continue
            if self.case.on_duplicate == "error":
                expected.failures[place] = Failure(("BulkError",), None, place)
            elif self.case.on_duplicate == "last" and self.case.verb != "delete":
                kept.remove(seen[found_by])
                self.twice[seen[found_by]] = place
                kept.append(place)
                seen[found_by] = place
            else:
                self.twice[place] = seen[found_by]
        return kept

    def _all(self, kept: list[int], expected: Outcome) -> None:
        self.status: dict[int, str] = {}
        if not self._together(kept):
            self.session.expunge_all()
            if len(kept) > 300:
                raise Invalid  # one after the other, so many take too long
            alone = {place: failure for place in kept if (failure := self._alone(place)) is not None}
            expected.failures |= alone
        if self.case.on_error == "collect":
            expected.rejected = expected.failures
        elif expected.failures:
            # Which of several is the first one depends on the order of the keys, in a flush too.
            expected.failure = next(iter(expected.failures.values()))

    def _together(self, places: list[int]) -> bool:
        if self.case.when_changed:
            return False
        try:
            with self.session.begin_nested():
                self._load()
                for place in places:
                    with suppress(*([_Missing] if self.case.missing == "ignore" else [])):
                        self.status[place] = self._write(self.rows[place])
                self.session.flush()
        except Exception:  # noqa: BLE001 - it comes again from one of the rows alone
            return False
        return True

    def _alone(self, place: int) -> Failure | None:
        self.session.expunge_all()
        row = self.rows[place]
        self.status.pop(place, None)
        try:
            with self.session.begin_nested():
                self._load(row)
                before = self._columns_now(row)
                status = self._write(row)
                self.session.flush()
                if status == "updated" and self.case.when_changed and before == self._columns_now(row):
                    raise _Unchanged
        except _Unchanged:
            status = "unchanged"
        except _Missing:
            return None if self.case.missing == "ignore" else Failure(("StaleDataError",), None, place)
        except StaleDataError as error:
            return Failure.of(error, None if self.case.versions else place)
        except Exception as error:  # noqa: BLE001 - it is what is looked for
            return Failure.of(error, place)
        self.status[place] = status
        return None

    def _columns_now(self, row: Row) -> Any:
        """Return what is stored in the columns that an upsert writes."""
        if not self.case.when_changed:
            return None
        mapper = self.built.entity.__mapper__
        written = {mapper.attrs[name].columns[0].name for name in self._written(row)}
        stored_ = stored(self.session, self.built, self.case.verb)
        return [[pair for pair in line[1:] if isinstance(pair, tuple) and pair[0] in written] for line in stored_]

    def _load(self, row: Row | None = None) -> None:
        """Load what is there: all of it, or what a row finds."""
        upserts = self.case.verb == "upsert" and self.case.match != "key"
        found_by = [self.case.match] if upserts else self.built.keys
        columns = [getattr(self.built.entity, name) for name in found_by]
        query = select(self.built.entity)
        if row is not None and self.case.verb != "insert":
            query = query.where(*(column == row[name] for column, name in zip(columns, found_by, strict=True)))
        objects: Any = [] if self.case.verb == "insert" else self.session.scalars(query).unique()
        told_by = {tuple(getattr(obj, name) for name in found_by): obj for obj in objects}
        self.there = {key[0]: obj for key, obj in told_by.items()} if upserts else told_by

    def _get(self, row: Row) -> Any:
        return self.session.get(self.built.entity, self.key_of(row))

    def _write(self, row: Row) -> str:
        verb = self.case.verb
        if verb == "insert":
            self._add(row)
            return "inserted"
        obj = self.there.get(self._found_by(row))
        if verb == "upsert":
            if obj is None:
                self._add(row)
                return "inserted"
            written = self._written(row)
            self._change(obj, {name: value for name, value in row.items() if _writes(name, written)})
            return "updated" if written else "unchanged"
        if obj is None:
            obj = self._get(row)  # a type may change a key that it is given
        if obj is None:
            raise _Missing
        if verb == "delete":
            self.session.delete(obj)
            return "deleted"
        changes = {name: value for name, value in row.items() if name not in self.built.keys}
        version = changes.pop(str(self.built.version), None)
        if version is not None and getattr(obj, str(self.built.version)) != version:
            raise StaleDataError("another version")
        if self.case.versions and not changes and self.case.shape.version:
            flag_modified(obj, "label")
        self._change(obj, changes)
        return "updated" if changes or self.case.versions else "unchanged"

    def _written(self, row: Row) -> list[str]:
        """Return the attributes of columns that an upsert writes where the row is there."""
        not_written = {*self.built.keys, *([self.case.match] if self.case.match != "key" else [])}
        held = [column for name in row for column in columns_of(name)]
        update = self.case.update
        return [name for name in held if (name not in not_written if update is None else name in update)]

    def _add(self, row: Row) -> None:
        values = dict(row)
        if self.case.render_nulls:
            mapper = self.built.entity.__mapper__
            for name, value in row.items():
                prop = mapper.column_attrs.get(name)
                if value is None and prop is not None and name not in self.built.keys:
                    values[name] = None if prop.columns[0].type.should_evaluate_none else null()
        self.session.add(self.built.entity(**values))

    def _change(self, obj: Any, changes: Row) -> None:
        for name, value in changes.items():
            setattr(obj, name, value)
            for column in columns_of(name):
                flag_modified(obj, column)  # bulk writes also what was there already

    def _finish(self, expected: Outcome) -> None:
        case, session = self.case, self.session
        if expected.failure is not None:
            return
        for dropped, kept in self.twice.items():
            while kept in self.twice:
                kept = self.twice[kept]
            if case.status:
                self.status.setdefault(dropped, "unchanged" if kept in self.status else "rejected")
        counted = [status for place, status in self.status.items() if place not in self.twice]
        names = ("inserted", "updated", "unchanged", "deleted")
        expected.counts = {name: counted.count(name) for name in names}
        now = len(keys_by_label(session, self.built))
        if case.verb == "insert":  # a trigger may have taken some out
            expected.counts["inserted"] = now - len(self.keys)
        elif case.verb == "delete":
            expected.counts["deleted"] = len(self.keys) - now
        if case.status:
            expected.status = [self.status.get(place, "rejected") for place in range(len(self.rows))]
        if case.returning:
            expected.returned = self._returned(session, expected)

    def _returned(self, session: Session, expected: Outcome) -> list[Any]:
        columns = [getattr(self.built.entity, name) for name in self.built.attributes]
        keys = keys_by_label(session, self.built)
        labels = {key: label for label, key in keys.items()}
        values: dict[Any, Any] = {}
        for row in session.execute(select(*columns)):
            named = dict(zip(self.built.attributes, row, strict=True))
            values[self._place_of(named)] = told(self.built, labels, row)
        return [
            None if place in expected.rejected else values.get(self._place_of(row))
            for place, row in enumerate(self.rows)
        ]

    def _place_of(self, row: Row) -> Any:
        if self.case.verb == "insert":
            return row["label"]
        # Some types change the case of a key.
        return str(self._found_by(row)).lower()


class _Unchanged(Exception):
    """What is stored in the columns of the row is what was stored there before."""


class _Missing(Exception):
    """The unit of work has no object of this key."""


def _writes(name: str, written: list[str]) -> bool:
    return any(column in written for column in columns_of(name))
