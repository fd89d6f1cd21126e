"""Check a built site: it works offline, its links lead somewhere, and it names all of riemae.

    python docs/extensions/check_site.py out/docs

Sphinx checks the links that it writes itself. What is looked at here is what a browser loads, and
links in the finished pages, with their anchors.
"""

from __future__ import annotations

import argparse
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser loads by itself, by tag.
LOADED = {
    "script": "src",
    "img": "src",
    "link": "href",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "object": "data",
}
# Links of the head that say something and load nothing.
SAID = {
    "canonical",
    "author",
    "license",
    "next",
    "prev",
    "index",
    "search",
    "genindex",
    "copyright",
}
REMOTE = re.compile(r"(https?:)?//")


class Page(HTMLParser):
    """What a page loads, where its links lead, and which anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: set[str] = set()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at one tag."""
        values = dict(attrs)
        anchor = values.get("id")
        if anchor:
            self.anchors.add(anchor)
        target = values.get(LOADED.get(tag, ""))
        if target and not set((values.get("rel") or "").split()) & SAID:
            self.loads.add(target)
        link = values.get("href")
        if tag == "a" and link:
            self.links.add(link)


def read(site: Path) -> dict[Path, Page]:
    """All pages of a site."""
    return {path: Page(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}


def remote(site: Path, pages: dict[Path, Page]) -> list[str]:
    """What would be loaded from elsewhere, by pages or by style sheets."""
    found = [
        f"{path.relative_to(site)} loads {target}"
        for path, page in pages.items()
        for target in sorted(page.loads)
        if REMOTE.match(target)
    ]
    for sheet in sorted(site.rglob("*.css")):
        text = sheet.read_text("utf-8", errors="replace")
        loads = re.findall(r"(?:url\(\s*|@import\s+)[\"']?((?:https?:)?//[^\"')\s]+)", text)
        found += [f"{sheet.relative_to(site)} loads {target}" for target in loads]
    return found


def dead(site: Path, pages: dict[Path, Page]) -> list[str]:
    """Links to pages, files or anchors of the site that do not exist."""
    found = []
    for path, page in pages.items():
        for target in sorted(page.links | page.loads):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not there.exists():
                found.append(f"{path.relative_to(site)} links to {target}, which does not exist")
            elif parts.fragment and there in pages:
                if unquote(parts.fragment) not in pages[there].anchors | {"", "top"}:
                    found.append(f"{path.relative_to(site)} links to {target}: no such anchor")
    return found


def main() -> int:
    """Print what is wrong, and return 1 where something is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("site", type=Path)
    site = parser.parse_args().site.resolve()
    pages = read(site)
    faults = remote(site, pages) + dead(site, pages)
    for fault in faults:
        print(fault)
    print(f"{len(pages)} pages in {site}, {len(faults)} faults")
    return 1 if faults or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
