"""Check the documentation as built: whole, and nothing loaded from the net. Usage: python tests/check_site.py SITE"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import click

from csg_edge.cli.main import main as csg_edge

LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "link": "href",
}
FETCHING_RELATIONS = {
    "stylesheet",
    "icon",
    "preload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "modulepreload",
    "manifest",
}


class Page(HTMLParser):
    """What a page loads, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "link" and not FETCHING_RELATIONS & set((given.get("rel") or "").split()):
            return
        if source := given.get(LOADED.get(tag, "")):
            self.loads.append(source)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def main(site: Path) -> list[str]:
    """Everything that is wrong with the site, a line each."""
    wrong, text = [], ""
    pages = sorted(site.rglob("*.html"))
    for path in pages:
        page = Page()
        page.feed(path.read_text())
        name = path.relative_to(site)
        wrong += [f"{name}: loads {source}" for source in page.loads if re.match(r"(https?:)?//", source)]
        if name == Path("commands.html"):
            text = " ".join(page.text)
    for sheet in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import\s*)['\"]?((?:https?:)?//[^'\")]+)", sheet.read_text())
        wrong += [f"{sheet.relative_to(site)}: loads {source}" for source in found]
    for name, command in csg_edge.commands.items():
        if f"csg-edge {name}" not in text:
            wrong.append(f"commands.html: no csg-edge {name}")
        for parameter in command.params:
            options = parameter.opts if isinstance(parameter, click.Option) else []
            wrong += [f"commands.html: {name} lacks {option}" for option in options if option not in text]
    return wrong if pages else [f"{site}: no pages"]


if __name__ == "__main__":
    faults = main(Path(sys.argv[1]))
    print("\n".join(faults) or "every command is there, nothing is loaded from the net")
    sys.exit(bool(faults))
