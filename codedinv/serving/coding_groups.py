"""The numerics of coding groups under way: what was absorbed, what can be recovered, and whether
results contradict each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from codedinv.errors import CodedInvError
from codedinv.schemes.scheme import Array, Decoder
from codedinv.serving.versions import CALLERS_ERRORS, Served
from codedinv.verification import same


class _Group:
    """One group: its decoder and, where results are verified, every run of every slot."""

    __slots__ = ("decoder", "flaw", "runs", "version")

    def __init__(self, version: int, decoder: Decoder) -> None:
        self.version = version
        self.decoder = decoder
        self.flaw: BaseException | None = None  # the decoder did not take a result
        self.runs: dict[int, dict[int, Array]] = {}  # by slot and run


class CodingGroups:
    """All groups that the core has not retired; for the loop only.

    Args:
        served: by version; read when a group is first heard of.
        keep: keep the results themselves, which checking them takes.
    """

    def __init__(self, served: Mapping[int, Served], keep: bool) -> None:
        self._served = served
        self._keep = keep
        self._groups: dict[int, _Group] = {}
        self._free: dict[int, list[Decoder]] = {}  # by version

    def absorb(self, group: int, version: int, slot: int, result: Array) -> None:
        """Takes a slot's result. What is wrong with it is told to whoever asks to `recover`."""
        g = self._group(group, version)
        if self._keep:
            g.runs[slot] = {0: result}
        try:
            g.decoder.push(slot, result)
        except CALLERS_ERRORS as error:
            g.flaw = error

    def fill(self, group: int, version: int, members: Sequence[Array | None]) -> list[Array]:
        """The k queries of a group, anchors in the free slots; their embeddings are absorbed."""
        anchors = self._served[version].scheme.anchors
        queries: list[Array] = []
        used = 0
        for slot, member in enumerate(members):
            if member is not None:
                queries.append(member)
                continue
            if anchors is None:
                raise CodedInvError(f"scheme {self._served[version].scheme.name!r} has no anchors")
            embedding = np.ascontiguousarray(anchors.embeddings[used], np.float32)
            self.absorb(group, version, slot, embedding)
            queries.append(np.asarray(anchors.queries[used], np.float32))
            used += 1
        return queries

    def recover(self, group: int, version: int, slot: int) -> Array:
        """The embedding of a slot whose own result did not come.

        Raises:
            Whatever the decoder raised, now or when it was given a result.
        """
        g = self._group(group, version)
        if g.flaw is not None:
            raise g.flaw
        return np.asarray(g.decoder.recover()[slot], np.float32)

    def check(self, group: int, version: int) -> tuple[bool, int | None]:
        """Do the n results contradict each other, and which slot is wrong, if that can be told?

        Raises:
            Whatever decoder or consistency check raise.
        """
        check = self._served[version].consistency
        if check is None:
            raise LookupError("nothing to check results of this version by")
        verdict = check(*_syndrome(self._group(group, version)))
        return bool(verdict.alarm), verdict.slot

    def can_check(self, version: int) -> bool:
        """Is there anything that results of this version can be checked by?"""
        return self._served[version].consistency is not None

    def compare(self, group: int, version: int, slot: int, run: int, result: Array) -> list[int]:
        """The earlier runs of a slot that agree with this one, which is kept for later ones."""
        runs = self._group(group, version).runs.setdefault(slot, {})
        agrees = [number for number in sorted(runs) if number < run and same(runs[number], result)]
        runs[run] = result
        return agrees

    def retire(self, group: int) -> None:
        """Forgets a group; its decoder is used again."""
        g = self._groups.pop(group, None)
        if g is not None and g.version in self._free:
            g.decoder.reset()
            self._free[g.version].append(g.decoder)

    def forget(self, version: int) -> None:
        """No group of this version is left, nor will there be one."""
        self._free.pop(version, None)

    def _group(self, group: int, version: int) -> _Group:
        g = self._groups.get(group)
        if g is None:
            free = self._free.setdefault(version, [])
            decoder = free.pop() if free else self._served[version].scheme.decoder()
            g = self._groups[group] = _Group(version, decoder)
        return g


def _syndrome(g: _Group) -> tuple[Array, Array]:
    """What each parity's result leaves over the data's, (r, *embedding), and the size of what it
    is the difference of, (r,); see `codedinv.verification.Check`."""
    code: Any = g.decoder.code  # type: ignore[attr-defined]  # `Served.consistency` asked for it
    data = np.stack([g.runs[slot][0] for slot in range(code.k)])
    parities = np.stack([g.runs[slot][0] for slot in range(code.k, code.n)])
    coefficients = np.asarray(code.coefficients, np.float32)
    syndrome = np.asarray(parities - np.tensordot(coefficients, data, 1), np.float32)
    return syndrome, np.asarray(_norms(parities) + np.abs(coefficients) @ _norms(data), np.float32)


def _norms(embeddings: Array) -> Array:
    return np.asarray(np.linalg.norm(embeddings.reshape(len(embeddings), -1), axis=1), np.float32)
