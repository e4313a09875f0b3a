"""The documentation as a site: it builds without a warning, its links lead somewhere, nothing comes from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("material", reason="the extra `docs` is not installed")
ROOT = Path(__file__).resolve().parent.parent
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
LINKED = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "manifest", "modulepreload"}  # <link rel=...>


class Page(HTMLParser):
    """What a page loads, where it links to, and the names of its parts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.names |= {given[name] for name in ("id", "name") if name in given}
        if tag in LOADS and LOADS[tag] in given:
            self.loads.append(given[LOADS[tag]])
        if tag == "link" and LINKED & set(given.get("rel", "").split()):
            self.loads.append(given["href"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as CONTRIBUTING.md says."""
    out = tmp_path_factory.mktemp("site")
    # not --quiet: it hides warnings from --strict, too
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "Documentation built" in built.stderr
    assert "WARNING -" not in built.stderr
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_every_page_of_the_docs_is_on_the_site(site: Path) -> None:
    assert [page.stem for page in (ROOT / "docs").glob("*.md") if not (site / f"{page.stem}.html").is_file()] == []
    assert not list(site.glob("*.py"))


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert page.loads
        assert [address for address in page.loads if urlsplit(address).netloc] == [], path
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet
    for picture in site.rglob("*.svg"):
        assert not re.findall(r"<script|href=|url\(['\"]?http", picture.read_text(encoding="utf-8")), picture


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    def dead() -> Iterator[str]:
        for path, page in pages.items():
            if path.name == "404.html":  # has links for a server's root
                continue
            for address in [*page.links, *page.loads]:
                parts = urlsplit(address)
                if parts.scheme or parts.netloc:
                    continue
                target = (path.parent / unquote(parts.path)).resolve() if parts.path not in ("", ".") else path
                if not target.is_file():
                    yield f"{path.relative_to(site)}: {address}"
                elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].names:
                    yield f"{path.relative_to(site)}: {address} has no such part"

    assert list(dead()) == []
