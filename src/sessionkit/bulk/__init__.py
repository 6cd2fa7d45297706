"""Many rows at once, at the speed of the driver, with everything that the mapping promises."""

from __future__ import annotations

from .._bridge import over_async
from ..errors import BulkError
from ._delete import delete
from ._get import get
from ._insert import insert
from ._options import WriteOptions
from ._result import BulkResult, Rejected
from ._stream import async_stream, stream
from ._update import update
from ._upsert import upsert

__all__ = [
    "BulkError",
    "BulkResult",
    "Rejected",
    "WriteOptions",
    "async_delete",
    "async_get",
    "async_insert",
    "async_stream",
    "async_update",
    "async_upsert",
    "delete",
    "get",
    "insert",
    "stream",
    "update",
    "upsert",
]

async_insert = over_async(insert)
async_update = over_async(update)
async_upsert = over_async(upsert)
async_delete = over_async(delete)
async_get = over_async(get)
