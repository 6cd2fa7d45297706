"""The pictures of the pages: `python -m tests.docs.pictures` draws them into docs/pictures."""

from __future__ import annotations

from pathlib import Path

from tests.docs.drawing import ROW, WIDTH, Picture

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "pictures"


def lost_update() -> Picture:
    picture = Picture(
        "A lost update",
        "Two transactions, the time runs down. There are 5 pieces. Ann reads 5, Bob reads 5. Ann writes 4 and commits. "
        "Bob writes 4 and commits. Two pieces are sold, and the stock says 4.",
    )
    picture.times(
        ("Ann", "=stock", "Bob"),
        [
            ("BEGIN", "5", "BEGIN"),
            ("reads 5", "", ""),
            ("", "", "reads 5"),
            ("sells one, writes 4", "", ""),
            ("COMMIT", "4", ""),
            ("", "", "sells one, writes 4"),
            ("", "!4", "COMMIT"),
        ],
    )
    picture.verdict("two were sold, the stock fell by one", "bad")
    return picture


def write_skew() -> Picture:
    picture = Picture(
        "Write skew, and how SERIALIZABLE ends it",
        "Two transactions, the time runs down. Two doctors are on call. Ann reads that there are two, Bob reads the same. Ann "
        "takes herself off call, Bob himself: no row is written twice. Ann commits. At REPEATABLE READ Bob commits "
        "too, and nobody is on call. At SERIALIZABLE Bob's COMMIT fails with 40001. Run again, he reads that one is on "
        "call, and stays.",
    )
    begun = [
        ("BEGIN", "2", "BEGIN"),
        ("reads: 2 on call", "", ""),
        ("", "", "reads: 2 on call"),
        ("takes Ann off call", "", ""),
        ("", "", "takes Bob off call"),
        ("COMMIT", "1", ""),
    ]
    picture.heading("REPEATABLE READ")
    picture.times(("Ann", "=on call", "Bob"), [*begun, ("", "!0", "COMMIT")])
    picture.verdict("nobody is on call", "bad")
    picture.height += 14
    picture.heading("SERIALIZABLE, retry=5")
    picture.times(
        ("Ann", "=on call", "Bob"),
        [
            *begun,
            ("", "", "!COMMIT: 40001"),
            ("", "", "BEGIN"),
            ("", "", "reads: 1 on call"),
            ("", "1", "+COMMIT: stays"),
        ],
    )
    picture.verdict("somebody is on call", "good")
    return picture


def snapshot() -> Picture:
    picture = Picture(
        "What a report sees, without a snapshot and with one",
        "A report reads two balances, and in between somebody moves 30 from Ann to Bob and commits. At READ COMMITTED the report "
        "sees Ann's 100 of before and Bob's 30 of after: 130, which there never was. With a snapshot it sees Bob's 0 of "
        "before: 100.",
    )
    for level, read, told, kind in (
        ("READ COMMITTED", "!Bob has 30", "100 + 30 = 130, which there never was", "bad"),
        ("preset=SNAPSHOT", "+Bob has 0", "100 + 0 = 100, all of one moment", "good"),
    ):
        picture.heading(level)
        picture.times(
            ("report", "transfer"),
            [
                ("BEGIN", ""),
                ("Ann has 100", ""),
                ("", "BEGIN"),
                ("", "Ann 100 → 70, Bob 0 → 30"),
                ("", "COMMIT"),
                (read, ""),
                ("COMMIT", ""),
            ],
        )
        picture.verdict(told, kind)
        picture.height += 8
    return picture


def sqlite_writers() -> Picture:
    picture = Picture(
        "SQLite has one writer",
        "Two scopes that write and one that reads, the time runs down. Ann's BEGIN IMMEDIATE takes the write lock. Bob's waits for it, "
        "at most as long as the busy timeout, and goes on when Ann has committed: he reads what she has written. The "
        "read-only scope waits for nobody and sees the state of its beginning.",
    )
    picture.times(
        ("Ann", "Bob", "a reader"),
        [
            ("BEGIN IMMEDIATE", "", ""),
            ("reads 5", "BEGIN IMMEDIATE", "BEGIN"),
            ("writes 4", "~waits", "reads 5"),
            ("COMMIT", "~waits", ""),
            ("", "+has the lock", ""),
            ("", "reads 4", "reads 5"),
            ("", "writes 3", "COMMIT"),
            ("", "COMMIT", ""),
        ],
    )
    picture.verdict("writers queue, so nothing is lost; readers never wait", "good")
    return picture


