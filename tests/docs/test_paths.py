"""What the pages name exists: files that they link to, and paths of the repository in their text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "findings/*.md", "benchmarks/*.md")
    for path in REPOSITORY.glob(pattern)
)
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")
PATH = re.compile(r"`((?:pipeline|plugins|dags|deploy|tests|benchmarks|configs|findings)/[\w./-]+)`")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_of_a_page_exist(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    links = {target for target in LINK.findall(text) if "://" not in target and not target.startswith("mailto:")}
    missing = {target for target in links if not (REPOSITORY / page).parent.joinpath(target).exists()}
    if page != "benchmarks/LOG.md":  # a log keeps the names of its day
        missing |= {path for path in PATH.findall(text) if not (REPOSITORY / path).exists()}
    assert not missing
