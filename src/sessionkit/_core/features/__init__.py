"""What a unit does only if it was asked to: each feature is a file, and units without it never load it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..._settings import NO_SETTINGS

if TYPE_CHECKING:
    from .base import Feature as Feature
    from .readers import Readers

Unit = Any  # unit.Unit, which builds on this module


def features_of(unit: Unit) -> tuple[Feature, ...]:
    """Return the features of a unit that is about to begin."""
    found: list[Feature] = []
    try:
        _add_features(found, unit)
    except BaseException:
        for feature in found:
            feature.refused()
        raise
    return tuple(found)


def _add_features(found: list[Feature], unit: Unit) -> None:
    request, run, session = unit.request, unit.run, unit.session
    if request.settings is not NO_SETTINGS:
        from .settings import TransactionSettings

        found.append(TransactionSettings(unit))
    if request.schemas is not None:
        from .schemas import TranslatedSchemas

        found.append(TranslatedSchemas(unit))
    if (run is not None and run.deadline is not None) or any(outer.features for outer in unit.enclosing):
        from .deadline import Deadline, earliest

        ends = earliest(unit)
        if ends is not None:
            found.append(Deadline(unit, ends))
    if request.mutex is not None:
        from .mutex import Mutex

        found.append(Mutex(unit))
    # A mutex must be the same one for everybody, so it is held on the primary.
    if unit.info.readers is not None and not (request.mutex is not None and request.preset.read_only):
        from .readers import ReadsFromReaders, TracksCommits

        found.append(ReadsFromReaders(unit) if request.preset.read_only else TracksCommits(unit))
    if run is not None and run.lock and not request.preset.read_only:
        from .lock_on_retry import LocksOnRetry

        found.append(LocksOnRetry(unit))
    if request.commit_timeout is not None:
        from .deadline import CommitTimeout

        found.append(CommitTimeout(unit))
    if session.twophase or any(feature.two_phases for outer in unit.enclosing for feature in outer.features):
        from .twophase import TwoPhaseCommit, refuse_inside_two_phases

        refuse_inside_two_phases(unit)
        if session.twophase:
            found.append(TwoPhaseCommit(unit))
    if request.once is not None:
        from .once import Once

        found.append(Once(unit))
    elif request.verify_commit:
        from .marker import VerifiedByApplication, VerifiedByMarker

        found.append(VerifiedByMarker(unit) if request.verify_commit is True else VerifiedByApplication(unit))
    if request.manual_commit == "savepoint":
        from .manual_commit import ManualCommit

        found.append(ManualCommit(unit))


READERS = ("readers", "read_your_writes", "reader_wait", "max_lag", "no_reader", "allow_writable_readers")
"""The arguments of a factory that are about readers."""


def split_readers(kw: dict[str, Any], bind: Any, before: Readers | None, where: str) -> Readers | None:
    """Take the arguments about readers out of a factory's arguments, and return the readers.

    Raises:
        OptionError: one has a value that cannot be honoured, or does not fit the others.
    """
    given = {name: kw.pop(name) for name in READERS if name in kw}
    if not given:
        return before
    from .readers import readers_of

    return readers_of(given, bind, before, where)
