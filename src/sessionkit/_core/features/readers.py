"""Readers: which replica a read-only scope runs on, and whether that replica has seen the earlier writes.

After a commit on the primary, the context remembers the position in its log. A reader serves a scope of that context only
after it has replayed that far: the scope asks it for a while, and then turns to the primary.
"""

from __future__ import annotations

import logging
import re
import time
from contextvars import ContextVar
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from ... import _dialects
from ..._dialects import Position, Replication
from ..._waiting import sleep
from ...context import State
from ...errors import CommitTokenError, NoReader, OptionError
from .. import seams
from ..savepoints import connections
from .base import Feature

if TYPE_CHECKING:
    from ..._dialects import Standing

logger = logging.getLogger("sessionkit")

FRESH = 1.0
"""How long an answer of a reader stays valid, in seconds."""
PENALTY = 1.0
"""How long to leave a reader alone that is down or lags too far, in seconds."""

NEVER = Position(0, 0, 2**64 - 1)
"""Later than everything: the position of the writes is not known, so no reader is known to have them."""

NoReaderPolicy = Literal["primary", "error"]


class Settings(NamedTuple):
    """The arguments of a factory about readers."""

    readers: tuple[Any, ...] = ()
    read_your_writes: bool = True
    reader_wait: float = 0.5
    max_lag: float | None = None
    allow_writable_readers: bool = False
    no_reader: NoReaderPolicy = "primary"


class _Reader:
    """One reader, and what is known about it."""

    __slots__ = ("engine", "looked", "seen_recovering", "skip_until", "standing")

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.standing: Standing | None = None
        self.looked = float("-inf")
        self.skip_until = float("-inf")
        self.seen_recovering = False

    def _skip(self) -> None:
        self.skip_until = time.monotonic() + PENALTY
        self.looked = float("-inf")

    def fail(self, why: str) -> None:
        """Leave it alone for a while."""
        self._skip()
        logger.warning("the reader %r is left alone for %s s: %s", self.engine.url, PENALTY, why)

    def has(self, needed: Position | None, known: Position | None) -> bool:
        """Return whether it has replayed as far as `needed`, by its last answer.

        Args:
            needed: the position that must be visible.
            known: the last known position of the primary.
        """
        if needed is None:
            return True
        assert self.standing is not None
        position = self.standing.position
        if position.cluster != needed.cluster and self.standing.recovering:
            raise CommitTokenError(
                f"a commit of the cluster {needed.cluster} had to be visible on the reader {self.engine.url!r}, but that "
                f"belongs to the cluster {position.cluster}: either the token is from another application, or the engine "
                "is not a replica of the primary"
            )
        # After a promotion, a replica of the old primary may be further along, but on another timeline. One that follows the
        # new primary has what came before the promotion, as far as the new primary has it.
        timelines = {needed.timeline} if known is None else {needed.timeline, max(needed.timeline, known.timeline)}
        return position.lsn >= needed.lsn and position.timeline in timelines and position.cluster == needed.cluster

    def look(self, settings: Settings) -> bool:
        """Ask it for its state; return whether it can be used at all."""
        try:
            standing = self._ask()
        except OptionError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the driver or the pool raised, the primary can serve
            self.fail(f"{type(error).__name__}: {error}")
            return False
        if standing.recovering:
            self.seen_recovering = True
        elif not settings.allow_writable_readers:
            why = "it is not in recovery, so it is not a replica, and would take writes"
            if not self.seen_recovering:
                raise OptionError(
                    f"{self.engine.url!r} was given as a reader, but {why}; pass a replica, or "
                    "allow_writable_readers=True"
                )
            self.fail(why)  # it was promoted
            return False
        if settings.max_lag is not None and (standing.lag is None or standing.lag > settings.max_lag):
            self.fail(f"it lags by {standing.lag} s, and max_lag is {settings.max_lag} s")
            return False
        self.standing = standing
        self.looked = time.monotonic()
        self.skip_until = float("-inf")
        return True

    def _ask(self) -> Standing:
        replication = replication_of(self.engine)
        for last in (False, True):
            with self.engine.connect() as connection:
                try:
                    return replication.standing(connection.execution_options(isolation_level="AUTOCOMMIT"))
                except Exception:
                    # A pooled connection that the reader's restart has cut: SQLAlchemy has now dropped all of them.
                    if last or not connection.invalidated:
                        raise
        raise AssertionError("the second time returns or raises")  # pragma: no cover


