"""The loops of a function's machine code."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.machine_code.sass import Instruction


@dataclass(frozen=True)
class Loop:
    """Instructions, by their places in the function, that lead from ``head`` back to it."""

    head: int
    body: frozenset[int]


def find_successors(code: Sequence[Instruction]) -> list[list[int]]:
    """Return the places of the instructions that may follow each.

    After a call, that is the next one, and also the one called: some loops are left by a call of what comes after them.
    """
    place = {instruction.address: i for i, instruction in enumerate(code)}
    found = []
    for i, instruction in enumerate(code):
        following = [i + 1] if instruction.may_continue and i + 1 < len(code) else []
        if instruction.target is not None:
            following.append(place[instruction.target])
        found.append(following)
    return found


def find_loops(successors: Sequence[Sequence[int]]) -> list[Loop]:
    """Return the natural loops, the smallest first: those with one head are one."""
    predecessors: list[list[int]] = [[] for _ in successors]
    for i, following in enumerate(successors):
        for j in following:
            predecessors[j].append(i)
    bodies: dict[int, set[int]] = {}
    for i, following in enumerate(successors):
        for head in following:
            if head < i and 0 not in (body := reach_back(i, head, predecessors)):
                bodies.setdefault(head, set()).update(body)
    return sorted((Loop(head, frozenset(body)) for head, body in bodies.items()), key=lambda loop: len(loop.body))


def reach_back(start: int, head: int, predecessors: Sequence[Sequence[int]]) -> set[int]:
    """Return what leads to ``start`` without passing ``head``, and both of them."""
    body, waiting = {head}, [start]
    while waiting:
        i = waiting.pop()
        if i not in body:
            body.add(i)
            waiting.extend(predecessors[i])
    return body
