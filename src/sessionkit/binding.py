"""Several engines in one unit of work: what is left of two-phase commits, and who ends it.

A scope over several databases with ``sessionmaker(twophase=True, binds=...)`` prepares the transaction of each of them
and then commits all. Whoever dies in between (this process, a server, the network) leaves prepared transactions behind,
which hold their locks until somebody ends them: `recover_prepared`, run from time to time, and at the start of the
application.
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
    """A transaction that a scope has prepared, and that was not ended yet when it was looked for.

    Attributes:
        gid: its name on the server: ``sessionkit.<the unit's key>.<number>.<where the unit's commit marker is>``; the
            number 0 is the coordinator's.
        age: for how long it had been prepared, in seconds, by the server's clock.
        decision: how it was ended, ``"committed"`` or ``"rolled back"``; None if it was left alone: it is too young,
            ``resolve=False`` was given, its coordinator's engine was not, or somebody is at work on it.
    """

    gid: str
    age: float
    decision: Verdict | None


def recover_prepared(
    engine: Engine, *others: Engine, older_than: float = 60.0, resolve: bool = True
) -> list[PreparedTransaction]:
    """End the prepared transactions that two-phase commits have left behind, each unit's all in the same way.

    The first database that a unit has used is its coordinator, and what became of it there decides. A coordinator that
    is still prepared has decided nothing and is rolled back. Of the others the coordinator's commit marker is claimed:
    if the unit has committed there they are committed, else they are rolled back, and the claim makes sure that the
    coordinator cannot commit any more. So it is safe at any time, by many processes at once, and again and again; a
    unit that is in the middle of its commit is at worst rolled back as a whole. Prepared transactions that were not
    named by sessionkit are never touched.

    Args:
        engine: an engine of one of the databases.
        others: engines of the others; a transaction whose coordinator is on none of them is listed and left alone.
        older_than: the age in seconds from which a transaction is ended; longer than a commit takes.
        resolve: False: only list.

    Returns:
        All that were found, oldest first for each engine.

    Raises:
        OptionError: an engine's database, driver or server has no two-phase commit.

    SQL: ``SELECT ... FROM pg_prepared_xacts``; ``COMMIT PREPARED`` or ``ROLLBACK PREPARED``, outside of transactions;
    the claim is that of `commits.claim`, bounded by ``lock_timeout``. Who prepared them, or a superuser, may end them.
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
    """Return what has to be seen by who reads after this context's last commit, as a string for a cookie or a header.

    Args:
        factory: a factory with ``readers=``, or a scoped session made from one.

    Returns:
        The token: the cluster, the timeline and the place in its log, in hexadecimal digits; None if this context has
        committed nothing and has taken up no token.

    Raises:
        OptionError: the factory has no readers, or ``read_your_writes=False``.

    Emits no SQL: the place was asked for after the commit.
    """
    return _readers_of(factory, "commit_token()").token()


def use_commit_token(factory: object, token: str) -> None:
    """Have this context's read-only scopes see what was committed where the token was made.

    The later one of `token` and of what this context has to see already counts. Nothing is asked here: the scope looks
    whether a reader has come as far.

    Args:
        factory: a factory with ``readers=`` on the same cluster, or a scoped session made from one.
        token: what `commit_token` returned, here or in another process.

    Raises:
        CommitTokenError: it is no token, or is of another cluster, or of a timeline that a promotion has ended. (Where
            the factory has not talked to its servers yet, a reader of another cluster is told by the first scope.)
        OptionError: the factory has no readers, or ``read_your_writes=False``.

    Emits no SQL.
    """
    _readers_of(factory, "use_commit_token()").use(token)


def _readers_of(factory: object, asked: str) -> Readers:
    readers = FactoryInfo.of(factory_key(factory), asked).readers
    if readers is None or not readers.tracks:
        raise OptionError(
            f"{asked} was called with {factory!r}, which has no readers or has read_your_writes=False, so that nothing "
            "is remembered; give it readers=[...]"
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
        # The coordinators first: the claim of a marker would wait for one that is still prepared.
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
    """End one transaction by the rule; return how, or None if it has to be left alone for now."""
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
        logger.info("%s is left alone: somebody is at work on it", found.gid)
        return None
    return verdict
