"""The tests' harness is a plugin; tests/support/doors.py tells how to use it."""

import os

import pytest
from hypothesis import HealthCheck, settings

# How long a machine takes says nothing about the law that is tested.
settings.register_profile("sessionkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sessionkit")

pytest.register_assert_rewrite("tests.support")

pytest_plugins = ["tests.support.plugin"]

# Faults on servers of their own for minutes, and interleavings that are not yet the same in every run:
# `SESSIONKIT_LONG=1 python -m pytest tests/concurrency`.
collect_ignore = (
    [] if os.environ.get("SESSIONKIT_LONG") else ["concurrency/test_increments.py", "concurrency/test_anomalies.py"]
)
