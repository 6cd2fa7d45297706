"""The tests' harness is a plugin; tests/support/doors.py tells how to use it."""

import pytest

pytest.register_assert_rewrite("tests.support")

pytest_plugins = ["tests.support.plugin"]
