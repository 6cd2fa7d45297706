"""What sessionkit and its peers do in the same situation: staged, run and observed, never written by hand.

    peers/       one file per peer: `peer.Peer` in the words of the peer's own documentation
    questions/   one file per subject: what is staged, and what is observed afterwards
    stage.py     a SQLite file, a PostgreSQL server, a proxy that loses answers; what is committed, seen from outside
    speed.py     the same work by each of them, in turns
    page.py      results -> docs/comparison.md and docs/comparison-in-detail.md

Each cell of a table is the outcome of a run. If a peer has no such feature, the cell says so (`Missing`) and links to the
page of its documentation that shows it.
"""
