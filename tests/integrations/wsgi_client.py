"""Calls WSGI applications as a server does, and notes what was committed when the response began."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from sessionkit.context import top
from tests.support.models import User

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.doors import Door


class Client:
    """Sends requests, each with no more in its environment than is given here.

    `started`: of each response its status, its headers, and the names that were in the database when it began.
    """

    def __init__(self, doors: Door, app: Any, began: Callable[[], object] = lambda: None) -> None:
        self.doors = doors
        self.app = app
        self.began = began
        self.started: list[tuple[str, dict[str, str], list[str]]] = []

    def names(self) -> list[str]:
        with self.doors.database.observer.connect() as connection:
            return list(connection.execute(select(User.name).order_by(User.name)).scalars())

    def __call__(self, method: str = "GET", body: bytes = b"", path: str = "/", **headers: Any) -> tuple[str, bytes]:
        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": BytesIO(body),
            **headers,
        }
        sent: list[bytes] = []

        def start_response(
            status: str, headers: list[tuple[str, str]], exc_info: Any = None
        ) -> Callable[[bytes], None]:
            self.started.append((status, dict(headers), self.names()))
            self.began()
            return sent.append

        parts = self.app(environ, start_response)
        try:
            sent.extend(parts)
        finally:
            getattr(parts, "close", lambda: None)()
        assert top() is None
        return self.started[-1][0], b"".join(sent)
