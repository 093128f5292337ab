"""The documentation says what is there: README, pages, links, module paths."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / room / "README.md" for room in ("export", "runtimes", "calibration", "benchmarks", "examples")),
    *sorted((ROOT / "export").glob("*.card.md")),
]
PRIVATE_WORDS = ("told apart", "narrow gate", "two-sample features", "memorisation copies")

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the pages are not beside an installed package")


def prose(path: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^( {4}|\t).*$", "", path.read_text(), flags=re.MULTILINE)
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as MkDocs and code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_readme_can_be_read_at_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), target
        if anchor:
            assert anchor in anchors(place), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_module_and_file_named_is_there(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(
        r"\b(?:csg_edge|tests|benchmarks|export|examples)/[\w/.-]+\.(?:py|toml|json|csv|md)\b", text
    ):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`(csg_edge(?:\.\w+)+)", text):
        assert resolves(name), name


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = ROOT.joinpath(*parts[:length])
        found = module.with_suffix(".py") if module.with_suffix(".py").is_file() else module / "__init__.py"
        if found.is_file():
            rest = parts[length:]
            return not rest or re.search(rf"\b{re.escape(rest[0])}\b", found.read_text()) is not None
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_words_are_those_of_the_field(page: Path) -> None:
    text = page.read_text().lower()
    assert not [word for word in PRIVATE_WORDS if word in text]


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE))
    assert named == {path.name for path in (ROOT / "docs").glob("*.md")}


def test_the_readme_names_every_room() -> None:
    text = (ROOT / "README.md").read_text()
    rooms = {path.name for path in (ROOT / "csg_edge").iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert all(re.search(rf"^ {{6}}{room}/", text, flags=re.MULTILINE) for room in rooms), rooms
    leaves = {path.stem for path in (ROOT / "csg_edge").glob("*.py")} - {"__init__", "__main__"}
    assert all(leaf in text for leaf in leaves), leaves


def test_the_pages_load_nothing_from_the_net() -> None:
    configuration = (ROOT / "mkdocs.yml").read_text()
    assert re.search(r"^  font: false", configuration, flags=re.MULTILINE)
    assert "extra_javascript" not in configuration and "extra_css" not in configuration
    for page in PAGES:
        assert not re.search(r"!\[[^\]]*\]\(https?:|<(?:img|script|iframe)\b", prose(page)), page
