"""Fork inside of a scope and after one; a program, since a test run has threads, which a fork does not survive.

    python forking.py CASE URL

It prints a JSON object with what parent and children saw. The database has the tables of tests/support/models.py.
"""

from __future__ import annotations

import ctypes
import gc
import json
import multiprocessing
import os
import sys
import traceback
from typing import Any

from sqlalchemy import Column, Integer, MetaData, String, create_engine, orm, select, text

from sessionkit import current_session, errors, on_commit, on_rollback, sessionmaker

Base: Any = orm.declarative_base(metadata=MetaData())


class User(Base):  # type: ignore[misc]
    __tablename__ = "users"

    id = Column(Integer, primary_key=True)
    name = Column(String(50))
    email = Column(String(100))


fork = multiprocessing.get_context("fork")

URL = sys.argv[2] if len(sys.argv) > 2 else "sqlite://"
POSTGRESQL = URL.startswith("postgresql")
engine = create_engine(URL)
Session = sessionmaker(engine)


@Session.scope
def add(session: Any, name: str) -> None:
    session.add(User(name=name))


@Session.scope
def backend(session: Any) -> Any:
    """Name the connection: the server's process, or that of the client, which has a file of its own."""
    return session.scalar(text("SELECT pg_backend_pid()")) if POSTGRESQL else os.getpid()


def told(work: Any, *args: Any) -> dict[str, Any]:
    """Return what `work` returned or raised, as JSON."""
    try:
        return {"returned": work(*args)}
    except Exception as error:  # noqa: BLE001 - which one is what is asked
        traceback.print_exc()
        return {"raised": type(error).__name__, "refused": isinstance(error, errors.ScopeError)}


def in_child(work: Any, *args: Any) -> Any:
    """Do something in a forked child, which is the only thread there; return what it told."""
    ours, theirs = fork.Pipe()

    def run() -> None:
        theirs.send(told(work, *args))
        gc.collect()
        theirs.close()

    child = fork.Process(target=run)
    child.start()
    try:
        said = ours.recv() if ours.poll(20) else {"silent": True}
        child.join(20)
    finally:
        if child.is_alive():
            child.kill()
            child.join()
    return {**said, "exit": child.exitcode}


def names() -> list[str]:
    """Return what is committed, read by an engine that nobody has forked."""
    other = create_engine(URL)
    with orm.Session(other) as session:
        found = list(session.scalars(select(User.name).order_by(User.id)))
    other.dispose()
    return found


def decorated_inside() -> dict[str, Any]:
    """Inside of the parent's scope, the child calls a function that opens a unit of its own."""
    # (On SQLite the parent reads only, with a log: else the child would wait for its lock, as it should.)
    if not POSTGRESQL:
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    with Session.scope(read_only=not POSTGRESQL) as session:
        session.scalars(select(User.name)).all()
        if POSTGRESQL:
            session.add(User(name="parent"))
            session.flush()
        child = in_child(add, "child")
        alive = session.scalar(select(1))
        if POSTGRESQL:
            session.add(User(name="parent again"))
    return {"child": child, "alive": alive}


def session_inside() -> dict[str, Any]:
    """The child uses the session that it inherited."""
    with Session.scope() as session:
        session.add(User(name="parent"))
        session.flush()
        child = in_child(lambda: session.scalar(select(1)))
        ambient = in_child(lambda: current_session().scalar(select(1)))
        added = in_child(lambda: (session.add(User(name="child")), session.flush())[1])
        session.add(User(name="parent again"))
        alive = session.scalar(select(1))
    return {"child": child, "ambient": ambient, "added": added, "alive": alive}


def leaves(how: str) -> dict[str, Any]:
    """The child goes out of the `with` block that it inherited."""
    read, write = os.pipe()
    hooks: list[str] = []
    parent = os.getpid()
    said: dict[str, Any] = {}
    try:
        with Session.scope() as session:
            on_commit(lambda: hooks.append("commit"))
            on_rollback(lambda: hooks.append("rollback"))
            session.add(User(name="parent"))
            session.flush()
            if os.fork() == 0:
                if how == "raise":
                    raise LookupError("the child leaves")
            else:
                os.close(write)
                with os.fdopen(read) as pipe:
                    said = json.loads(pipe.read() or "{}")
                os.wait()
                alive = session.scalar(select(1))
                session.add(User(name="parent again"))
        if os.getpid() != parent:
            left = "quietly"
    except BaseException as error:
        if os.getpid() == parent:
            raise
        left = type(error).__name__
        if isinstance(error, errors.SessionKitError):
            left = "SessionKitError"
    if os.getpid() != parent:
        gc.collect()
        with os.fdopen(write, "w") as pipe:
            pipe.write(json.dumps({"left": left, "hooks": hooks}))
        os._exit(0)
    return {"child": said, "alive": alive, "hooks": hooks}


def served_after_use() -> dict[str, Any]:
    """A server that has used its factory, and forks workers then."""
    add("parent")
    before = backend()
    workers = []
    for number in range(2):

        def work(number: int = number) -> Any:
            add(f"worker {number}")
            own = backend()
            add(f"worker {number} again")
            # A worker of the worker.
            inner = in_child(lambda: (add(f"worker {number} inner"), backend())[1])
            return own, backend(), inner

        workers.append(in_child(work))
    add("parent again")
    return {"before": before, "after": backend(), "workers": workers}


def served_while_open() -> dict[str, Any]:
    """Workers that live while the parent is in the middle of a unit."""
    with Session.scope(read_only=not POSTGRESQL) as session:
        before = session.scalar(text("SELECT pg_backend_pid()")) if POSTGRESQL else os.getpid()
        workers = [in_child(backend) for _ in range(2)]
        after = session.scalar(text("SELECT pg_backend_pid()")) if POSTGRESQL else os.getpid()
    return {"before": before, "after": after, "workers": workers}


def in_child_without_hooks(work: Any) -> Any:
    """Call `work` in a child that was forked as a server written in C does it: none of Python's hooks is called."""
    read, write = os.pipe()
    child = ctypes.CDLL(None).fork()
    if child == 0:
        try:
            os.write(write, json.dumps(told(work)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        said = json.loads(answer.read())
    os.waitpid(child, 0)
    return said


def served_without_hooks() -> dict[str, Any]:
    """Workers of a server that does not call Python's hooks."""
    add("parent")
    before = backend()
    workers = [in_child_without_hooks(lambda: [backend(), backend()]) for _ in range(2)]
    return {"before": before, "after": backend(), "workers": workers}


CASES = {
    "served without hooks": served_without_hooks,
    "decorated inside": decorated_inside,
    "session inside": session_inside,
    "leaves by an error": lambda: leaves("raise"),
    "leaves quietly": lambda: leaves("end"),
    "served after use": served_after_use,
    "served while open": served_while_open,
}


def main(case: str) -> None:
    said = CASES[case]()
    engine.dispose()
    print(json.dumps({**said, "names": names()}))  # noqa: T201 - it is what it is for


if __name__ == "__main__":
    main(sys.argv[1])
