"""What the check of plain words reads, and what it complains of.

``python -m tests.docs.prose [PATH ...]`` prints the complaints for pages and modules, one a line; without a path, for all of them.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.docs.pages import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST = 40
"""Words in a sentence. A reader loses the subject of a longer one; the tutorial's longest has 33."""

PHRASES = {
    # Each of these is grammatical, and each is what a translation says where an engineer says something shorter.
    r"(?<!there )\b(?:is|are) none\b": "say 'is not a ...', or 'there is no ...'",
    r"\bnobody\b": "name who does not, or use the passive",
    r"\bwhoever\b|(?:(?m:^)|[.:;,]\s)\s*[Ww]ho (?!else\b|waits for whom)\w+(?![^.]*\?)": "name the subject: 'a caller that ...', 'code that ...'",
    r"\b(?:is|are|was|were|be|been) told\b": "say 'gets an error', 'is reported', 'learns that'",
    r"\b(?:is|are|was|were) to be\b": "say 'must be', or use the imperative",
    r"\bin the place of\b|\bin its place\b|\bin their place\b": "say 'instead of', 'instead', 'in place'",
    r"\bby itself\b|\bby themselves\b": "say 'automatically', 'on its own', 'alone'",
    r"\banew\b": "say 'again', 'from scratch'",
    r"\bshall\b": "say 'must', 'should' or 'will'",
    r"\b[Ww]hat(?:ever)? (?:became|becomes) of\b": "say 'how it ended', 'its outcome'",
    r"\b(?:is|are|as) dear\b": "say 'expensive'",
    r"\bis no (?:error|thing|place|way|business)\b": "say 'is not an error', ...",
    r"\bmany a\b": "say 'many'",
    r"\bcolou?rs?\b(?![ -](?:scheme|theme))": "say 'sync or async'; colours of a screen are allowed by name below",
    r"\bhas nothing to\b.{0,30}\bwith\b": "say 'is unrelated to'",
    r"\bof (?:ours|theirs|yours|his|hers|the user's|a user's|users')\b": "say 'our ...', 'the user's ...', 'your ...'",
    r"\bwhat it is given\b|\bthat (?:it is|they are|is) given\b": "name what is given: 'the session passed in'",
    r"\b(?:besides|likewise|thereby|therein|thereof|whereby|hitherto|henceforth)\b": "say 'also', 'too', 'by this'",
    r"\bnot (?:a|one) single\b": "say 'no'",
    r"\bsuch (?:a|an) one\b": "say 'one of these', or name it",
    r"\bgoes by\b": "say 'depends on', 'uses'",
    r"\bhas it that\b|\bas \w+ has it\b": "say 'as ... does'",
    r"\bstands? (?:in|on|at|for) (?:the|a|its|their)\b": "say 'is in', 'is at', 'means'",
    r"\bstands? (?:beside|behind|before)\b": "say 'is next to', 'follows', 'precedes', 'supports'",
    r"\bbe had\b": "say 'be reached', 'be available', 'be possible'",
    r"\bmend(?:s|ed|ing)?\b": "say 'fix'",
    r"\bnot told\b": "say 'not reported', 'gets no error', 'unknown'",
    r"\bas ever\b": "say 'as usual', 'as before'",
    r"\bthe less the better\b": "say 'less is better'",
    r"\bin spite of\b": "say 'despite'",
}

ALLOWED = {
    r"\bcolou?rs?\b": (
        "_console.py",
        "_report.py",
        "command-line.md",
        "testing.md",
        "drawing.py",
    ),  # of a terminal or a drawing
}


class Complaint(NamedTuple):
    path: Path
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.what}"


class Passage(NamedTuple):
    """Running text: a paragraph, a list item, a docstring, a comment or a message."""

    line: int
    text: str
    words: int | None = LONGEST


def sources() -> list[Path]:
    """Return what users read: pages, modules and news fragments."""
    pages = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("*.md"), *ROOT.glob("changelog.d/*.md")]
    return sorted([*pages, *ROOT.glob("src/**/*.py")])


def complaints(path: Path) -> Iterator[Complaint]:
    """Yield what is wrong with the words of a page or a module."""
    source = path.read_text(encoding="utf-8")
    passages = of_module(source) if path.suffix == ".py" else of_page(source)
    for passage in passages:
        for phrase, better in PHRASES.items():
            if any(path.name in names for allowed, names in ALLOWED.items() if phrase.startswith(allowed)):
                continue
            for found in re.finditer(phrase, passage.text):
                line = passage.line + passage.text.count("\n", 0, found.start())
                yield Complaint(path, line, f"{found.group(0).strip()!r}: {better}")
        if passage.words is not None:
            for line, sentence in sentences(passage):
                if (count := len(sentence.split())) > passage.words:
                    yield Complaint(path, line, f"a sentence of {count} words: {sentence[:60]!r} ...")
    if path.suffix == ".py":
        for line, what in literals(source):
            yield Complaint(path, line, what)


def sentences(passage: Passage) -> Iterator[tuple[int, str]]:
    start = 0
    for end in re.finditer(r"[.!?:](?:\s|$)|\n\s*\n|\n\s*(?:[-*|>]|\d+\.) |\Z", passage.text):
        sentence = passage.text[start : end.end()]
        yield passage.line + passage.text.count("\n", 0, start), " ".join(sentence.split())
        start = end.end()


