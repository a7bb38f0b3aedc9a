"""Target pools of a vision-language model, and what a cell is given: labels, candidates, names, texts, images."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from labelwright.annotators.annotator import load_matching, views_of
from labelwright.annotators.candidate_rules import mean_probs
from labelwright.benchmarking.grid import Given
from labelwright.data import noise, splits
from labelwright.data.images import decode_rgb
from labelwright.data.prepare import open_source
from labelwright.data.table import Images, LabelTable
from labelwright.encoders.templates import prompt_text_feats, templates_named
from labelwright.errors import ConfigError, DataError
from labelwright.train.processes import accelerator_for

LABELS_PER_CLASS = 2
SEEN_FRAC = 0.62  # of the classes have labels in "some_classes" (Menghini 2023, arXiv 2306.01669)
BLUR_RADIUS_PX = 2.0

# The number in an image's id that says whether the model was trained on it: the image's inside its class, the track's.
_NUMBER: Mapping[str, tuple[str, Callable[[int], bool]]] = {
    "cifar10": (r"(?:^|/)(\d+)\.\w+$", lambda number: number >= 2500),
    "gtsrb": (r"(?:^|/)(\d+)_\d+\.\w+$", lambda track: track % 2 == 1),
}

_CONVERTED: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "negative": ImageOps.invert,
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(BLUR_RADIUS_PX)),
}


def target_pool(table: LabelTable, dataset: str) -> LabelTable:
    """The training images that the benchmark's model was not trained on; of a set that it has no share in, all of them.

    CIFAR-10: file numbers from 2500 on inside each class (``2500.jpg``). GTSRB: odd tracks (``TRACK_FRAME.jpg``); all
    frames of a track are on one side.

    Raises: DataError naming an image whose id does not hold the number.
    """
    if dataset not in _NUMBER:
        return table
    pattern, is_target = _NUMBER[dataset]
    rows = []
    for row, name in enumerate(table.ids.to_pylist()):
        found = re.search(pattern, name)
        if found is None:
            raise DataError(
                f"the id {name!r} of row {row} does not say whether the image belongs to the target pool of {dataset}",
                fix="use files with the authors' image paths: airplane/2500.jpg, 00000/00001_00000.jpg",
            )
        if is_target(int(found[1])):
            rows.append(row)
    return table.subset(np.array(rows, dtype=np.int64))


def as_given(pool: LabelTable, given: Given, *, seed: int, probs: NDArray[np.float32] | None = None) -> LabelTable:
    """The pool of N labelled images as a cell is given it; where any labels are hidden, the truth is kept for scoring.

    Candidates that are made up come from the truth, and are all that training sees of it; those by a weak model's doubt
    take its ``probs`` [N, C]. All that is drawn is drawn by ``seed``.
    """
    if given.share < 1:
        rows = share_of(len(pool), given.share, seed=seed)
        pool, probs = pool.subset(rows), None if probs is None else probs[rows]
    names = with_nonsense(pool.class_names, given.n_nonsense, seed=seed)
    pool = dataclasses.replace(pool, class_names=names)
    if given.labels == "all":
        return pool
    n_classes = len(names)
    if given.labels == "open_world":
        return _open_world(pool, given, seed=seed)
    is_kept = np.zeros(len(pool), dtype=bool)
    n_few = LABELS_PER_CLASS if given.labels in ("few", "few_alone") else given.n_verified
    if n_few:
        kept, _ = splits.few_shot(pool.labels, per_class=n_few, n_classes=n_classes, seed=seed)
        if given.labels == "few_alone":
            return pool.subset(kept)
        is_kept[kept] = True
    elif given.labels == "some_classes":
        seen, _ = splits.seen_unseen(n_classes, seen_frac=SEEN_FRAC, seed=seed)
        is_kept = np.isin(pool.labels, seen)
    labels = np.where(is_kept, pool.labels, -1).astype(np.int32)
    hidden = dataclasses.replace(pool, labels=labels, truth=pool.labels.copy(), truth_names=names)
    if given.guessing is None or given.guessing.by == "model":
        return hidden
    q, eta = given.guessing.q, given.guessing.eta
    if given.guessing.by == "chance":
        sets = noise.candidate_sets(pool.labels, n_classes=n_classes, q=q, eta=eta, seed=seed)
    else:
        assert probs is not None, "candidates by a model's doubt need its probabilities"
        sets = noise.instance_dependent(probs, pool.labels, n_classes=n_classes, rate=q, eta=eta, seed=seed)
    return dataclasses.replace(hidden, candidates=sets)


def _open_world(pool: LabelTable, given: Given, *, seed: int) -> LabelTable:
    """Some images of the first classes labelled; of the others nothing is known, not even the names."""
    labelled, unlabelled = splits.seen_novel(
        pool.labels, seen=given.n_seen, labelled_frac=given.labelled_frac, seed=seed
    )
    if given.novel_ratio > 1:
        tail = splits.long_tail(
            pool.labels[unlabelled], n_classes=len(pool.class_names), ratio=given.novel_ratio, seed=seed
        )
        unlabelled = unlabelled[tail]
    rows = np.sort(np.concatenate([labelled, unlabelled]))
    truth = pool.labels[rows].astype(np.int32)
    labels = np.where(np.isin(rows, labelled), truth, -1).astype(np.int32)
    names = pool.class_names
    return dataclasses.replace(
        pool.subset(rows), labels=labels, class_names=names[: given.n_seen], truth=truth, truth_names=names
    )


def share_of(n: int, share: float, *, seed: int) -> NDArray[np.int64]:
    """Rows, ascending, of a share of ``n`` images; a smaller share of the same seed lies inside a larger one.

    Example:
      >>> share_of(10, 0.2, seed=0).tolist(), share_of(10, 0.4, seed=0).tolist()
      ([4, 6], [2, 4, 6, 7])
    """
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[: max(1, round(share * n))]).astype(np.int64)


def probs_of(pool: LabelTable, model: str, *, templates: str, device: str) -> NDArray[np.float32]:
    """What a vision-language model thinks of the images: mean probability over the prompts, [N, C] float32."""
    on = accelerator_for(device).device
    encoder = load_matching(model, device=on, precision="auto")
    source = open_source(pool, classes=None, size_px=encoder.tower.stats.size_px)
    prompts = prompt_text_feats(encoder.tower.text_feats, pool.class_names, templates_named(templates))
    chunks = views_of(source, encoder, on).feats()
    probs = torch.cat([mean_probs(z, prompts, encoder.tower.logit_scale)[0].cpu() for z in chunks])
    return probs.numpy()


def with_nonsense(class_names: Sequence[str], n: int, *, seed: int) -> tuple[str, ...]:
    """The class names with ``n`` of them, drawn by the seed, replaced by made-up words.

    Example:
      >>> with_nonsense(["cat", "dog", "owl"], 2, seed=0)
      ('vomekag', 'dog', 'batovip')
    """
    names = list(class_names)
    draw = np.random.default_rng(seed)
    words: dict[str, None] = {}
    while len(words) < n:
        pairs = [draw.choice(list("bdfgklmnprtvz")) + draw.choice(list("aeiou")) for _ in range(3)]
        words["".join(pairs) + str(draw.choice(list("gknprx")))] = None
    for c, word in zip(sorted(draw.permutation(len(names))[:n].tolist()), words, strict=True):
        names[c] = word
    return tuple(names)


def converted(table: LabelTable, images: str) -> LabelTable:
    """The table with every image transformed in the same way (see `Given`), decoded and held in memory, as PNG."""
    if images == "plain":
        return table
    change = _CONVERTED[images]
    cells = []
    for some in np.array_split(np.arange(len(table)), max(1, len(table) // 1024)):
        for source in table.images.sources(some):
            encoded = io.BytesIO()
            change(decode_rgb(source)).save(encoded, "PNG", compress_level=1)
            cells.append({"bytes": encoded.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(decode=False)})
    changed = datasets.Dataset.from_dict({"image": cells}, features=features)
    return dataclasses.replace(table, images=Images(dataset=changed))


def descriptions_of(
    path: str | Path | None, model: str, dataset: str, official: Sequence[str], names: Sequence[str]
) -> dict[str, list[str]]:
    """How the classes look, under the ``names`` [C] that a cell uses for the ``official`` ones of the file.

    Args:
      path: JSON, {dataset: {class: text or texts}}; None = descriptions.json beside the model's folder.

    Raises: ConfigError if there is no such file; DataError if it does not describe the data set.
    """
    file = Path(model).expanduser().parent / "descriptions.json" if path is None else Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"no descriptions: there is no {file}", fix="name a JSON file with --descriptions")
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))[dataset]
        return {names[official.index(key)]: [v] if isinstance(v, str) else list(v) for key, v in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file} does not describe the classes of {dataset} ({type(error).__name__}: {error})",
            fix='write {"' + dataset + '": {class name: [texts]}}',
        ) from error
