"""Which source loop a loop of a Triton kernel's machine code is, and how often it runs.

The compiler notes a source line for each instruction, and device functions are inlined. So a
machine loop is the deepest source loop that most of its instructions lie in, by their lines and
through calls; and it lies around what the loops inside of it are. A source loop that runs once may
be none in machine code: its instructions then count where they are.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .sass import Code, Line, Loop

# Of a loop's own instructions; the rest was moved here from loops around.
MOST = 0.5


@dataclass(frozen=True)
class SourceLoop:
    """A for or while statement of a kernel: its file's name, function, first and last line, and
    what it runs over: "range(0, S.N, S.BLOCK_K)", or the condition of a while."""

    file: str
    function: str
    first: int
    last: int
    target: str
    over: str

    def has(self, line: Line) -> bool:
        return Path(line[0]).name == self.file and self.first <= line[1] <= self.last

    def __str__(self) -> str:
        return f"{self.function}: {self.target} in {self.over}"


@dataclass(frozen=True)
class _Function:
    loops: tuple[SourceLoop, ...]
    # (called function, innermost loop around the call)
    calls: tuple[tuple[str, SourceLoop | None], ...]


class Sources:
    """The loops of some kernel files, and which are around which through calls."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._functions: dict[str, _Function] = {}
        self._around: dict[SourceLoop, set[SourceLoop]] = {}
        for file in files:
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.FunctionDef):
                    self._functions[node.name] = _read(node, file.name)
        self.loops = [loop for f in self._functions.values() for loop in f.loops]

    def around(self, loop: SourceLoop) -> set[SourceLoop]:
        """All loops that may be around one, in its function and in those that call it."""
        if loop not in self._around:
            within = set(self._enclosing(loop.function, loop))
            self._around[loop] = within | self._around_calls(loop.function, set())
        return self._around[loop]

    def innermost(self, line: Line) -> SourceLoop | None:
        """The innermost loop of a line, within its own function."""
        found = [loop for loop in self.loops if loop.has(line)]
        return min(found, key=lambda loop: loop.last - loop.first, default=None)

    def labels(self, code: Code, names: Mapping[str, Any]) -> dict[int, SourceLoop]:
        """The source loop of each machine loop, by `Loop.number`; names: as for `trips_of`.

        Raises:
            ValueError: one comes from no source loop.
        """
        found: dict[int, SourceLoop] = {}
        known = [loop for loop in self.loops if not _vanishes(loop, names)]
        for loop in sorted(code.loops, key=lambda loop: len(loop.blocks)):
            candidates = {s for s in known if len(self.around(s)) >= loop.depth}
            for child in code.loops:
                if child.parent is loop:
                    candidates &= self.around(found[child.number])
            inside = self._inside(loop)
            located = sum(inside.values())
            share = {
                source: sum(n for other, n in inside.items() if self._is_in(other, source))
                for source in candidates
            }
            enough = [source for source in candidates if share[source] >= MOST * located]
            if not enough or not located:
                raise ValueError(f"{loop}: comes from no loop of the kernels")
            found[loop.number] = max(enough, key=lambda source: len(self.around(source)))
        return found

    def _inside(self, loop: Loop) -> Counter[SourceLoop]:
        """How many of a machine loop's own instructions each source loop is the innermost of."""
        found: Counter[SourceLoop] = Counter()
        for line, count in loop.lines.items():
            source = self.innermost(line)
            if source is not None:
                found[source] += count
        return found

    def _is_in(self, inner: SourceLoop, outer: SourceLoop) -> bool:
        return inner == outer or outer in self.around(inner)

    def _enclosing(self, function: str, inside: SourceLoop | None) -> list[SourceLoop]:
        if inside is None:
            return []
        return [
            loop for loop in self._functions[function].loops
            if loop != inside and loop.first <= inside.first and inside.last <= loop.last
        ]  # fmt: skip

    def _around_calls(self, function: str, seen: set[str]) -> set[SourceLoop]:
        found: set[SourceLoop] = set()
        if function in seen:
            return found
        for caller, content in self._functions.items():
            for called, loop in content.calls:
                if called == function:
                    found |= {loop} if loop is not None else set()
                    found |= set(self._enclosing(caller, loop))
                    found |= self._around_calls(caller, seen | {function})
        return found


def _read(node: ast.FunctionDef, file: str) -> _Function:
    loops: list[SourceLoop] = []
    calls: list[tuple[str, SourceLoop | None]] = []

    def visit(part: ast.AST, inside: SourceLoop | None) -> None:
        if isinstance(part, ast.For) and "static_range" not in ast.unparse(part.iter):
            inside = _loop(part, ast.unparse(part.target), ast.unparse(part.iter))
        elif isinstance(part, ast.While):
            inside = _loop(part, "while", ast.unparse(part.test))
        elif isinstance(part, ast.Call) and isinstance(part.func, ast.Name):
            calls.append((part.func.id, inside))
        for child in ast.iter_child_nodes(part):
            visit(child, inside)

    def _loop(part: ast.For | ast.While, target: str, over: str) -> SourceLoop:
        last = part.end_lineno or part.lineno
        loops.append(SourceLoop(file, node.name, part.lineno, last, target, over))
        return loops[-1]

    visit(node, None)
    return _Function(tuple(loops), tuple(calls))


def trips_of(source: SourceLoop, names: Mapping[str, Any]) -> float:
    """How often a source loop runs.

    Args:
        source: the loop.
        names: of everything its range is made of, and "iterations" for the loop up to max_iter.
            Loops over tasks, and those that wait for others, run once.

    Raises:
        ValueError: its range has other names.
    """
    if source.target == "task" or "atomic" in source.over:
        return 1
    if "max_iter" in source.over:
        return float(names["iterations"])
    try:
        return len(eval(source.over, {"__builtins__": {"range": range}}, dict(names)))
    except NameError as error:
        raise ValueError(f"{source}: {error}") from error


def _vanishes(source: SourceLoop, names: Mapping[str, Any]) -> bool:
    """Whether the compiler sees that a loop runs once at most, so that none is left."""
    if not source.over.startswith("range(0,"):
        return False
    try:
        return trips_of(source, names) <= 1
    except ValueError:
        return True  # of another kernel


def trip_counts(code: Code, sources: Sources, names: Mapping[str, Any]) -> dict[int, float]:
    """Trips of every machine loop by `Loop.number`. A loop that the compiler made two of, such as
    one that it unrolled and its rest, would count twice.

    Raises:
        ValueError: it did.
    """
    labels = sources.labels(code, names)
    for loop in code.loops:
        around: Loop | None = loop.parent
        while around is not None:
            if labels[around.number] == labels[loop.number]:
                raise ValueError(f"{loop}: {labels[loop.number]} is around it already")
            around = around.parent
    return {number: trips_of(source, names) for number, source in labels.items()}