def of_page(source: str) -> Iterator[Passage]:
    """Yield the running text of a page: without code, tables, addresses and front matter."""
    blank = lambda found: re.sub(r"[^\n]", " ", found.group(0))  # noqa: E731
    text = (
        re.sub(r"^---\n.*?^---$", blank, source, count=1, flags=re.DOTALL | re.MULTILINE)
        if source.startswith("---")
        else source
    )
    text = re.sub(r"^([ \t]*)(`{3,}|~{3,}).*?^\1\2[ \t]*$", blank, text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->", blank, text, flags=re.DOTALL)
    text = re.sub(r"`[^`\n]+`", "CODE", text)
    text = re.sub(r"\]\([^)\s]*\)", "]", text)
    line = 1
    for block in re.split(r"(\n[ \t]*\n)", text):
        if block.strip():
            table = block.lstrip().startswith("|")
            lead = len(block) - len(block.lstrip("\n"))
            yield Passage(line + lead, block.lstrip("\n"), None if table else LONGEST)
        line += block.count("\n")


def of_module(source: str) -> Iterator[Passage]:
    """Yield the docstrings, comments and messages of a module."""
    tree = ast.parse(source)
    strings: list[tuple[int, str, bool]] = []
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    inner = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
        if part is not node
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docs.add(id(node.value))
        if id(node) in inner:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            strings.append((node.lineno, node.value, id(node) in docs))
        elif isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "CODE" for part in node.values)
            strings.append((node.lineno, text, False))
    for line, text, doc in strings:
        if doc:
            # Without examples (indented by a further step after ::), tables, and literal names.
            prose = re.sub(r"::\n(?:[ \t]*\n|[ \t]{4,}.*\n?)+", lambda found: "\n" * found.group(0).count("\n"), text)
            prose = re.sub(r"^.*[│└├─═].*$|^[ =]{6,}$", "", prose, flags=re.MULTILINE)
            # A list of names, each with its meaning behind two spaces or more: an item is a sentence.
            prose = re.sub(r"\n(?=[ \t]{4,}\S[^\n]*?[^\s.:] {2,}\S)", "\n\n", prose)
            prose = re.sub(r"``[^`\n]+``|`[^`\n]+`", "CODE", prose)
            prose = (
                re.sub(r"\n[ \t]*(?=\w+(?: \([^)]*\))?: )", "\n\n", prose)
                if re.search(r"\n\s*(?:Args|Raises|Attributes):\n", prose)
                else prose
            )
            yield Passage(line, prose)
        elif len(text.split()) >= 5 and not re.search(
            r"\b(?:SELECT|INSERT|UPDATE|DELETE|BEGIN|DECLARE|CREATE|SET)\b", text
        ):
            names = re.fullmatch(r"[\w\s.]+", text) and not re.search(
                r"[.A-Z]", text
            )  # a list of names is not a sentence
            yield Passage(line, text, None if names else LONGEST)
    comment: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ")
            alone = not token.line[: token.start[1]].strip()  # a remark behind code is not continued
            if comment and alone and token.start[0] == last + 1:
                comment.append(text)
            else:
                if comment:
                    yield Passage(first, "\n".join(comment))
                comment, first = [text], token.start[0]
            last = token.start[0]
    if comment:
        yield Passage(first, "\n".join(comment))


def literals(source: str) -> Iterator[tuple[int, str]]:
    """Yield literals that a line-wrapper has broken in the middle of a phrase, and f-strings that hold no placeholder."""
    lines = source.splitlines()
    for run in _runs(source):
        if len(run) < 2:
            continue
        for string, line, end in run:
            head = re.match(r"[A-Za-z]*", string).group(0)  # type: ignore[union-attr]
            if "f" in head.lower() and "{" not in string.replace("{{", ""):
                yield line, f"an f-string without a placeholder: {string[:40]}"
            if (string, line, end) != run[-1] and end == line:
                text = lines[line - 1].rstrip()
                body = string.rstrip("\"'")
                if len(text) < 72 and re.search(r"[a-z] $", body) and run[-1][1] != line:
                    yield line, f"a literal broken in the middle of a phrase: {string[-40:]}"


def _runs(source: str) -> Iterator[list[tuple[str, int, int]]]:
    """Yield the string literals that stand one behind the other, each with its first and last line."""
    run: list[tuple[str, int, int]] = []
    depth, start, first = 0, (0, 0), 0
    lines = source.splitlines(keepends=True)
    begin, finish = getattr(tokenize, "FSTRING_START", -1), getattr(tokenize, "FSTRING_END", -1)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == begin:
            if depth == 0:
                start, first = token.start, token.start[0]
            depth += 1
        elif token.type == finish:
            depth -= 1
            if depth == 0:
                last = token.end[0]
                text = "".join(lines[first - 1 : last])[start[1] :]
                cut = len(lines[last - 1]) - token.end[1]
                run.append((text[: len(text) - cut], first, last))
        elif depth:
            continue
        elif token.type == tokenize.STRING:
            run.append((token.string, token.start[0], token.end[0]))
        elif token.type not in (tokenize.NL, tokenize.COMMENT):
            if run:
                yield run
            run = []
    if run:
        yield run


if __name__ == "__main__":
    given = [Path(name).resolve() for name in sys.argv[1:]] or sources()
    found = [complaint for path in given for complaint in complaints(path)]
    sys.stdout.write("".join(f"{complaint}\n" for complaint in found) + f"{len(found)} complaints\n")
