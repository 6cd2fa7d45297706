"""A grammar of tables: mappings and rows of every kind, for the tests that hold bulk to the unit of work.

    words.py      kinds of columns, and the values that are written to them
    tables.py     a table as a frozen description; the mapped class and the DDL that are made of it
    cases.py      a verb, its rows and its options, as Hypothesis draws them for a table
    verbs.py      each verb twice: as `bulk` does it, and as the unit of work does
    judging.py    what came of a call, and in what two of them differ
    known.py      faults that are known and not yet mended: what the grammar leaves out for now

A description is printed as the expression that makes it. What a run has found becomes a test of its own by putting that
expression into `NAMED` of tests/contract/test_bulk_grammar.py.
"""
