"""The site of the documentation: `python -m tests.docs.site [FOLDER]` builds it, by default into `site`.

It is built from a copy of docs/, since one page is written anew each time: the changelog, from the fragments in
changelog.d and from what earlier releases have made of theirs. The file in docs/ is the head of that page.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RELEASED = ROOT / "CHANGELOG.md"
MARK = "<!-- towncrier release notes start -->"


class NotBuilt(Exception):
    """The text is what the program said."""


def build(folder: Path) -> None:
    """Build the site into a folder, in the place of an earlier one.

    Raises:
        NotBuilt: there was a warning, or an error; or the folder holds something else.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "sitemap.xml").exists():
        raise NotBuilt(f"{folder} is not empty and holds no site; name a folder for the site alone")
    with tempfile.TemporaryDirectory(prefix="sessionkit-site-") as name:
        copy = Path(name)
        shutil.copy(ROOT / "mkdocs.yml", copy)
        shutil.copytree(ROOT / "docs", copy / "docs")
        (copy / "src").symlink_to(ROOT / "src", target_is_directory=True)
        with (copy / "docs" / "changelog.md").open("a", encoding="utf-8") as page:
            page.write(changes())
        _run("zensical", "build", "--strict", "--clean", where=copy)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(copy / "site", folder)


def changes() -> str:
    """Return the changes of all releases, the next one first, as Markdown."""
    following = _run("towncrier", "build", "--draft", "--version=Next", "--date=not released yet", where=ROOT)
    released = RELEASED.read_text(encoding="utf-8").split(MARK)[-1] if RELEASED.exists() else ""
    # Towncrier's entries, as the Markdown of the site wants them: apart from each other, and what belongs to one four deep.
    text = re.sub(r"^- ", "\n- ", f"\n{following.strip()}\n{released}", flags=re.MULTILINE)
    return re.sub(r"^  (?=\S)", "    ", text, flags=re.MULTILINE)


def _run(program: str, *arguments: str, where: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", program, *arguments],
        cwd=where,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        told = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)  # in colours, whoever reads it
        raise NotBuilt(f"{program} {' '.join(arguments)}\n{told}")
    return done.stdout


if __name__ == "__main__":
    try:
        build(Path(sys.argv[1] if len(sys.argv) > 1 else "site").resolve())
    except NotBuilt as error:
        sys.exit(str(error))
