"""Generated packers: rows as binary COPY data, columns as binary arrays. Each shape of row gets its own function."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import types as sqltypes

from .._dialects import dumps_of
from ._forms import HELPERS, Wire
from ._nested import array_packer
from ._plan import OMIT
from ._result import Unpackable
from ._wire import element_of, is_plain_json, wire_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy.engine import Dialect

    from ._page import Cell, Page

_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_TRAILER = b"\xff\xff"
_PART = 500  # rows; while the server reads them, the next part is packed


class Field(NamedTuple):
    """How to send the values of a cell.

    Attributes:
        wire: their binary form; for an array, the form of its elements.
        array: the values are arrays.
        process: the column type's conversion of a value before packing; None if there is none.
        omits: the cell can hold OMIT, which means NULL here.
        nullable: the cell can hold None; if the table forbids NULL, the packer raises for a None.
        dumps: serializes a document to text, instead of `process`.
    """

    wire: Wire
    array: bool
    process: Callable[[Any], Any] | None
    omits: bool
    nullable: bool = True
    dumps: Callable[[Any], str] | None = None

    @property
    def sql(self) -> str:
        return self.wire.sql + "[]" * self.array

    @property
    def code(self) -> str | None:
        return None if self.array else self.wire.code


def field_of(cell: Cell, dialect: Dialect, *, omits: bool) -> Field | None:
    """Return how to send a cell; None if its binary form is not certain.

    Args:
        cell: the cell.
        dialect: the database's dialect, with only the name of its driver: the driver's own processors produce values that
            only this driver understands.
        omits: the cell can hold OMIT.
    """
    type_: Any = cell.slot.column.type
    wire = wire_of(type_, dialect)
    array = wire is None
    if wire is None:
        wire = element_of(type_, dialect)
        if wire is None:
            return None
    process = type_._cached_bind_processor(dialect)
    impl: Any = type_._unwrapped_dialect_impl(dialect)
    nullable = bool(cell.slot.column.nullable)
    if isinstance(type_, sqltypes.Boolean):
        process = None  # the packer is as strict, and four times as fast
    elif is_plain_json(impl) and not isinstance(type_, sqltypes.TypeDecorator):
        # The type's json.dumps without its wrapper, which takes as long as a small document. It raises for expressions such
        # as null().
        return Field(wire, array, None, omits, impl.none_as_null, dumps_of(dialect))
    elif isinstance(type_, sqltypes.Uuid) and type_.as_uuid:
        wire = wire._replace(value="{0}.bytes")
    elif isinstance(type_, sqltypes.Enum) and type(type_) is type_._generic_type_affinity:
        # The processor's own lookup table; values that are not in it go through SQLAlchemy.
        process = type_._valid_lookup.__getitem__
    elif array and type_ is impl and impl.item_type.dialect_impl(dialect).bind_processor(dialect) is None:
        process = None  # it would turn a list into a list
    return Field(wire, array, process, omits, nullable)


def fields_of(page: Page, dialect: Dialect) -> list[Field] | str:
    """Return how to send each cell of a page, or the name of a column whose form is not certain."""
    fields: list[Field] = []
    for place, cell in enumerate(page.cells):
        field = field_of(cell, dialect, omits=place in page.may_omit)
        if field is None:
            return cell.slot.label
        fields.append(field)
    return fields


class _Names:
    """The names that a generated function refers to."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {**HELPERS, "OMIT": OMIT, "EMPTY": b""}

    def add(self, value: Any) -> str:
        name = f"x{len(self.names)}"
        self.names[name] = value
        return name

    def processed(self, field: Field, value: str) -> str | None:
        """Return an expression for the type's conversion of a value; None if the type converts nothing."""
        if field.process is None and field.dumps is None and not field.omits:
            return None
        inner = value if field.process is None else f"{self.add(field.process)}({value})"
        if field.dumps is not None:
            # The constant is an integer, which json.dumps would write as a number.
            inner = f"('null' if {value} is {self.add(sqltypes.JSON.NULL)} else {self.add(field.dumps)}({value}))"
            if field.nullable:
                inner = f"(None if {value} is None else {inner})"
        return f"(None if {value} is OMIT else {inner})" if field.omits else inner

    def value(self, field: Field, value: str) -> str:
        """Return an expression for the value to pack, or for its bytes. The value is not None."""
        pack = array_packer(field.wire) if field.array else field.wire.pack
        template = field.wire.value if pack is None else f"{self.add(pack)}({{0}})"
        return template.format(value)

    def octets(self, field: Field, value: str) -> str:
        """Return an expression for the bytes of a value, preceded by their length. The value is not None."""
        made = self.value(field, value)
        if field.code is None:
            return f"L(len(b := {made})) + b"
        struct = Struct(">i" + field.code)
        return f"{self.add(struct.pack)}({struct.size - 4}, {made})"


