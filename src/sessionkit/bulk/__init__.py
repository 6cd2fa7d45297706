"""Read and write many rows at the speed of the driver, with everything that the mapping promises."""

from __future__ import annotations

from .._bridge import over_async
from ..errors import BulkError
from ._delete import delete
from ._get import get
from ._get_or_create import get_or_create
from ._insert import insert
from ._options import WriteOptions
from ._result import BulkResult, Change, Rejected
from ._stream import async_stream, stream
from ._sync import sync
from ._update import update
from ._upsert import upsert

__all__ = [
    "BulkError",
    "BulkResult",
    "Change",
    "Rejected",
    "WriteOptions",
    "async_delete",
    "async_get",
    "async_get_or_create",
    "async_insert",
    "async_stream",
    "async_sync",
    "async_update",
    "async_upsert",
    "delete",
    "get",
    "get_or_create",
    "insert",
    "stream",
    "sync",
    "update",
    "upsert",
]

async_insert = over_async(insert)
async_update = over_async(update)
async_upsert = over_async(upsert)
async_delete = over_async(delete)
async_get = over_async(get)
async_sync = over_async(sync)
async_get_or_create = over_async(get_or_create)
