"""Who imports whom: one direction, between modules and between folders."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "codedinv"

Graph = dict[str, set[str]]

# What a part may know of the rest, imports within functions included. The parts above these are
# in docs/architecture.md.
MAY_IMPORT = {
    "coding": set(),
    "nn": {"kernels"},
    "schemes": {"coding"},
    "verification": {"coding", "schemes"},
    "model": {"coding", "nn", "verification"},
}
EVERYWHERE = {"errors", "extras", "lazy"}
_LATER = ast.FunctionDef | ast.AsyncFunctionDef | ast.If


def modules() -> dict[str, Path]:
    """Python files of the package by dotted name; kernels have a graph of their own."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "kernels" not in parts:
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(tree: ast.AST, *, within_functions: bool) -> Iterator[str]:
    """Dotted names that a file imports, `from a import b` as a.b; those for type checking only
    count as within functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif within_functions or not isinstance(node, _LATER):
            yield from imported(node, within_functions=within_functions)


def graph(*, within_functions: bool) -> Graph:
    """The modules of the package that each of its modules imports."""
    names = modules()
    edges: Graph = {}
    for name, path in names.items():
        edges[name] = set()
        for target in imported(ast.parse(path.read_text()), within_functions=within_functions):
            known = target if target in names else target.rpartition(".")[0]
            if known in names and known != name:
                edges[name].add(known)
    return edges


def part_of(name: str) -> str:
    """Folder or file at the top of the package; "": the package itself."""
    return (*name.split("."), "")[1]


def check_acyclic(edges: Graph) -> None:
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        pytest.fail("imports in a circle: " + " <- ".join(error.args[1]))


def test_a_circle_is_found() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"circle: . <- . <- ."):
        check_acyclic({"a": {"b"}, "b": {"a"}})


def test_no_module_imports_itself_by_a_detour() -> None:
    check_acyclic(graph(within_functions=False))


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_parts_modules_import_one_way_even_within_functions(part: str) -> None:
    home = f"codedinv.{part}"
    inside = {
        name: {target for target in targets if target.startswith(f"{home}.")}
        for name, targets in graph(within_functions=True).items()
        if name.startswith(f"{home}.")  # its __init__ names them all
    }
    assert inside
    check_acyclic(inside)


def test_no_part_imports_itself_by_a_detour_even_within_functions() -> None:
    parts: Graph = {}
    for name, targets in graph(within_functions=True).items():
        parts.setdefault(part_of(name), set()).update(map(part_of, targets))
    del parts[""]
    check_acyclic({part: targets - {part, ""} for part, targets in parts.items()})


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_part_imports_only_what_lies_below_it(part: str) -> None:
    for name, targets in graph(within_functions=True).items():
        if part_of(name) != part:
            continue
        parts = set(map(part_of, targets))
        surplus = parts - MAY_IMPORT[part] - EVERYWHERE - {part, ""}
        assert not surplus, f"{name} imports {sorted(surplus)}"


def test_networks_come_without_triton() -> None:
    """It looks once, when it is imported, whether it is to interpret kernels."""
    code = "import sys, codedinv.nn, codedinv.training; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
