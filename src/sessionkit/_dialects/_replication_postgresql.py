"""Streaming replicas of PostgreSQL: how far the primary has written, how far a replica has replayed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import text

from ._replication import Position, Replication, Standing

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

# The insert position, not the flush position: with synchronous_commit off a commit may not be flushed yet. The name of a WAL
# file begins with the timeline; after a promotion pg_control_checkpoint() would return the old one for a while.
_POSITION = text(
    "SELECT CAST(system_identifier AS text), substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8),"
    " CAST(pg_current_wal_insert_lsn() AS text) FROM pg_control_system()"
)
# A replica that has replayed everything it received lags only if it no longer receives anything.
_STANDING = text(
    "SELECT pg_is_in_recovery(), CAST(system_identifier AS text),"
    " CASE WHEN pg_is_in_recovery() THEN lpad(to_hex(coalesce((SELECT received_tli FROM pg_stat_wal_receiver),"
    " (SELECT timeline_id FROM pg_control_checkpoint()))), 8, '0')"
    " ELSE substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END,"
    " CASE WHEN pg_is_in_recovery() THEN CAST(pg_last_wal_replay_lsn() AS text)"
    " ELSE CAST(pg_current_wal_insert_lsn() AS text) END,"
    " CASE WHEN NOT pg_is_in_recovery() THEN 0 WHEN pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn()"
    " AND EXISTS (SELECT 1 FROM pg_stat_wal_receiver) THEN 0"
    " ELSE CAST(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) AS float8) END"
    " FROM pg_control_system()"
)


def _lsn(text: str | None) -> int:
    if text is None:
        return 0
    high, low = text.split("/")
    return (int(high, 16) << 32) | int(low, 16)


def _position(connection: Connection) -> Position:
    cluster, timeline, lsn = connection.execute(_POSITION).one()
    return Position(int(cluster), int(timeline, 16), _lsn(lsn))


def _standing(connection: Connection) -> Standing:
    recovering, cluster, timeline, lsn, lag = connection.execute(_STANDING).one()
    return Standing(recovering, Position(int(cluster), int(timeline, 16), _lsn(lsn)), lag)


# PostgreSQL manual 27.4.1: a hot standby does not support SERIALIZABLE.
REPLICATION = Replication(_position, _standing, frozenset({"SERIALIZABLE"}))
