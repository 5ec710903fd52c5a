"""What the documentation points at exists: files, headings, and `file.py:line` or `` `file.py` `` in backticks."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`((?:[\w.]+/)+[\w.]+\.(?:py|yaml|md|txt|jsonl|patch))(?::(\d+))?`")


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub names them."""
    headings = re.findall(r"^#+ +(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def faults(page: Path, text: str) -> list[str]:
    found = []
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        if not target.exists():
            found.append(f"{link}: no such file")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            found.append(f"{link}: no such heading")
    for name, line in CODE.findall(text):
        path = ROOT / name
        if name.split("/")[0] not in {p.name for p in ROOT.iterdir()} or name.split("/")[0] in ("runs", "data"):
            continue  # a path of the user's, as in an example
        if not path.is_file():
            found.append(f"`{name}`: no such file")
        elif line and int(line) > len(path.read_text(encoding="utf-8").splitlines()):
            found.append(f"`{name}:{line}`: the file is shorter")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_what_a_page_points_at_exists(page: Path) -> None:
    assert faults(page, page.read_text(encoding="utf-8")) == []


def test_a_dead_pointer_is_found() -> None:
    page = ROOT / "CONTRIBUTING.md"
    good = "[a](CHANGELOG.md) [b](#tests) [c](https://x.org/y) `tests/test_docs.py:1` `runs/x/config.yaml`"
    assert faults(page, good) == []
    bad = "[a](NO.md) [b](#no-such) [c](docs/none.md) `tests/test_docs.py:99999` `tests/test_none.py`"
    assert len(faults(page, bad)) == 5
