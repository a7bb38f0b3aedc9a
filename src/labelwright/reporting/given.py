"""The parts of a report about given labels: accuracy against class size, and given against predicted labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from labelwright.metrics.classification import GROUPS
from labelwright.reporting.checks import is_given
from labelwright.reporting.sections import Panel, Table
from labelwright.reporting.svg import Point, dots
from labelwright.run_folder import Run
from labelwright.wording import number, percent

PER_DOT = 10  # images: of fewer a dot says nothing


def size_panels(run: Run) -> list[Panel]:
    """Accuracy of each class against its number of labelled images; nothing where the sizes hardly differ.

    Example:
      >>> test = {"per_class": [1.0, 0.5, 0.2], "n_per_class": [20, 20, 20]}
      >>> run = Run("run", summary={"test": test}, data={"class_names": ["a", "b", "c"], "train_counts": [90, 30, 3]})
      >>> size_panels(run)[0].charts[0].finding
      'Small classes are recognised less often: 20.0% of the smallest third, 100.0% of the largest.'
    """
    names, counts, recall = run.class_names, run.counts, run.test.get("per_class") or []
    if not names or len(counts) != len(names) or len(recall) != len(names) or max(counts) < 3 * max(1, min(counts)):
        return []
    sizes = run.test.get("n_per_class") or [0] * len(names)
    found = []
    for name, n, right, n_test in zip(names, counts, recall, sizes, strict=True):
        if right is None or n < 1:
            continue
        found.append((n, right, n_test, name))
    if len(found) < 3:
        return []
    found.sort()
    third = max(1, len(found) // 3)
    (small, err), (large, other) = _recognised(found[:third]), _recognised(found[-third:])
    shares, title = (
        f"{percent(small)} of the smallest third, {percent(large)} of the largest",
        "Accuracy against class size",
    )
    if abs(small - large) <= max(0.02, 2 * math.hypot(err, other)):
        words = f"Class size makes no difference that {sum(n for *_, n, _ in found):,} test images show: {shares}."
        return [Panel(title, [words], _group_table(run), [])]
    finding = f"Small classes are recognised {'less' if small < large else 'more'} often: {shares}."
    chart = dots(
        "Recognised, by number of labelled images",
        finding,
        _by_size(found),
        x_title="labelled training images (log scale)",
        y_title="share recognised",
        is_log=True,
    )
    return [Panel(title, [], _group_table(run), [chart])]


def _recognised(classes: Sequence[tuple[int, float, int, str]]) -> tuple[float, float]:
    """Mean share recognised of classes, and its standard error: an image more of each, so that none is certain."""
    variance = sum(_variance(right, n) for _, right, n, _ in classes)
    return sum(right for _, right, *_ in classes) / len(classes), math.sqrt(variance) / len(classes)


def _variance(right: float, n: int) -> float:
    share = (right * n + 1) / (n + 2)
    return share * (1 - share) / (n + 2)


def _by_size(classes: Sequence[tuple[int, float, int, str]]) -> list[Point]:
    """Dots of classes (labelled, recognised, test images, name), those of like size joined until each has
    `PER_DOT` test images: of fewer nothing can be seen.

    Example:
      >>> [round(v, 2) for v in _by_size([(3, 0.0, 2, "owl"), (5, 1.0, 8, "cat"), (90, 0.5, 100, "dog")])[0][:2]]
      [3.87, 0.8]
    """
    groups: list[list[tuple[int, float, int, str]]] = [[]]
    for each in classes:
        if sum(n for *_, n, _ in groups[-1]) >= PER_DOT:
            groups.append([])
        groups[-1].append(each)
    if len(groups) > 1 and 0 < sum(n for *_, n, _ in groups[-1]) < PER_DOT:
        groups[-2:] = [groups[-2] + groups[-1]]
    found = []
    for some in groups:
        n = sum(each[2] for each in some)
        right = sum(each[1] * each[2] for each in some) / n if n else sum(each[1] for each in some) / len(some)
        sizes = f"{some[0][0]:,} to {some[-1][0]:,}" if some[0][0] < some[-1][0] else f"{some[0][0]:,}"
        what = some[0][3] if len(some) == 1 else f"{len(some)} classes"
        size = math.exp(sum(math.log(each[0]) for each in some) / len(some))
        found.append((size, right, *interval(right, n), f"{what}, {sizes} labelled"))
    return found


def interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share of n; the share itself where n is not known.

    Example:
      >>> [round(end, 3) for end in interval(0.5, 100)]
      [0.404, 0.596]
    """
    if n < 1:
        return share, share
    from scipy.stats import binomtest  # takes a second to load

    found = binomtest(round(share * n), n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def _group_table(run: Run) -> list[Table]:
    sizes = run.test.get("group_sizes") or {}
    groups = [group for group in GROUPS if run.test.get(group) is not None and sizes.get(group)]
    if not run.has_groups or len(groups) < 2:
        return []
    bounds = run.test.get("group_thresholds") or {}
    many, few = bounds.get("many_above"), bounds.get("few_below")
    words = {"many": f" (over {many})", "medium": f" ({few} to {many})", "few": f" (under {few})"} if bounds else {}
    rows = [
        (group.capitalize() + words.get(group, ""), number(sizes[group]), percent(run.test[group])) for group in groups
    ]
    return [Table("By number of labelled images", ("Classes with", "Classes", "Recognised, mean"), rows)]


def given_panels(run: Run) -> list[Panel]:
    """Given labels that the model would not have given, by pair of classes; nothing where nearly all agree.

    Example:
      >>> import pyarrow as pa
      >>> rows = {"id": ["1", "2", "3"], "label": ["a"] * 3, "trust": [0.1, 0.9, 0.2], "runner_up": ["b"] * 3}
      >>> run = Run("run", summary={}, labels=pa.table(rows | {"source": ["given"] * 3}))
      >>> given_panels(run)[0].words[0]
      'The model would label 2 of 3 given labels otherwise (66.7%).'
    """
    if run.labels is None or not {"source", "trust", "runner_up"} <= set(run.labels.column_names):
        return []
    if (run.summary.get("audit") or {}).get("n_suspected", 0) is None:  # a network that learned the labels judges none
        return []
    given = run.labels.filter(pa.array(is_given(run.labels)))
    off = given.filter(pc.less(given["trust"], 0.5))
    if not len(off):
        return []
    pairs = Counter(zip(off["label"].to_pylist(), off["runner_up"].to_pylist(), strict=True))
    rows = [(str(a), str(b), f"{n:,}") for (a, b), n in pairs.most_common(10)]
    if pairs.most_common(1)[0][1] < 2:  # single ones are among the images to check
        return []
    share = percent(len(off) / len(given))
    words = f"The model would label {len(off):,} of {len(given):,} given labels otherwise ({share})."
    table = Table("Given against predicted", ("Given", "The model says", "Images"), rows)
    return [
        Panel("Given labels against the model", [words, "These are its mistakes, or those of the labels."], [table])
    ]
