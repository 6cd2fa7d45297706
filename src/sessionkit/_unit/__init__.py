"""The transaction of one opened scope, and what happens inside it. The rooms around it open it and end it.

===============  =====================================================================================
``unit``         the transaction: what it talks to, who is inside, how it ends
``session``      what a session refuses while a scope has it
``savepoints``   which savepoints a session is in, and what was undone with them
``watch``        what failed on a connection, and who may send COMMIT
``verdict``      may it be committed?
``commit``       COMMIT, and what became of it where no answer came
``claims``       asking the database for a commit marker
``twophase``     several databases that commit as one
``routes``       from the user's engine to the one whose transactions begin as they should
``readers``      the replica that a read-only unit reads from
``restriction``  a read-only scope inside one that writes
``locking``      SELECTs that lock, from the second attempt on
``watchdog``     deadlines
``standins``     what takes an engine's place while a test runs
===============  =====================================================================================
"""
