"""Several engines in one unit of work: prepared transactions that two-phase commits left behind, and commit tokens.

A scope over several databases with ``sessionmaker(twophase=True, binds=...)`` prepares the transaction on each of them
and then commits them all. If this process, a server or the network dies in between, prepared transactions stay behind
and hold their locks. `recover_prepared` ends them: run it from time to time, and when the application starts.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import greenlet_spawn

from ._core.features.marker import claim
from ._core.features.twophase import (
    CLAIM_TIMEOUT,
    Gid,
    end_coordinator,
    end_prepared,
    identity_of,
    refuse_unable,
    two_phase_of,
)
from ._factory_info import FactoryInfo
from .context import factory_key
from .errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from ._core.features.readers import Readers
    from ._markers import Verdict

__all__ = [
    "PreparedTransaction",
    "async_recover_prepared",
    "commit_token",
    "recover_prepared",
    "use_commit_token",
]

logger = logging.getLogger("sessionkit")


@dataclass(frozen=True, slots=True)
class PreparedTransaction:
    """A transaction that a scope has prepared, and that had not ended yet when `recover_prepared` looked.

    Attributes:
        gid: its name on the server: ``sessionkit.<the unit's key>.<number>.<where the unit's commit marker is>``; number
            0 is the coordinator.
        age: how long it had been prepared, in seconds, by the server's clock.
        decision: how it was ended, ``"committed"`` or ``"rolled back"``. None if it was left alone: it is too young,
            ``resolve=False`` was given, its coordinator's engine was not, or another process is working on it.
    """

    gid: str
    age: float
    decision: Verdict | None


def recover_prepared(
    engine: Engine, *others: Engine, older_than: float = 60.0, resolve: bool = True
) -> list[PreparedTransaction]:
    """End the prepared transactions that two-phase commits have left behind, all those of a unit in the same way.

    The first database that a unit used is its coordinator, and how it ended there decides. A coordinator that is still
    prepared has decided nothing and is rolled back. For the other databases, the coordinator's commit marker is claimed:
    if the unit committed there, they are committed too; if not, they are rolled back, and the claim makes sure that the
    coordinator can no longer commit. So you can run this at any time, repeatedly and in many processes at once; at worst
    it rolls back the whole of a unit that is just committing. It never touches prepared transactions that sessionkit has
    not named.

    Args:
        engine: an engine of one of the databases.
        others: engines of the others; a transaction whose coordinator is on none of them is listed and left alone.
        older_than: end transactions of at least this age, in seconds; longer than a commit takes.
        resolve: False: only list them.

    Returns:
        All transactions that were found, oldest first for each engine.

    Raises:
        OptionError: an engine's database, driver or server has no two-phase commit.

    SQL: ``SELECT ... FROM pg_prepared_xacts``; ``COMMIT PREPARED`` or ``ROLLBACK PREPARED``, outside of transactions; the
    claim is the one of `commits.claim`, bounded by ``lock_timeout``. Only the user who prepared them, or a superuser, may
    end them.
    """
    return _recover((engine, *others), older_than, resolve, False)


async def async_recover_prepared(
    engine: AsyncEngine, *others: AsyncEngine, older_than: float = 60.0, resolve: bool = True
) -> list[PreparedTransaction]:
    """End the prepared transactions that two-phase commits have left behind. The async twin of `recover_prepared`."""
    engines = [each.sync_engine for each in (engine, *others)]
    found: list[PreparedTransaction] = await greenlet_spawn(_recover, engines, older_than, resolve, True)
    return found


def commit_token(factory: object) -> str | None:
    """Return a token for this context's last commit, as a string for a cookie or a header.

    A reader must have replayed that commit before it may serve the scopes of a context that takes the token up.

    Args:
        factory: a factory with ``readers=``, or a scoped session made from one.

    Returns:
        The token: the cluster, the timeline and the position in its log, in hexadecimal digits. None if this context has
        committed nothing and has taken up no token.

    Raises:
        OptionError: the factory has no readers, or ``read_your_writes=False``.

    Emits no SQL: the scope asked for the position after its commit.
    """
    return _readers_of(factory, "commit_token()").token()


def use_commit_token(factory: object, token: str) -> None:
    """Make this context's read-only scopes see everything committed up to the moment when the token was made.

    If this context must already see a later commit, that one counts. Nothing is asked here: a scope checks whether a
    reader has come far enough.

    Args:
        factory: a factory with ``readers=`` on the same cluster, or a scoped session made from one.
        token: what `commit_token` returned, here or in another process.

    Raises:
        CommitTokenError: it is not a token, or belongs to another cluster, or to a timeline that a promotion has ended. If
            the factory has not talked to its servers yet, the first scope detects a token of another cluster.
        OptionError: the factory has no readers, or ``read_your_writes=False``.

    Emits no SQL.
    """
    _readers_of(factory, "use_commit_token()").use(token)


def _readers_of(factory: object, asked: str) -> Readers:
    readers = FactoryInfo.of(factory_key(factory), asked).readers
    if readers is None or not readers.tracks:
        raise OptionError(
            f"{asked} was called with {factory!r}, which remembers nothing: it has no readers, or read_your_writes=False; "
            "give it readers=[...]"
        )
    return readers


class _Found(NamedTuple):
    gid: Gid
    age: float
    engine: Engine


def _recover(
    engines: Iterable[Engine], older_than: float, resolve: bool, asynchronous: bool
) -> list[PreparedTransaction]:
    if isinstance(older_than, bool) or not older_than >= 0:
        raise OptionError(f"older_than={older_than!r} was given; it is a number of seconds, 0 or more")
    databases: dict[str, Engine] = {}
    found: dict[tuple[str, Gid], _Found] = {}
    for engine in engines:
        two_phase = two_phase_of(engine)
        with engine.connect() as connection:
            refuse_unable(connection)
            database = identity_of(connection)
            databases.setdefault(database, engine)
            for pending in two_phase.pending(connection):
                gid = Gid.parse(pending.gid)
                if gid is not None:
                    found.setdefault((database, gid), _Found(gid, pending.age, engine))
    decided: dict[Gid, Verdict] = {}
    undecided: set[str] = set()
    if resolve:
        # The coordinators first: claiming a marker would wait for a coordinator that is still prepared.
        for each in sorted(found.values(), key=lambda each: each.gid.number):
            verdict = None
            if each.age >= older_than and each.gid.key not in undecided:
                verdict = _end(each, databases.get(each.gid.coordinator), asynchronous)
            if verdict is not None:
                decided[each.gid] = verdict
            elif each.gid.number == 0:
                undecided.add(each.gid.key)
    return [PreparedTransaction(str(each.gid), each.age, decided.get(each.gid)) for each in found.values()]


def _end(found: _Found, coordinator: Engine | None, asynchronous: bool) -> Verdict | None:
    """End one transaction by the rule; return how, or None if it must be left alone for now."""
    two_phase = two_phase_of(found.engine)
    try:
        if found.gid.number == 0:
            return end_coordinator(found.engine, found.gid, False, CLAIM_TIMEOUT, asynchronous)
        if coordinator is None:
            return None
        verdict = claim(coordinator, found.gid.key, CLAIM_TIMEOUT, asynchronous)
        end_prepared(found.engine, found.gid, verdict == "committed")
    except DBAPIError as error:
        if not two_phase.busy(error):
            raise
        logger.info("%s is left alone: another process is working on it", found.gid)
        return None
    return verdict
