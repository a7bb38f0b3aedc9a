"""annotators/reliability.py: what is said of annotators."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from labelwright.annotators.reliability import reliability_lines, reliability_of
from labelwright.data.table import Images, LabelTable


def table_of(**votes: np.ndarray) -> LabelTable:
    columns = np.stack(list(votes.values()), axis=1).astype(np.int32)
    n = len(columns)
    ids = pa.array([str(i) for i in range(n)], pa.large_string())
    names = ("cat", "dog", "owl")
    return LabelTable(Images(ids), ids, np.full(n, -1, np.int32), names, votes=columns, annotators=tuple(votes))


def test_reliability_of__a_column_that_is_there_twice_is_named() -> None:
    draw = np.random.default_rng(0)
    truth = np.arange(120) % 3
    ann, bob, cyd = (np.where(draw.random(120) < 0.7, truth, draw.integers(0, 3, 120)) for _ in range(3))
    found = reliability_of(table_of(ann=ann, bob=bob, cyd=cyd, ann2=ann))
    assert found is not None
    assert found["copies"] == [["ann", "ann2"]]
    assert reliability_lines(found)[-1].startswith("annotators ann, ann2: the same 120 answers")
    for table in (
        table_of(ann=ann, bob=bob, cyd=cyd),
        table_of(ann=truth, bob=truth, cyd=np.where(np.arange(120) < 6, 2 - truth, truth)),  # right on easy images
        table_of(ann=ann, bob=ann),  # nobody contradicts them
        table_of(ann=ann[:40], bob=bob[:40], ann2=ann[:40]),
    ):
        found = reliability_of(table)
        assert found is not None
        assert found["copies"] == []
