"""The site of the documentation: it can be built, stands on its own, leads nowhere that is not there, and can be read."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urldefrag

import pytest

from tests.docs import site as site_
from tests.docs.site import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.browser import Browser

# What a browser fetches without being asked.
FETCHED = {"audio", "embed", "iframe", "img", "input", "link", "object", "script", "source", "video"}
REFERRED = {"canonical", "next", "prev"}  # kinds of link that it does not
ELSEWHERE = re.compile(r"([a-z]+:)?//", re.IGNORECASE)


@dataclass
class Page(HTMLParser):
    """What a page of the site refers to, and what can be referred to in it."""

    file: Path
    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    nameless: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        address = given.get("href") or given.get("src") or given.get("data")
        if tag in FETCHED and address and given.get("rel") not in REFERRED:
            self.fetched.append(address)
        if tag in FETCHED | {"a"} and address:
            self.links.append(address)
        if tag == "img" and not given.get("alt"):
            self.nameless.append(address or tag)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `nox -s site` builds it. A warning would have failed it."""
    folder = tmp_path_factory.mktemp("site")
    site_.build(folder)
    return folder


@pytest.fixture(scope="module")
def site_pages(site: Path) -> dict[str, Page]:
    """Its pages, by their addresses."""
    return {file.parent.relative_to(site).as_posix().removeprefix("."): Page(file) for file in site.rglob("index.html")}


def test_every_page_of_the_documentation_is_a_page_of_the_site(site_pages: dict[str, Page]) -> None:
    docs = ROOT / "docs"
    written = {page.relative_to(docs).with_suffix("").as_posix() for page in docs.rglob("*.md")}
    assert set(site_pages) == {name.removesuffix("index").rstrip("/") for name in written}


def test_the_site_needs_nothing_from_elsewhere(site: Path, site_pages: dict[str, Page]) -> None:
    fetched = {(name, address) for name, page in site_pages.items() for address in page.fetched}
    assert fetched
    assert not {entry for entry in fetched if ELSEWHERE.match(entry[1])}
    styles = {file: file.read_text(encoding="utf-8") for file in site.rglob("*.css")}
    assert styles
    assert not [file for file, text in styles.items() if re.search(r"""(@import|url\(["']?)\s*(https?:)?//""", text)]


def test_every_link_leads_to_a_place_that_is_there(site: Path, site_pages: dict[str, Page]) -> None:
    by_file = {page.file: page for page in site_pages.values()}
    broken = []
    for page in site_pages.values():
        for link in page.links:
            if ELSEWHERE.match(link) or re.match(r"(data|mailto|javascript):", link):
                continue
            path, anchor = urldefrag(unquote(link))
            target = (page.file.parent / path).resolve() if path else page.file
            target = target / "index.html" if target.is_dir() else target
            there = target.is_file() and target.is_relative_to(site.resolve())
            if not there or (anchor and target in by_file and anchor not in by_file[target].anchors):
                broken.append(f"{page.file.relative_to(site)}: {link}")
    assert not broken


def test_every_picture_has_a_text_and_a_dark_side(site: Path, site_pages: dict[str, Page]) -> None:
    assert not {name: page.nameless for name, page in site_pages.items() if page.nameless}
    for file in (ROOT / "docs").rglob("*.svg"):
        text = file.read_text(encoding="utf-8")
        assert re.search(r"<title>[^<]{10,}</title>\s*<desc>[^<]{40,}</desc>", text), file
        assert "prefers-color-scheme: dark" in text, file


def test_the_changelog_tells_what_every_fragment_tells(site: Path) -> None:
    page = (site / "changelog" / "index.html").read_text(encoding="utf-8")
    shown = _words(re.sub(r"<[^>]+>", " ", page))
    fragments = [file for file in (ROOT / "changelog.d").glob("*.md") if file.name != "README.md"]
    assert fragments or site_.RELEASED.exists()
    assert not [file.name for file in fragments if _words(file.read_text(encoding="utf-8"))[:60] not in shown]
    # None of them has run into the one above it.
    assert len(re.findall(r"<li>", page[page.index("<article") :])) >= len(fragments)


