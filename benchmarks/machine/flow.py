"""Loops of a control-flow graph."""

from __future__ import annotations


def natural_loops(successors: list[list[int]]) -> dict[int, frozenset[int]]:
    """Blocks of each loop by its header, the block through which it is entered.

    Args:
        successors: of each basic block; block 0 is the entry.
    """
    reached = _reachable(successors)
    dominators = _dominators(successors, reached)
    bodies: dict[int, set[int]] = {}
    predecessors: dict[int, list[int]] = {index: [] for index in reached}
    for index in reached:
        for successor in successors[index]:
            predecessors[successor].append(index)
    for tail in reached:
        for header in successors[tail]:
            if header in dominators[tail]:
                body, waiting = bodies.setdefault(header, {header}), [tail]
                while waiting:
                    index = waiting.pop()
                    if index not in body:
                        body.add(index)
                        waiting += predecessors[index]
    return {header: frozenset(body) for header, body in bodies.items()}


def _reachable(successors: list[list[int]]) -> list[int]:
    seen, waiting = {0}, [0]
    while waiting:
        for successor in successors[waiting.pop()]:
            if successor not in seen:
                seen.add(successor)
                waiting.append(successor)
    return sorted(seen)


def _dominators(successors: list[list[int]], reached: list[int]) -> dict[int, set[int]]:
    """Of each block, those that every path from the entry to it goes through."""
    everything = set(reached)
    dominators = {index: set(everything) for index in reached}
    dominators[0] = {0}
    changed = True
    while changed:
        changed = False
        for index in reached[1:]:
            before = [dominators[p] for p in reached if index in successors[p]]
            found = set.intersection(*before) | {index}
            if found != dominators[index]:
                dominators[index], changed = found, True
    return dominators
