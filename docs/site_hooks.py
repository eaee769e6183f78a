"""MkDocs hook: pages that lie outside docs/, one API page per package folder, and links that work in both places.

In the repository, links are relative paths between files. On the site, a link to a Python file leads to its module on an API
page, a link to a page outside docs/ leads to its copy, and a link to any other file becomes plain text. A path that does not
exist is a warning, which `make docs` (strict) turns into an error.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks.talaria")
ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/LOG.md": "log.md",
    "findings/README.md": "findings.md",
}
"""Repository path -> page of the site."""
_NO_SIDEBAR = "---\nhide: [navigation]\n---\n\n"
SOURCES = ("pipeline", "plugins")
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_CODE_BLOCK = re.compile(r"^(```.*?^```|(?: {4}[^\n]*\n)+)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and their entries in the navigation."""
    for source, page in OUTSIDE.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_NO_SIDEBAR + content if page == "index.md" else content))
    for script in sorted((ROOT / "findings").glob("*.sh")):
        text = f"# {script.stem}\n\n```bash\n{script.read_text(encoding='utf-8')}```\n"
        files.append(File.generated(config, f"findings/{script.stem}.md", content=text))
    notes = sorted(path.name for path in (ROOT / "docs/decisions").glob("[0-9]*.md"))
    entries = "\n".join(f"- [{_title(ROOT / 'docs/decisions' / name)}]({name})" for name in notes)
    files.append(
        File.generated(config, "decisions/index.md", content=f"# Decisions\n\nWhy Talaria is built as it is.\n\n{entries}\n")
    )
    packages = {package: list(modules) for package, modules in _packages().items()}
    for package, modules in packages.items():
        blocks = "\n\n".join(f"::: {module}" for module in modules)
        files.append(File.generated(config, f"api/{package}.md", content=f"# {package}\n\n{blocks}\n"))
    unlisted = sorted({path.name for path in (ROOT / "docs").glob("*.md")} - {str(page) for page in _listed(config.nav or [])})
    for section in config.nav or []:
        if "Use" in section:
            section["Use"] += unlisted  # a new page is never lost
        if "Decisions" in section:
            section["Decisions"] = ["decisions/index.md", *(f"decisions/{name}" for name in notes)]
        if "API" in section:
            section["API"] = [f"api/{package}.md" for package in packages]
    return files


def _listed(nav: object) -> list[object]:
    if isinstance(nav, dict):
        nav = list(nav.values())
    return [page for entry in nav for page in _listed(entry)] if isinstance(nav, list) else [nav]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite repository links outside of code blocks."""
    sources = {target: source for source, target in OUTSIDE.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    parts, end = [], 0
    for block in _CODE_BLOCK.finditer(markdown):
        parts += [_rewrite(markdown[end : block.start()], source, page.file.src_uri), block.group()]
        end = block.end()
    return "".join([*parts, _rewrite(markdown[end:], source, page.file.src_uri)])


def _rewrite(text: str, source: str, page: str) -> str:
    def replace(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match.group()
        path, _, anchor = target.partition("#")
        found = _on_site(posixpath.normpath(posixpath.join(posixpath.dirname(source), path)), anchor)
        if found is None:
            log.warning("%s: links to %s, which does not exist", source, target)
        if not found:
            return label
        return f"{image}[{label}]({posixpath.relpath(found, posixpath.dirname(page) or '.')})"

    return _LINK.sub(replace, text)


def _on_site(path: str, anchor: str) -> str | None:
    """The site's page for a repository path; empty where it has none, None where the path does not exist."""
    if path.startswith("docs/decisions") and not path.endswith(".md"):
        return "decisions/index.md"
    if path.startswith("findings/") and path.endswith(".sh") and (ROOT / path).is_file():
        return path.replace(".sh", ".md")
    if path in OUTSIDE:
        found = OUTSIDE[path]
    elif (path.startswith("docs/") and (ROOT / path).is_file()) or path.startswith("docs/api/"):
        found = path.removeprefix("docs/")
    elif path.startswith(SOURCES) and (ROOT / path).exists():
        return _api(PurePosixPath(path))
    else:
        return "" if (ROOT / path).exists() else None
    return found + (f"#{anchor}" if anchor else "")


def _api(path: PurePosixPath) -> str:
    """The API page of a module (with its anchor) or of a package folder."""
    if path.suffix not in ("", ".py"):
        return ""
    dotted = ".".join(path.with_suffix("").parts[1:])
    package = dotted.rpartition(".")[0]
    packages = _packages()
    if dotted in packages:
        return f"api/{dotted}.md"
    return f"api/{package}.md#{dotted}" if package in packages and dotted in packages[package] else ""


def _packages() -> dict[str, list[str]]:
    """Package -> its modules that have a docstring, in the order of their names."""
    found: dict[str, list[str]] = {}
    for source in SOURCES:
        for path in sorted((ROOT / source).rglob("*.py")):
            dotted = ".".join(path.relative_to(ROOT / source).with_suffix("").parts)
            if path.name != "__init__.py" and path.read_text(encoding="utf-8").startswith('"""'):
                found.setdefault(dotted.rpartition(".")[0], []).append(dotted)
    return found


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
