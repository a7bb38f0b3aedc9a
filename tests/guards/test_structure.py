"""The house has no corridor: imports go one way, between files, between folders, and from callers to what they call."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "labelwright"
CALLERS_OF_PIPELINE = {"api", "cli", "verbs"}


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of every import of ours, inside functions too; those for type checkers alone are left out."""
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "labelwright":
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "labelwright")


@cache
def graph() -> Mapping[str, frozenset[str]]:
    """Module -> the modules it imports; the package itself, which imports nothing of ours at once, is left out."""
    files = {name_of(path): path for path in SOURCE.rglob("*.py")}
    found = {}
    for name, path in files.items():
        seen = set()
        for module, imported in imports(ast.parse(path.read_text(encoding="utf-8"))):
            inner = module.removeprefix("labelwright").removeprefix(".")
            whole = f"{inner}.{imported}".strip(".")
            seen.add(whole if whole in files else inner)
        found[name] = frozenset(seen - {"", name})
    return found


def folder_of(module: str) -> str:
    """The folder of a module; a module at the top is a unit of its own."""
    return module.split(".")[0]


def path_back(edges: Mapping[str, frozenset[str] | set[str]], start: str) -> list[str]:
    """The shortest way from a node back to itself; empty if there is none."""
    ways = {start: [start]}
    queue = [start]
    while queue:
        node = queue.pop(0)
        for after in sorted(edges.get(node, ())):
            if after == start:
                return [*ways[node], start]
            if after not in ways:
                ways[after] = [*ways[node], after]
                queue.append(after)
    return []


def test_path_back__finds_a_cycle_and_none() -> None:
    assert path_back({"a": {"b"}, "b": {"c"}, "c": {"a"}}, "a") == ["a", "b", "c", "a"]
    assert path_back({"a": {"b"}, "b": set()}, "a") == []


def test_imports__inside_functions_count_and_types_do_not() -> None:
    text = "if TYPE_CHECKING:\n    from labelwright.a import b\ndef f():\n    from labelwright.c import d\n"
    assert list(imports(ast.parse(text))) == [("labelwright.c", "d")]


def test_files_import_one_another_in_no_circle() -> None:
    assert len(graph()) > 100
    assert [way for module in graph() if (way := path_back(graph(), module))] == []


def test_folders_import_one_another_one_way() -> None:
    edges: dict[str, set[str]] = defaultdict(set)
    for module, imported in graph().items():
        edges[folder_of(module)] |= {folder_of(other) for other in imported} - {folder_of(module)}
    assert len(edges) > 10
    assert [way for folder in sorted(edges) if (way := path_back(edges, folder))] == []


def test_the_pipeline_is_called_from_above_alone() -> None:
    callers = {
        folder_of(module)
        for module, imported in graph().items()
        if folder_of(module) != "pipeline" and any(folder_of(other) == "pipeline" for other in imported)
    }
    assert callers <= CALLERS_OF_PIPELINE
