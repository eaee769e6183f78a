"""Measure how the packages are laid out, and fail where that is worse than agreed.

    python tools/house.py

Prints one line a measure: modules at a package's root, import cycles between modules and between folders, imports that run upward
through the layers of pyproject.toml's first import-linter contract, the largest folder, and type names with two meanings. Imports
in functions count; those for type checkers alone do not. Exits 1 where a limit is passed.
"""

from __future__ import annotations

import ast
import graphlib
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"talaria": ROOT / "pipeline" / "talaria", "talaria_airflow": ROOT / "plugins" / "talaria_airflow"}
MOST_LOOSE = 2
MOST_FILES = 14


def cycle(imports: Mapping[str, set[str]]) -> list[str]:
    """Return the nodes of one cycle, the first again at its end; empty where there is none."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def twice_named() -> dict[str, list[str]]:
    """Return the classes that have one name in two modules, with the modules; private ones do not count."""
    homes: dict[str, list[str]] = {}
    for source in SOURCES.values():
        for path in sorted(source.rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    return {name: paths for name, paths in homes.items() if len(paths) > 1}


def folder_of(module: str) -> str:
    """Return the folder directly below the package that a module lies in; its own name for one at the root."""
    return ".".join(module.split(".")[:2])


def layers() -> list[list[str]]:
    """Return the layers, top first, each a list of packages beside one another."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    return [[name.strip() for name in layer.split("|")] for layer in contracts[0]["layers"]]


def upward(imports: Mapping[str, set[str]]) -> Iterable[tuple[str, str]]:
    """Yield (importer, imported) where a lower layer imports a higher one, or one beside it."""
    level = {name: depth for depth, names in enumerate(layers()) for name in names}

    def place(module: str) -> tuple[str, int] | None:
        name = next((name for name in (module.split(".")[0], folder_of(module)) if name in level), None)
        return (name, level[name]) if name else None

    for importer, targets in imports.items():
        for imported in targets:
            above, below = place(importer), place(imported)
            if above and below and above[0] != below[0] and above[1] >= below[1]:
                yield importer, imported


def main() -> int:
    graph = grimp.build_graph(*SOURCES, exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    folders: dict[str, set[str]] = {}
    for module, targets in imports.items():
        folders.setdefault(folder_of(module), set()).update({folder_of(target) for target in targets} - {folder_of(module)})
    loose = {name: sum(path.name != "__init__.py" for path in source.glob("*.py")) for name, source in SOURCES.items()}
    sizes = {
        folder: sum(path.name != "__init__.py" for path in folder.glob("*.py"))
        for source in SOURCES.values()
        for folder in [source, *(path for path in source.rglob("*/") if path.is_dir())]
    }
    largest = max(sizes, key=lambda folder: sizes[folder])
    circles, up, named = [found for nodes in (imports, folders) if (found := cycle(nodes))], list(upward(imports)), twice_named()
    print(f"modules: {len(imports)}, imports between them: {sum(map(len, imports.values()))}")
    for name, count in loose.items():
        print(f"loose modules at the root of {name}: {count} (at most {MOST_LOOSE})")
    print(f"import cycles: {len(circles)} (none allowed)")
    print(f"imports upward or sideways: {len(up)} (none allowed)")
    print(f"files in the largest folder, {largest.relative_to(ROOT)}: {sizes[largest]} (at most {MOST_FILES})")
    print(f"type names with two meanings: {len(named)} (none allowed)")
    for group in circles:
        print(f"  cycle: {' -> '.join(group)}")
    for importer, imported in up:
        print(f"  upward: {importer} imports {imported}")
    for name, paths in named.items():
        print(f"  type {name}: {', '.join(paths)}")
    too_loose = any(count > MOST_LOOSE for name, count in loose.items())
    worse = too_loose or circles or up or named or sizes[largest] > MOST_FILES
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
