"""What sessionkit and its peers do in the same situation: staged, run and looked at, never written by hand.

    peers/       one file for each peer: the vocabulary of `peer.Peer`, said the way the peer's own documentation says it
    questions/   one file for each subject: what is staged, and what is looked at afterwards
    stage.py     a SQLite file, a PostgreSQL server, a proxy that loses answers; what was committed, seen from outside
    speed.py     the same work by each of them, in turns
    page.py      results -> docs/comparison.md

A cell of the tables is the outcome of a run. Where a peer has no such thing, it says so (`Missing`), with the page of its
documentation that shows it.
"""
