"""Tests of code that runs at the same time: `races`.

::

    from sessionkit.testing import races

    found = races(lambda: withdraw("ann", 70), lambda: withdraw("ann", 70), factories=[Session], setup=fill)
    found.assert_serial()

In pytest it is the fixture ``races``, which knows the factories.
"""

from ._races import races
from ._result import Races
from ._schedule import Outcome, Schedule, Serial, Step

__all__ = ["Outcome", "Races", "Schedule", "Serial", "Step", "races"]
