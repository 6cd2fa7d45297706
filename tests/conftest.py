"""The tests' harness is a plugin; tests/support/doors.py tells how to use it."""

import pytest
from hypothesis import HealthCheck, settings

# How long a machine takes says nothing about the law that is tested.
settings.register_profile("sessionkit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("sessionkit")

pytest.register_assert_rewrite("tests.support")

pytest_plugins = ["tests.support.plugin", "tests.support.browser_fixture"]