def propagation() -> Picture:
    picture = Picture(
        "Three ways of an inner scope",
        "Three transactions, the time runs down. Join: from BEGIN to COMMIT, the inner scope is a part of it and sends nothing. "
        "Savepoint: from BEGIN to COMMIT, and the inner scope reaches from SAVEPOINT to RELEASE. New: from BEGIN to COMMIT, and beside "
        "it on a second connection the inner scope, with a BEGIN and a COMMIT of its own.",
    )
    for x, mode, first, last, outer, inner, told in (
        (8, '"join"', "", "", (0, 128), (10, 108), ("one transaction:", "the outer decides")),
        (150, '"savepoint"', "SAVEPOINT", "RELEASE", (0, 128), (10, 108), ("a part that can", "be undone alone")),
        (292, '"new"', "BEGIN", "COMMIT", (0, 66), (70, 70), ("two connections,", "two fates")),
    ):
        picture.text(x, 18, mode, "code head")
        picture.box(x + outer[0], 30, outer[1], 212, "first")
        picture.text(x + 10, 52, "BEGIN", "code")
        picture.text(x + 10, 230, "COMMIT", "code")
        picture.box(x + inner[0], 66, inner[1], 140, "second", dashed=not first)
        picture.text(x + inner[0] + 10, 88, first, "code second")
        picture.text(x + inner[0] + 10, 134, "inner", "second head")
        picture.text(x + inner[0] + 10, 153, "scope", "second head")
        picture.text(x + inner[0] + 10, 194, last, "code second")
        for number, line in enumerate(told):
            picture.text(x, 264 + 19 * number, line, "soft")
    picture.height = 292
    return picture


def scope_emits() -> Picture:
    picture = Picture(
        "What a scope sends, line by line",
        "On the left the Python of a scope, on the right what goes to the database. The with line sends nothing. session.get_one "
        "sends BEGIN and a SELECT. Changing an attribute sends nothing. At the end of the block an UPDATE and COMMIT are "
        "sent, and the connection goes back to the pool. After it, reading the account's balance sends nothing.",
    )
    picture.text(8, 18, "your code", "head first")
    picture.text(300, 18, "the database", "head second")
    rows: list[tuple[str, int, list[str]]] = [
        ("with Session.scope() as session:", 0, []),
        ("account = session.get_one(...)", 1, ["BEGIN", "SELECT"]),
        ("account.balance -= 30", 1, []),
        ("# the block ends", 0, ["UPDATE", "COMMIT"]),
        ("print(account.balance)", 0, []),
    ]
    y = 44
    for code, depth, sent in rows:
        picture.text(8 + 22 * depth, y + 4, code, "code soft" if code.startswith("#") else "code")
        if sent:
            picture.line(f"M{34 + 22 * depth + 7 * len(code)} {y}H292", "soft", arrow=True)
        else:
            picture.text(300, y + 4, "nothing", "soft")
        for statement in sent:
            picture.box(300, y - 13, 84, 25, "second")
            picture.text(310, y + 4, statement, "code")
            y += 31
        y += 31 * (not sent) + 4
    picture.line(f"M384 {44 + 35 - 1}H414V{y - 35 - 35 - 1}H390", "soft dashed")
    picture.text(428, 130, "one transaction", "soft", "middle", upright=False)
    picture.height = y - 14
    return picture


def whole_unit() -> Picture:
    picture = Picture(
        "Why the whole unit is run again",
        "The time runs down. A SERIALIZABLE unit counts that one place is left, decides to book it, and inserts the booking. "
        "Somebody else has counted the same, books and commits first. The unit's COMMIT fails with 40001, a serialization "
        "failure. To repeat the COMMIT, or the INSERT, would be to repeat a decision that was made on one place left. So the unit "
        "is run again from its first line, in a new session and transaction: it counts 0 and decides that it is sold out.",
    )
    picture.heading("attempt 1: a session, a transaction")
    picture.times(
        ("your unit", "somebody else"),
        [
            ("BEGIN", "BEGIN"),
            ("counts: 1 place left", "counts: 1 place left"),
            ("decides to book it", "decides to book it"),
            ("inserts a booking", "inserts a booking"),
            ("", "COMMIT"),
            ("!COMMIT: 40001", ""),
        ],
    )
    picture.text(29, picture.height + 12, "ROLLBACK, and a short wait", "soft")
    picture.height += 30
    picture.heading("attempt 2: all of it new")
    picture.times(
        ("your unit", ""),
        [("BEGIN", ""), ("counts: 0 places left", ""), ("+decides: it is sold out", ""), ("COMMIT", "")],
    )
    picture.verdict("what was read is out of date: so is the decision", "good")
    return picture


