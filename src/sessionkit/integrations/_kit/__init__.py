"""What the pytest plugin is made of.

=====================  =======================================================================
``isolation``          what surrounds a test, and the look at what it has left behind
``shared_connection``  rollback mode: all units of a test on one connection
``own_database``       template mode: a copy of the database for each test
``plain_factories``    SQLAlchemy's own factories, led to the test's connection
``outside``            what would be committed past the test's connection
``event_loops``        connections are closed in the loop that has opened them
``faults``             errors at COMMIT that a test asks for
``hooks``              hooks that are looked at
``statements``         statements that are counted
=====================  =======================================================================
"""
