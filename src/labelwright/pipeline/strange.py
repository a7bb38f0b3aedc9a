"""Images of no class in a run: what is compared of images, what there is to say of them, and clusters of new ones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from labelwright.data.cache import StreamedPixels
from labelwright.data.prepare import Source
from labelwright.data.views import ViewSettings
from labelwright.labels.kmeans import semi_supervised_kmeans
from labelwright.labels.n_novel import HANDFUL, estimate_n_novel
from labelwright.pipeline.saved_model import Strange
from labelwright.train.predict import Answers
from labelwright.train.processes import autocast_dtype
from labelwright.trust.strangers import Looks, Strangers, fit_strangers, small_pixels
from labelwright.wording import counted, percent

if TYPE_CHECKING:
    from labelwright.pipeline.job import Job
    from labelwright.pipeline.resolve import Plan

EXPECTED = 0.01  # share of images of the classes that are taken for strangers
LEAST_HELD_OUT = 100  # images from which bars may be theirs
LEAST_NEW = 20  # images of no class from which clusters are looked for
SHOWN = 20  # strangest images that summary.json names


def looks_of(net: Any, source: Source, view: ViewSettings, device: torch.device, precision: str) -> Looks:
    """What is compared of the images of a source.

    Args:
      net: a saved classifier; its backbone is asked where there are no stored features.
      source, view: the images and how they are seen.
    """
    views, dtype = source.views(view), autocast_dtype(device, precision)
    has_pixels = source.pixels is not None and not isinstance(source.pixels, StreamedPixels)  # not decoded once more

    def looks(rows: Tensor) -> tuple[Tensor, ...]:
        x = views.batch(rows, "clean", seed=0, device=device)
        if source.stored is not None:
            seen = source.pixel_views(view).batch(rows, "clean", seed=0, device=device) if has_pixels else None
            return (x,) if seen is None else (x, small_pixels(seen))
        with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            return net.backbone.to(device).eval()(x).float(), small_pixels(x)

    return looks


def strangers_of(plan: Plan, job: Job, net: Any, own: Answers) -> tuple[Strangers, Tensor, Tensor | None] | None:
    """What tells images of no class, of a run; with the scores of its training images, and of those held out."""
    prepared, device, precision = job.prepared, plan.accelerator.device, plan.settings.precision
    table = prepared.train.table
    looks = looks_of(net, prepared.train, prepared.view, device, precision)
    test, held_out = prepared.test, None
    if test is not None and prepared.test_is != "given":
        held_out = (looks_of(net, test, prepared.view, device, precision), len(test.table))
    is_by_heart = not job.build.is_frozen and held_out is not None and held_out[1] >= LEAST_HELD_OUT
    found = fit_strangers(
        looks,
        torch.from_numpy(table.labels).long(),
        own.predicted,
        n_classes=len(table.class_names),
        groups=None if table.groups is None else torch.from_numpy(table.groups),
        held_out=held_out if is_by_heart else None,
    )
    if found is None:
        return None
    strangers, scores = found
    if held_out is None:
        return strangers, scores, None
    others = [strangers.score(held_out[0](rows)) for rows in torch.split(torch.arange(held_out[1]), 4_096)]
    return strangers, scores, torch.cat(others)


def facts_of(rows: pa.Table, threshold: float | None) -> dict[str, Any]:
    """What summary.json says of images of no class.

    Args:
      rows: of `pipeline.label.label_rows`.
      threshold: of their strangeness; None of a model that cannot tell.

    Returns: n and share of the labels that are predicted, threshold, says, and rows: ids of the strangest of them.

    Example:
      >>> found = facts_of(pa.table({"source": ["predicted"] * 2, "decision": ["unknown", "review"],
      ...     "strangeness": [1.0, 0.2], "id": ["a", "b"]}), 0.99)
      >>> found["n"], found["rows"], found["says"]
      (1, ['a'], '1 of 2 images (50.0%) look like no class: their decision is unknown. About 1% is usual.')
    """
    if threshold is None:
        says = "Images of no class are not detected: the model says nothing of what its training images look like."
        return {"n": 0, "share": None, "threshold": None, "says": says, "rows": []}
    asked = pc.not_equal(rows["source"], "given")
    unknown = rows.filter(pc.and_(asked, pc.equal(rows["decision"], "unknown"))).sort_by(
        [("strangeness", "descending")]
    )
    n, n_asked = len(unknown), pc.sum(asked).as_py() or 0
    share = n / max(1, n_asked)
    says = "Every image has a label of yours; new ones that look like no class will be marked."
    if n_asked:
        look = "looks" if n == 1 and n_asked == 1 else "look"
        says = (
            f"{n:,} of {counted(n_asked, 'image')} ({percent(share)}) {look} like no class: "
            "their decision is unknown. About 1% is usual."
        )
    return {
        "n": n,
        "share": round(share, 4),
        "threshold": round(threshold, 4),
        "says": says,
        "rows": unknown["id"][:SHOWN].to_pylist(),
    }


def with_new(rows: pa.Table, strange: Strange, class_names: Sequence[str]) -> pa.Table:
    """The rows with new classes for the images of no class: "new 1", "new 2", ..., the largest first.

    How many is estimated from their features and the references of the model (`labels.n_novel`), and k-means, in which
    these keep their classes, says which images are whose. What stays with a known class, in a handful or among fewer
    images than `LEAST_NEW` or than chance takes for strangers, stays as it was.

    Args:
      rows: N rows of `pipeline.label.label_rows`.
      strange: of the images.
      class_names: C names, which new ones differ from.

    Returns: rows whose label is the new class and whose runner_up is what the classifier says, with source "cluster".
    """
    at = (strange.scores > 1).nonzero().flatten()
    usual = EXPECTED * len(rows)
    if len(at) < max(LEAST_NEW, usual + 3 * usual**0.5):
        return rows
    strangers = strange.strangers
    used, known = torch.unique(strangers.classes, return_inverse=True)  # classes that have references
    feats = torch.cat([strangers.references[0].float(), strange.feats])
    labels = torch.cat([known, torch.full((len(at),), -1)])
    n_seen = len(used)
    n_new = estimate_n_novel(feats, labels, n_seen=n_seen, fewest=1)["n_novel"]
    found = semi_supervised_kmeans(feats, labels, n_classes=n_seen + n_new, n_seen=n_seen).assigned[len(known) :]
    sizes = torch.bincount(found, minlength=n_seen + n_new)
    sizes[:n_seen] = 0
    label, source, runner_up = (rows[key].to_pylist() for key in ("label", "source", "runner_up"))
    names = (name for i in itertools.count(1) if (name := f"new {i}") not in class_names)
    for cluster in sizes.argsort(descending=True, stable=True).tolist():
        if sizes[cluster] < HANDFUL:
            break
        name = next(names)
        for row in at[found == cluster].tolist():
            label[row], source[row], runner_up[row] = name, "cluster", label[row]
    for key, column in (("label", label), ("source", source), ("runner_up", runner_up)):
        rows = rows.set_column(rows.schema.get_field_index(key), key, pa.array(column, pa.string()))
    return rows