def outcomes() -> Picture:
    picture = Picture(
        "The three outcomes of a COMMIT",
        "From COMMIT three arrows lead on. The server answers that it is done: committed. It answers with an error: rolled back. Or the "
        "connection is lost before the answer: unknown. From unknown an arrow leads to the commit marker, which tells which of the "
        "other two it was.",
    )
    picture.box(8, 88, 92, 36, "first")
    picture.text(54, 111, "COMMIT", "code", "middle")
    for y, place, said, name, kind in (
        (24, 68, "done", "committed", "good"),
        (88, 100, "an error", "rolled back", ""),
        (152, 162, "no answer", "unknown", "bad"),
    ):
        picture.line(f"M100 {106 + (y - 88) / 8:g}L206 {y + 18}", "soft", arrow=True)
        picture.text(143 if place != 100 else 178, place, said, "soft", "end")
        picture.box(208, y, 104, 36, kind)
        picture.text(260, y + 23, name, f"head {kind}".strip(), "middle")
    picture.box(348, 152, 84, 36, "second")
    picture.text(390, 175, "marker", "second head", "middle")
    picture.line("M312 170H346", "soft", arrow=True)
    picture.line("M410 152V42H314", "soft dashed", arrow=True)
    picture.line("M372 152V106H314", "soft dashed", arrow=True)
    picture.text(220, 214, "verify_commit=True asks the marker, and knows", "soft", "middle")
    picture.height = 226
    return picture


def sync_and_async() -> Picture:
    picture = Picture(
        "One implementation for sync and async",
        "Two thin shells stand side by side: with Session.scope, and async with Session.scope. The sync one calls what is below directly, "
        "the async one over SQLAlchemy's greenlet bridge. Below is one implementation: plain functions that decide, and the work on a "
        "Session, written once. Below that the drivers.",
    )
    for x, first, second, kind in (
        (8, "with", "psycopg, psycopg2, sqlite3", "first"),
        (226, "async with", "asyncpg, psycopg, aiosqlite", "second"),
    ):
        picture.box(x, 8, 206, 54, kind)
        picture.text(x + 103, 31, first, "code head", "middle")
        picture.text(x + 103, 50, "Session.scope(): ...", "code", "middle")
        picture.line(f"M{x + 103} 62V104", "soft", arrow=True)
        picture.line(f"M{x + 103} 222V262", "soft", arrow=True)
        picture.box(x, 264, 206, 36)
        picture.text(x + 103, 287, second, "", "middle")
    picture.text(102, 88, "a call", "soft", "end")
    picture.text(319, 88, "a greenlet", "soft", "end")
    picture.box(8, 106, 424, 116, "good")
    picture.text(220, 130, "written once", "good head", "middle")
    for x, lines in (
        (20, ("what to do: begin, join,", "savepoint, commit, retry", "plain functions")),
        (228, ("doing it, to a Session:", "BEGIN, flush, COMMIT,", "hooks, cleaning up")),
    ):
        for number, line in enumerate(lines):
            picture.text(x, 156 + 22 * number, line, "soft" * (line == "plain functions"))
    picture.height = 308
    return picture


def honest_commit() -> Picture:
    picture = Picture(
        "A COMMIT that is a ROLLBACK, and a scope that says so",
        "Two time lines on PostgreSQL. Both begin, take 30 from Ann, and insert a row that fails; the error is caught and "
        "swallowed. The plain block sends COMMIT, PostgreSQL answers ROLLBACK, no driver raises an error, and the "
        "caller believes that Ann has paid. The scope sends ROLLBACK and raises UnexpectedRollback, which names the "
        "first error.",
    )
    picture.times(
        ("a plain block", "a scope"),
        [
            ("BEGIN", "BEGIN"),
            ("Ann pays 30", "Ann pays 30"),
            ("!INSERT fails", "!INSERT fails"),
            ("except: pass", "except: pass"),
            ("COMMIT", "ROLLBACK"),
        ],
    )
    y = picture.height
    picture.text(29, y + 12, "answer: ROLLBACK", "code bad")
    picture.text(249, y + 12, "raises", "")
    picture.text(29, y + 34, "no exception", "soft")
    picture.text(249, y + 34, "UnexpectedRollback", "code good")
    picture.height = y + 46
    picture.verdict("both have lost the 30: one of them says so", "good")
    return picture