def row_packer(fields: Sequence[Field]) -> tuple[list[int], Callable[[list[tuple[Any, ...]]], bytes]]:
    """Return the order in which COPY must name the cells, and the function that packs rows into its data."""
    names = _Names()
    fixed = [place for place, field in enumerate(fields) if field.code is not None]
    variable = [place for place, field in enumerate(fields) if field.code is None]
    lines = ["def pack(rows):", " out = []", " append = out.append"]
    lines.append(f" for ({' '.join(f'c{place},' for place in range(len(fields)))}) in rows:")
    for place, field in enumerate(fields):
        processed = names.processed(field, f"c{place}")
        if processed is not None:
            lines.append(f"  c{place} = {processed}")
    codes = "".join(f"i{fields[place].code}" for place in fixed)
    together = "".join(
        f", {Struct(f'>{fields[place].code}').size}, {names.value(fields[place], f'c{place}')}" for place in fixed
    )
    first = ""
    if variable:
        # The length of the first variable field is packed with the fields before it, which saves one call per row.
        cell = f"c{variable[0]}"
        lines += [f"  if {cell} is None: first = EMPTY; length = -1"]
        lines += [f"  else: first = {names.value(fields[variable[0]], cell)}; length = len(first)"]
        codes, together, first = f"{codes}i", f"{together}, length", " + first"
    tail = "".join(
        f" + (NULL if c{place} is None else {names.octets(fields[place], f'c{place}')})" for place in variable[1:]
    )
    head = names.add(Struct(f">h{codes}").pack)
    whole = f"append({head}({len(fields)}{together}){first}{tail})"
    nullable = [place for place in fixed if fields[place].nullable or fields[place].process is not None]
    if nullable:
        # A NULL has no bytes, so such a row is assembled field by field.
        apart = "".join(
            f" + (NULL if c{place} is None else {names.octets(fields[place], f'c{place}')})" for place in fixed
        )
        if variable:
            apart += " + L(length) + first"
        count = names.add(Struct(">h").pack(len(fields)))
        anyone = " or ".join(f"c{place} is None" for place in nullable)
        lines += [f"  if {anyone}:", f"   append({count}{apart}{tail})", "  else:", f"   {whole}"]
    else:
        lines.append(f"  {whole}")
    lines.append(" return b''.join(out)")
    exec("\n".join(lines), names.names)  # noqa: S102 - built from code in this file only; values are passed in by name
    return [*fixed, *variable], names.names["pack"]


class CopyData:
    """The data for COPY, in parts. The first part is packed at once, the others on demand.

    It can be sent more than once.

    Raises:
        Unpackable: (while it is sent) a value cannot be packed.
    """

    def __init__(self, pack: Callable[[list[Any]], bytes], values: list[Any]) -> None:
        self._pack = pack
        self._values = values
        self._first = _HEADER + pack(values[:_PART])

    def __iter__(self) -> Iterator[bytes]:
        yield self._first
        for low in range(_PART, len(self._values), _PART):
            try:
                part = self._pack(self._values[low : low + _PART])
            except Exception as error:
                raise Unpackable from error
            yield part
        yield _TRAILER


def column_packer(field: Field) -> Callable[[Sequence[Any]], bytes]:
    """Return a function that packs the values of one cell, for all rows, into a binary array."""
    names = _Names()
    processed = names.processed(field, "v")
    source = "values" if processed is None else f"[{processed} for v in values]"
    one = names.octets(field, "v")
    body = f"lambda values: b''.join([NULL if v is None else {one} for v in {source}])"
    fields = eval(body, names.names)  # noqa: S307 - as above
    header = Struct(">iiIii")
    oid = field.wire.oid

    def pack(values: Sequence[Any]) -> bytes:
        # One dimension, from 1; "there may be NULLs".
        octets: bytes = fields(values)
        return header.pack(1, 1, oid, len(values), 1) + octets

    return pack
