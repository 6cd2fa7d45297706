"""The parts of the pytest plugin.

=====================  =======================================================================
``isolation``          the isolation around a test, and the check for what it left open
``shared_connection``  rollback mode: all units of a test on one connection
``own_database``       template mode: a copy of the database for each test
``plain_factories``    factories of SQLAlchemy itself: redirected to the test's connection
``outside``            refuses commits on other connections than the test's
``event_loops``        event loops: connections are closed in the loop that opened them
``faults``             errors at COMMIT that a test asks for
``hooks``              captures on_commit hooks
``statements``         counts statements
=====================  =======================================================================
"""
