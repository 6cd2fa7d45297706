"""How a type is sent, and the functions that `_wire` calls: they return PostgreSQL's binary form, or raise."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from socket import AF_INET, AF_INET6, inet_pton
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable


class Wire(NamedTuple):
    """How values of a type are sent.

    Attributes:
        name: the type's name in the catalogue (pg_type.typname).
        oid: its number in the catalogue, the same on every server (an array has another number than its element). 0 for a
            type of an extension, whose number differs between databases.
        sql: the type's name in SQL, without a length: the assignment to the column checks that.
        code: ``struct`` codes of a value with a fixed length; None for all others, for which `value` gives bytes.
        value: an expression over ``{0}``, which is never None: what `code` packs, or bytes.
        pack: a function that makes the bytes, instead of `value`.
        cast: a statement sends it as text, and casts it to the column's type.
        listed: whether the drivers can send many of them as an array.
    """

    name: str
    oid: int
    sql: str
    code: str | None
    value: str
    pack: Callable[[Any], bytes] | None = None
    cast: bool = False
    listed: bool = True


LENGTH = Struct(">i").pack
NULL = b"\xff\xff\xff\xff"

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_EPOCH_NAIVE = datetime(2000, 1, 1)  # noqa: DTZ001 - `timestamp` has no zone


# Numbers


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not an integer")
    return value


def _single(value: Any) -> Any:
    if 0 < abs(value) < 7.1e-46:
        raise ValueError(f"{value!r} is too small")  # struct would pack a zero, but PostgreSQL raises an error
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise TypeError(f"{value!r} is not a number")
    return value or 0.0  # a Decimal travels as NUMERIC, whose zero has no sign


_NAN = b"\x00\x00\x00\x00\xc0\x00\x00\x00"
_LARGEST_SCALE = 16_383
_TO_WHOLE_GROUPS = ("", "000", "00", "0")
_HEAD = Struct(">hhHH").pack
_OF_TWO_GROUPS = tuple(_HEAD(2, 1 - ((scale + 3) >> 2), 0, scale) for scale in range(40))
_PAIR = Struct(">HH").pack


def _numeric(value: Any) -> bytes:
    """Digits in base 10,000: their number, the weight of the first, the sign, the number of decimals, and the digits.

    The server strips the zeros at both ends.
    """
    if value.__class__ is not Decimal and value.__class__ is not int:
        raise TypeError(f"{value!r} is not an exact number")  # a float: the server rounds it its own way
    text = str(value)
    whole, _, decimals = text.partition(".")
    scale = len(decimals)
    try:
        digits = int(whole + decimals + _TO_WHOLE_GROUPS[scale & 3])
    except ValueError:
        return _numeric_of_another_form(text, value)
    if 0 <= digits < 100_000_000 and scale < 40:
        return _OF_TWO_GROUPS[scale] + _PAIR(digits // 10_000, digits % 10_000)
    if scale > _LARGEST_SCALE:
        raise ValueError(f"{value!r} has too many decimals")
    return _long_numeric(digits, scale)


def _long_numeric(digits: int, scale: int) -> bytes:
    sign = 0x4000 if digits < 0 else 0
    digits = abs(digits)
    groups: list[int] = []
    while digits:
        digits, low = divmod(digits, 10_000)
        groups.append(low)
    groups.reverse()
    weight = len(groups) - 1 - ((scale + 3) >> 2)
    return _HEAD(len(groups), weight, sign, scale) + Struct(f">{len(groups)}H").pack(*groups)


def _numeric_of_another_form(text: str, value: Any) -> bytes:
    if text == "NaN":
        return _NAN
    if "E" not in text:
        raise ValueError(f"{value!r} is not a finite number")  # infinite: not on every server
    if abs(value.as_tuple().exponent) > _LARGEST_SCALE:
        raise ValueError(f"{value!r} has too many digits")
    whole, _, decimals = f"{value:f}".partition(".")
    return _long_numeric(int(whole + decimals + _TO_WHOLE_GROUPS[len(decimals) & 3]), len(decimals))


# Times


def _days(value: Any) -> int:
    if type(value) is not date:
        raise TypeError(f"{value!r} is not a date")  # a datetime is a date, but each driver drops the time its own way
    return value.toordinal() - 730_120


_FIRST_DAY, _LAST_DAY = _days(date.min), _days(date.max)


def _days_or_infinity(value: Any) -> int:
    days = _days(value)
    return days if _FIRST_DAY < days < _LAST_DAY else -(2**31) if days < 0 else 2**31 - 1


def _microseconds(value: datetime) -> int:
    since = value - _EPOCH_NAIVE
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


_FIRST, _LAST = (_microseconds(end) for end in (datetime.min, datetime.max))  # noqa: DTZ901 - as above


def _no_time(value: Any) -> int:
    raise TypeError(f"{value!r} is not a time without a zone")


# Bytes, and text with a meaning of its own


def _octets(value: Any) -> bytes:
    if type(value) is bytes:
        return value
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"{value!r} is not bytes")
    return bytes(value)


def _uuid(value: Any) -> bytes:
    if type(value) is UUID:
        return value.bytes
    result = UUID(value)
    if value.lower() not in {str(result), result.hex}:
        raise ValueError(f"{value!r} is in a form that not every driver reads")
    return result.bytes


_SEPARATORS = {one * count for one in ":-" for count in (5, 7)}


def _mac(value: Any, length: int) -> bytes:
    octets = bytes.fromhex(value.replace(value[2], ""))
    if len(octets) != length or value[2::3] not in _SEPARATORS:
        raise ValueError(f"{value!r} is not a hardware address of {length} bytes separated by : or -")
    return octets


@cache
def _bit_form(count: int) -> tuple[bytes, int, int]:
    size = (count + 7) // 8
    return LENGTH(count), size, size * 8 - count


def _bits(value: Any, length: int | None, varying: bool) -> bytes:
    if type(value) is not str or value.strip("01"):
        raise TypeError(f"{value!r} is not a string of zeros and ones")
    count = len(value)
    # SQLAlchemy casts the parameter, which truncates or pads it; an assignment would fail instead.
    if count != length and length is not None and (count > length or not varying):
        raise ValueError(f"{value!r} does not have {length} bits")
    head, size, shift = _bit_form(count)
    return head + (int(value or "0", 2) << shift).to_bytes(size, "big")


def _hstore(value: dict[str, str | None]) -> bytes:
    if type(value) is not dict:
        raise TypeError(f"{value!r} is not a dict")
    out = [LENGTH(len(value))]
    for key, item in value.items():
        name = key.encode()
        out += (LENGTH(len(name)), name)
        if item is None:
            out.append(NULL)
        else:
            octets = item.encode()
            out += (LENGTH(len(octets)), octets)
    return b"".join(out)


# Network addresses: the family, the bits of the network, whether it is a CIDR, the number of bytes, and the bytes


_FOUR, _SIX = int(AF_INET), int(AF_INET6)
_ONE_ADDRESS = (b"\x02\x20\x00\x04", b"\x02\x20\x01\x04")


def _in_network(bits: int, packed: bytes, cidr: bool) -> bytes:
    return bytes((2 if len(packed) == 4 else 3, bits, cidr, len(packed))) + packed


def _inet(value: Any) -> bytes:
    kind = type(value)
    if kind is IPv4Address:
        return _ONE_ADDRESS[0] + value.packed  # type: ignore[no-any-return]
    if kind is IPv4Interface or kind is IPv6Interface:
        _without_scope(value)
        return _in_network(value.network.prefixlen, value.packed, False)
    return _network(value, False)


def _cidr(value: Any) -> bytes:
    return _network(value, True)  # an interface: some drivers cut off the bits right of its mask, others refuse it


def _network(value: Any, cidr: bool) -> bytes:
    kind = type(value)
    if kind is str:
        if ":" not in value and "/" not in value:
            return _ONE_ADDRESS[cidr] + inet_pton(_FOUR, value)
        address, slash, bits = value.partition("/")
        packed = inet_pton(_SIX if ":" in address else _FOUR, address)
        longest = len(packed) * 8
        # Only digits: Python reads a mask written as an address, PostgreSQL does not.
        length = int(bits) if slash and bits.isascii() and bits.isdigit() else -1 if slash else longest
        if not 0 <= length <= longest or (slash and str(length) != bits):
            raise ValueError(f"{value!r} is no address")
        return _in_network(length, packed, cidr)
    if kind is IPv4Address or kind is IPv6Address:
        _without_scope(value)
        return _in_network(value.max_prefixlen, value.packed, cidr)
    if kind is IPv4Network or kind is IPv6Network:
        _without_scope(value.network_address)
        return _in_network(value.prefixlen, value.network_address.packed, cidr)
    raise TypeError(f"{value!r} is no address")


def _without_scope(value: Any) -> None:
    if getattr(value, "scope_id", None) is not None:
        raise ValueError(f"{value!r} has a scope, which PostgreSQL does not store")


def _text_only(form: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Return a form that takes only text, for drivers that do not know the objects of a type."""

    def pack(value: Any) -> bytes:
        if type(value) is not str:
            raise TypeError(f"{value!r} is not text")
        return form(value)

    return pack


def whole_list(value: Any) -> list[Any]:
    """Return a list or a tuple as a list."""
    if not isinstance(value, list | tuple):
        raise TypeError(f"{value!r} is not a list")
    return list(cast("list[Any]", value))


HELPERS: dict[str, Any] = {
    "BOOLS": {True: 1, False: 0},
    "EPOCH": _EPOCH,
    "EPOCH_NAIVE": _EPOCH_NAIVE,
    "FIRST": _FIRST,
    "LAST": _LAST,
    "ENDS": {_FIRST: -(2**63), _LAST: 2**63 - 1},
    "NULL": NULL,
    "L": LENGTH,
    "whole": _whole,
    "single": _single,
    "number": _number,
    "numeric": _numeric,
    "days": _days,
    "days_or_infinity": _days_or_infinity,
    "no_time": _no_time,
    "date": date,
    "time": time,
    "octets": _octets,
    "uuid": _uuid,
    "mac": _mac,
    "bits": _bits,
    "hstore": _hstore,
    "inet": _inet,
    "cidr": _cidr,
    "inet_text": _text_only(_inet),
    "cidr_text": _text_only(_cidr),
}
