"""Names that have changed keep working for one release, and say what they are called now."""

from __future__ import annotations

import pytest

from sessionkit import errors


def test_the_old_name_of_sync_async_mismatch_warns_and_is_the_same_class():
    with pytest.warns(DeprecationWarning, match="SyncAsyncMismatch"):
        old = errors.ColourError
    assert old is errors.SyncAsyncMismatch


def test_a_name_that_errors_never_had_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'NoSuchError'"):
        errors.NoSuchError  # noqa: B018