@pytest.mark.parametrize("head", ["", f"# Changelog\n\n{site_.MARK}\n"])
def test_the_changelog_keeps_what_was_released(head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = tmp_path / "CHANGELOG.md"
    released.write_text(f"{head}## 0.1.0 (2026-01-01)\n\n### Added\n\n- One.\n- Two.\n\n  More of it.\n")
    monkeypatch.setattr(site_, "RELEASED", released)
    told = site_.changes()
    assert told.startswith("\n## Next (not released yet)\n")
    assert told.endswith("## 0.1.0 (2026-01-01)\n\n### Added\n\n\n- One.\n\n- Two.\n\n    More of it.\n")
    assert told.count("Changelog") == 0


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(site_.NotBuilt, match="holds no site"):
        site_.build(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def _words(text: str) -> str:
    """Only the letters: how the two of them mark up the rest is not the same."""
    return re.sub(r"(&\w+;|[^A-Za-z])+", " ", text).strip()


# In the browser


@pytest.fixture
def served(site: Path) -> Iterator[str]:
    """The address of the site."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


# How far the page sticks out of the screen, and what of it does not scroll in itself; what is missing, what came from elsewhere.
LOOK = """
    const screen = document.documentElement;
    const scrolls = "pre, .md-typeset__scrollwrap, .tabbed-labels, .md-tabs, .md-sidebar, svg";
    const over = screen.scrollWidth - screen.clientWidth;
    const wide = over <= 0 ? [] : [...document.querySelectorAll(".md-content *, header *, footer *")]
        .filter(it => it.getBoundingClientRect().right > screen.clientWidth && !it.parentElement.closest(scrolls));
    return {
        over: over > 0 ? [over, ...wide.map(it => it.outerHTML.slice(0, 100))] : [],
        missing: [...document.images].filter(it => !(it.complete && it.naturalWidth)).map(it => it.src),
        foreign: performance.getEntriesByType("resource").map(it => it.name)
            .filter(name => new URL(name, location).origin !== location.origin),
        empty: document.querySelector("h1")?.textContent ? [] : ["no title"],
    };
"""

# The dialog makes itself when it is first asked for, in a shadow tree.
ASK = """
    const [word, done] = arguments;
    const all = (css, root = document) => [
        ...root.querySelectorAll(css),
        ...[...root.querySelectorAll("*")].flatMap(it => it.shadowRoot ? all(css, it.shadowRoot) : []),
    ];
    document.querySelector(".md-search__button").click();
    let asked = false;
    (function look() {
        const input = all("dialog [role=combobox]")[0];
        if (input && !asked) {
            Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(input, word);
            asked = input.dispatchEvent(new Event("input", {bubbles: true}));
        }
        const found = all("dialog [role=listbox] a").filter(it => it.textContent.includes(word)).map(it => it.href);
        found.length ? done(found) : requestAnimationFrame(look);
    })();
"""


# Which colours a picture has, after the page's own switch was turned.
TURN = """
    const [scheme, done] = arguments;
    document.querySelector(`input[data-md-color-scheme=${scheme}]`).click();
    requestAnimationFrame(() => requestAnimationFrame(() => {
        const image = document.querySelector("article img[src*='pictures/']");
        const pen = document.createElement("canvas").getContext("2d");
        pen.drawImage(image, 0, 0);
        const dots = pen.getImageData(0, 0, pen.canvas.width, pen.canvas.height).data;
        const colours = new Set();
        for (let at = 0; at < dots.length; at += 4) colours.add(`${dots[at]},${dots[at + 1]},${dots[at + 2]}`);
        done([...colours]);
    }));
"""


@pytest.mark.browser
@pytest.mark.timeout(300)  # a third of a second for each page, but not on a machine that has much else to do
def test_every_page_can_be_read_at_a_desk_and_on_a_phone(
    served: str, site_pages: dict[str, Page], browser: Browser
) -> None:
    # Each page would begin with an index of all words for the search: a quarter of the time that all this takes.
    browser.prepare("window.Worker = class extends EventTarget { postMessage() {} terminate() {} }")
    problems = []
    widths = (1280, 390)
    for name in sorted(site_pages):
        browser.size(widths[0])
        browser.open(f"{served}/{name}/" if name else f"{served}/")
        for width in widths:
            browser.size(width)
            seen = {what: found for what, found in browser.run(LOOK).items() if found}
            problems += [f"{name}, {width} wide: {seen}"] * bool(seen)
        widths = widths[::-1]  # the next page opens as this one was left
    assert not problems
    assert not browser.console()


@pytest.mark.browser
def test_the_search_finds_what_one_looks_for(served: str, browser: Browser) -> None:
    browser.size(1280)
    for word in ("SERIALIZABLE", "upsert", "CommitOutcomeUnknown"):
        browser.open(f"{served}/")
        found = browser.wait(ASK, word)
        assert found
        assert all(address.startswith(served) for address in found)


@pytest.mark.browser
def test_a_picture_follows_the_switch_between_light_and_dark(served: str, browser: Browser) -> None:
    browser.open(f"{served}/explanation/isolation/")
    for scheme, text in [("slate", "230,237,243"), ("default", "31,35,40"), ("slate", "230,237,243")]:
        assert text in browser.wait(TURN, scheme)
