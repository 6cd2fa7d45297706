"""The transaction of a unit, from BEGIN to close. Read the files in this order.

===============  =====================================================================================
``unit``         the record of one unit: who runs it, in which state it is, how it begins and ends
``session``      what a session does and refuses while a unit has it; its transactions
``connection``   the connection of a unit: it begins as asked, notes what failed, refuses a COMMIT by hand
``commit``       one verdict, then COMMIT, then how it ended
``joined``       inner scopes: join, savepoint, read-only
``savepoints``   which savepoints of a session were rolled back
``hooks``        what waits for the outcome of a unit: on_commit and on_rollback
``seams``        where the test kit takes the place of a database
``features/``    what only those units have that asked for it: deadlines, readers, markers, two phases, ...
===============  =====================================================================================
"""