class Readers:
    """The readers of one factory, and the position that each of its contexts must see."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.position: ContextVar[Position | None] = ContextVar("sessionkit_position", default=None)
        self.known: Position | None = None  # the last position that the primary reported
        self._readers = [_Reader(getattr(engine, "sync_engine", engine)) for engine in settings.readers]
        self._turn = count()

    @property
    def tracks(self) -> bool:
        """Whether the positions of commits are needed."""
        return self.settings.read_your_writes

    def gone(self, engine: Engine) -> None:
        """Leave a reader alone for a while, because its connection was lost."""
        for reader in self._readers:
            if reader.engine is engine:
                reader.fail("its connection was lost")

    def choose(self, asynchronous: bool) -> Engine | None:
        """Return the engine of a reader that has replayed what this context must see, or None for the primary.

        Raises:
            NoReader: no reader can serve, and ``no_reader="error"``.
        """
        needed = self.position.get() if self.settings.read_your_writes else None
        found = None if needed is not None and needed == NEVER else self._choose(needed, asynchronous)
        if found is None and self.settings.no_reader == "error":
            raise NoReader(
                f"none of {len(self._readers)} readers could serve a read-only scope within "
                f"{self.settings.reader_wait} s: they are down, lag too far, or have not replayed the last commit of "
                "this context yet; with no_reader='primary' the primary serves it"
            )
        return None if found is None else found.engine

    def _choose(self, needed: Position | None, asynchronous: bool) -> _Reader | None:
        now = time.monotonic()
        first = next(self._turn) % len(self._readers)
        reader = self._readers[first]
        if now - reader.looked < FRESH and reader.has(needed, self.known):
            return reader  # without asking
        candidates = [r for r in self._readers[first:] + self._readers[:first] if r.skip_until <= now]
        ends, delay = now + self.settings.reader_wait, 0.002
        while candidates:
            for reader in list(candidates):
                if now - reader.looked < FRESH and reader.has(needed, self.known):
                    return reader
                if not reader.look(self.settings):
                    candidates.remove(reader)
                elif reader.has(needed, self.known):
                    return reader
            left = ends - time.monotonic()
            if left <= 0 or not candidates:
                break
            sleep(min(delay, left), asynchronous)
            delay = min(delay * 2, 0.05)
        return None

    def after_commit(self, primary: Engine) -> Position:
        """Ask the primary for a position after the commit; without an answer, no reader will do."""
        try:
            with primary.connect() as connection:
                autocommit = connection.execution_options(isolation_level="AUTOCOMMIT")
                self.known = replication_of(primary).position(autocommit)
        except Exception:
            logger.warning("the position of a commit is not known, so no reader will be used after it", exc_info=True)
            return NEVER
        return self.known

    def token(self) -> str | None:
        """Return the position that this context must see, as a string."""
        position = self.position.get()
        return None if position is None else "-".join(f"{part:x}" for part in position)

    def use(self, token: object) -> None:
        """Make this context see what `token` means.

        Raises:
            CommitTokenError: it is not a token, or belongs to another cluster or an older timeline.
        """
        match = _TOKEN.fullmatch(token) if isinstance(token, str) else None
        if match is None:
            raise CommitTokenError(f"{token!r} is not a commit token; pass a string that commit_token() returned")
        given = Position(*(int(part, 16) for part in match.groups()))
        known, own = self.known, self.position.get()
        if known is not None and given != NEVER:
            if given.cluster != known.cluster:
                raise CommitTokenError(
                    f"the commit token {token!r} belongs to the cluster {given.cluster}, but the primary belongs to the "
                    f"cluster {known.cluster}; use it where it was made"
                )
            if given.timeline < known.timeline:
                raise CommitTokenError(
                    f"the commit token {token!r} belongs to timeline {given.timeline}, but the primary has reached "
                    f"timeline {known.timeline} by a promotion; the commit may be lost, so drop the token"
                )
        if own is None or given == NEVER or (own != NEVER and given[1:] > own[1:]):
            self.position.set(given)


_TOKEN = re.compile(r"([0-9a-f]{1,16})-([0-9a-f]{1,8})-([0-9a-f]{1,16})", re.ASCII)


def replication_of(engine: Engine) -> Replication:
    """Return how an engine's servers report their positions.

    Raises:
        OptionError: they do not.
    """
    found = _dialects.of(engine).replication
    if found is None:
        raise OptionError(
            f"readers= was given with {engine.url!r}, but sessionkit knows no replicas of {engine.dialect.name}, only "
            "of PostgreSQL; leave readers= out"
        )
    return found


def readers_of(given: dict[str, Any], bind: Any, before: Readers | None, where: str) -> Readers | None:
    """Return the readers that a factory's arguments ask for.

    Raises:
        OptionError: one has a value that cannot be honoured, or does not fit the others.
    """
    if before is None and "readers" not in given:
        raise OptionError(f"{next(iter(given))}= was given to {where} without readers=; pass readers=[...] with it")
    settings = (before.settings if before is not None else Settings())._replace(**given)
    settings = settings._replace(readers=tuple(settings.readers or ()))
    if not settings.readers:
        return None
    if bind is None:
        raise OptionError(f"readers= was given to {where} without a primary; pass the primary first, as bind")
    for engine in (bind, *settings.readers):
        if type(engine) is not type(bind) or not isinstance(getattr(engine, "sync_engine", engine), Engine):
            raise OptionError(
                f"{engine!r} was given to {where} among a primary and its readers; "
                "pass engines that are all sync or all async"
            )
        replication_of(getattr(engine, "sync_engine", engine))
    for name in ("read_your_writes", "allow_writable_readers"):
        if not isinstance(getattr(settings, name), bool):
            raise OptionError(f"{name}={getattr(settings, name)!r} was given to {where}; it is True or False")
    for name, least in (("reader_wait", "0 or more"), ("max_lag", "0 or more, or None")):
        seconds: Any = getattr(settings, name)
        if seconds is None and name == "max_lag":
            continue
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
            raise OptionError(f"{name}={seconds!r} was given to {where}; it is a number of seconds, {least}")
    if settings.no_reader not in get_args(NoReaderPolicy):
        raise OptionError(f"no_reader={settings.no_reader!r} was given to {where}; it is 'primary' or 'error'")
    return Readers(settings)


# -- the features of a unit -----------------------------------------------------------------------------------------


class TracksCommits(Feature):
    """Remembers the position of the unit's commit in the primary's log."""

    position: Position | None = None

    def ended(self) -> None:
        # Asked after the connection is back in the pool. While the position is not known, no reader will do.
        unit = self.unit
        readers = unit.info.readers
        if readers is None or unit.state not in (State.COMMITTED, State.UNKNOWN) or not readers.tracks:
            return
        primary = unit.session.bind
        if isinstance(primary, Engine) and any(c.engine is primary for c in connections(unit.transaction)):
            self.position = NEVER  # in case the next line is interrupted
            if unit.state is State.COMMITTED:
                self.position = readers.after_commit(primary)

    def publish(self) -> None:
        readers = self.unit.info.readers
        if self.position is not None and readers is not None:
            readers.position.set(self.position)


class ReadsFromReaders(Feature):
    """Makes a read-only unit use one reader instead of the primary, chosen at its first statement."""

    def __init__(self, unit: Any) -> None:
        super().__init__(unit)
        self._primary: Any = unit.session.bind
        self._reader: Any = None
        self._two_phases = unit.session.twophase

    def route(self, bind: Any) -> Any:
        unit = self.unit
        readers = unit.info.readers
        if bind is not self._primary or readers is None or self._two_phases or seams.override_of(bind) is not None:
            return bind
        if self._reader is None:
            asked = unit.preset.isolation
            refused = asked is not None and asked in replication_of(bind.engine).refused
            self._reader = bind if refused else readers.choose(unit.asynchronous) or bind.engine
            # From here on the session itself is bound to the reader, so that each savepoint finds its connection.
            unit.session.bind = self._reader
        return self._reader

    def connect_failed(self, bind: Any, error: Exception) -> bool:
        if bind is not self._reader or bind is self._primary or not isinstance(error, DBAPIError | OSError):
            return False
        self._give_up()  # the next reader that can serve does, or the primary
        return True

    def _give_up(self) -> None:
        self.unit.info.readers.gone(self._reader)
        self.unit.session.bind = self._primary
        self._reader = None

    def ending(self) -> None:
        lost = (each for each in connections(self.unit.transaction) if each.engine is self._reader and each.invalidated)
        if self._reader is not self._primary and any(True for _ in lost) and self.unit.info.readers is not None:
            self._give_up()
