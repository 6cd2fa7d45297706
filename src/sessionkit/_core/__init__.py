"""The transaction of a unit, from BEGIN to close. Read the files in this order.

===============  =====================================================================================
``unit``         the record of one unit: its owner, its state, how it begins and ends
``session``      what a session does and refuses while it belongs to a unit; its transactions
``connection``   the connection of a unit: it begins as asked, notes failures, and refuses a COMMIT by hand
``commit``       one last check, then COMMIT, then how it ended
``joined``       inner scopes: join, savepoint, read-only
``savepoints``   which savepoints of a session were rolled back
``hooks``        work that waits for the outcome of a unit: on_commit and on_rollback
``seams``        where the test kit replaces the database
``features/``    what only some units need, because they asked for it: deadlines, readers, markers, two phases, ...
===============  =====================================================================================
"""
