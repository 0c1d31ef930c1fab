"""The record of a long run says the same as the one that keeps everything, and does not grow."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codedinv.experiments.compact_record import CompactRecord
from codedinv.experiments.tally import Tally
from codedinv.experiments.traffic import Answer, Record

SOURCES = st.sampled_from(["exact", "reconstructed", "fallback", None])


@given(st.lists(SOURCES, min_size=1, max_size=30))
def test_it_tallies_what_a_plain_record_does(sources: list[str | None]) -> None:
    generator = np.random.default_rng(len(sources))
    labels = generator.integers(0, 3, len(sources))
    plain, compact = Record(len(sources)), CompactRecord(len(sources), 3)
    for number in generator.permutation(len(sources)).tolist():
        source = sources[number]
        outputs = None if source is None else generator.random(3, np.float32)
        error = RuntimeError("gone") if source is None else None
        took = float(generator.uniform(0.0, 0.1))
        answer = Answer(number, 0.5 * number, took, source, outputs, error)
        plain.add(answer)
        compact.add(answer)
        assert compact.tally(labels) == Tally.of(plain.answers(), labels)
    assert plain.wait(0.0)
    assert compact.wait(0.0)
    expected = sorted(plain.answers(), key=lambda a: a.query)
    for ours, theirs in zip(compact.answers(), expected, strict=True):
        assert (ours.query, ours.arrival_s, ours.latency_s, ours.source, ours.error) == (
            theirs.query, theirs.arrival_s, theirs.latency_s, theirs.source, theirs.error
        )  # fmt: skip
        np.testing.assert_array_equal(ours.outputs, theirs.outputs)


def test_an_answer_that_comes_twice_is_counted_twice() -> None:
    record = CompactRecord(3, 2)
    record.add(Answer(1, 0.0, 0.1, "exact", np.zeros(2, np.float32)))
    record.add(Answer(1, 0.0, 0.1, "exact", np.zeros(2, np.float32)))
    assert record.ends.tolist() == [0, 2, 0]


def test_it_takes_no_memory_as_it_fills() -> None:
    record = CompactRecord(20_000, 10)
    outputs = np.zeros(10, np.float32)
    record.add(Answer(0, 0.0, 0.1, "exact", outputs))
    gc.collect()
    tracemalloc.start()
    for number in range(1, 20_000):
        record.add(Answer(number, 0.0, 0.1, "exact", outputs))
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 20_000  # bytes: less than one for each