def versions() -> Picture:
    picture = Picture(
        "Two editors of one row",
        "Three time lines: Ann, the version of the row, Bob. Both read version 3. Ann writes where the version is 3; the "
        "row is at 4. Bob writes where the version is 3: no row matches, and he gets a VersionConflict. He reads version 4, decides "
        "anew and writes where the version is 4; the row is at 5.",
    )
    picture.times(
        ("Ann", "=version", "Bob"),
        [
            ("reads 3", "3", "reads 3"),
            ("edits", "", "edits"),
            ("UPDATE where 3", "", ""),
            ("COMMIT", "4", ""),
            ("", "", "UPDATE where 3"),
            ("", "", "!no row: conflict"),
            ("", "", "ROLLBACK"),
            ("", "", "reads 4, edits again"),
            ("", "", "UPDATE where 4"),
            ("", "+5", "COMMIT"),
        ],
    )
    picture.verdict("nobody overwrites what they have not seen", "good")
    return picture


def two_phase() -> Picture:
    picture = Picture(
        "A two-phase commit",
        "Two databases, the time runs down. In both the work is done. The other database is prepared first, then the coordinator, with the "
        "commit marker in it. Then the coordinator is committed: that is the decision. Then the other database is committed. "
        "Whoever dies before the decision leaves a unit that is rolled back, whoever dies after it one that is committed.",
    )
    picture.times(
        ("coordinator", "another database"),
        [
            ("BEGIN", "BEGIN"),
            ("its part of the work", "its part of the work"),
            ("", "PREPARE"),
            ("marker", ""),
            ("PREPARE", ""),
            ("", ""),
            ("+COMMIT PREPARED", ""),
            ("", "COMMIT PREPARED"),
        ],
    )
    y = picture.height - 3 * ROW + 8
    picture.line(f"M8 {y:g}H{WIDTH - 8}", "bad dashed")
    picture.text(WIDTH - 8, y - 8, "who dies above: rolled back", "bad", "end")
    picture.text(WIDTH - 8, y + 20, "below: committed", "good", "end")
    picture.verdict("the coordinator's COMMIT PREPARED decides for all", "good")
    return picture


def readers() -> Picture:
    picture = Picture(
        "A primary, two replicas, and the rule for reading one's writes",
        "Scopes that write go to the primary, scopes that are read-only to one of two replicas, and the primary streams its log to both. "
        "Below, the log as a line from left to right, with a mark at the place of my commit. Replica 1 has replayed beyond it and "
        "serves me. Replica 2 has not, and does not.",
    )
    for y, name, kind in ((8, "writes", "first"), (78, "read_only=True", "second")):
        picture.box(8, y, 124, 36, kind)
        picture.text(70, y + 23, name, "code" if "=" in name else "", "middle")
    for x, y, name in ((176, 8, "primary"), (322, 8, "replica 2"), (322, 78, "replica 1")):
        picture.box(x, y, 110, 36)
        picture.text(x + 55, y + 23, name, "head", "middle")
    for path in ("M132 26H174", "M132 96H320"):
        picture.line(path, "soft", arrow=True)
    for path in ("M286 26H320", "M262 44L320 82"):
        picture.line(path, "soft dashed", arrow=True)
    picture.text(303, 19, "log", "soft", "middle")
    picture.text(8, 150, "the log of the primary", "soft")
    picture.line("M8 164H430", "soft", arrow=True)
    for y, width, name, kind in (
        (178, 330, "replica 1 has replayed: it serves", "good"),
        (210, 130, "replica 2", "bad"),
    ):
        picture.box(8, y, width, 26, kind)
        picture.text(18, y + 18, name, kind)
    picture.line("M240 156V240", "first thick")
    picture.text(240, 148, "my commit", "first head", "middle")
    picture.height = 246
    return picture


PICTURES = {
    "sync-and-async": sync_and_async,
    "honest-commit": honest_commit,
    "lost-update": lost_update,
    "outcomes": outcomes,
    "propagation": propagation,
    "readers": readers,
    "scope-emits": scope_emits,
    "snapshot": snapshot,
    "sqlite-writers": sqlite_writers,
    "two-phase": two_phase,
    "versions": versions,
    "whole-unit": whole_unit,
    "write-skew": write_skew,
}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
