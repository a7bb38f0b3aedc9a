"""What a benchmark table is made of: cells, and the images and schedule that they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

FULL: Mapping[str, object] = {
    "epochs": 200,
    "batch_size": 128,
    "lr": 0.1,
    "weight_decay": 2e-4,
    "schedule": "step",
    "warmup_epochs": 5.0,
}
"""The published schedule (methods of the CVS paper: 200 epochs, x0.1 at 80% and 90%)."""


@dataclass(frozen=True)
class Guessing:
    """Where the candidate labels of a cell come from.

    Attributes:
      by: the model, asked by `fit`; or made up from the truth inside the benchmark: chance (data.noise.candidate_sets)
        or doubt (data.noise.instance_dependent: the wrong labels that the model likes).
      rule, top_k: of the model, see annotators.candidate_rules.pick.
      q, eta: of those made up: share of the wrong labels that are candidates, share of the images without their truth.
    """

    by: Literal["model", "chance", "doubt"] = "model"
    rule: Literal["union", "top_k", "ratio", "mean"] = "top_k"
    top_k: int = 5
    q: float = 0.0
    eta: float = 0.0

    @property
    def parts(self) -> list[str]:
        """The same for the folder of a cell.

        Example:
          >>> Guessing().parts, Guessing(rule="union").parts, Guessing("chance", q=0.3, eta=0.2).parts
          (['top_k=5'], ['union'], ['chance', 'q=0.3', 'eta=0.2'])
        """
        if self.by == "model":
            return [f"top_k={self.top_k}"] if self.rule == "top_k" else [self.rule]
        return [self.by, f"q={self.q:g}", f"eta={self.eta:g}"]


@dataclass(frozen=True)
class Given:
    """What a cell is given of a target pool (benchmarking.pools): labels, candidates, texts, and which images.

    Attributes:
      labels: of the pool's images: all; none; few (two of every class); few_alone (the same without the other
        images); some_classes (all of 62% of the classes); open_world (`labelled_frac` of the first `n_seen`
        classes, the names of the others unknown).
      templates: what class names are put into, see encoders.templates.templates_named.
      use_descriptions: texts of how the classes look are there as well.
      n_nonsense: classes whose name is a made-up word.
      images: as they are, or put out of the model's domain.
      guessing: where candidate labels come from; None = there are none.
      n_verified: images of every class that keep their label, beside those of ``labels="none"``.
      n_seen, labelled_frac: see labels.
      novel: what ``fit`` knows of the other classes: "known", their number, or "auto".
      novel_ratio: open_world: largest over smallest class of the unlabelled images, which are cut to a long tail.
      share: of the images, drawn by the seed without a look at their classes; the smaller shares lie in the larger.
      views: what a method of a pool learns from: stored features of the frozen model, or pixels, to tune it.
    """

    labels: Literal["all", "none", "few", "few_alone", "some_classes", "open_world"] = "none"
    templates: str = "{}"
    use_descriptions: bool = False
    n_nonsense: int = 0
    images: Literal["plain", "negative", "grey", "blurred"] = "plain"
    guessing: Guessing | None = None
    n_verified: int = 0
    n_seen: int = 0
    labelled_frac: float = 0.5
    novel: Literal["known", "auto"] = "known"
    novel_ratio: float = 1.0
    share: float = 1.0
    views: Literal["embeddings", "pixels"] = "embeddings"

    @property
    def parts(self) -> list[str]:
        """What differs from names alone, for the folder of a cell.

        Example:
          >>> Given().parts, Given(labels="few", templates="one", use_descriptions=True).parts
          ([], ['labels=few', 'templates=one', 'descriptions'])
        """
        found = [f"labels={self.labels}"] if self.labels != "none" else []
        if self.labels == "open_world":
            found += [f"seen={self.n_seen}", f"labelled={self.labelled_frac:g}"]
            found += ["novel=auto"] if self.novel == "auto" else []
            found += [f"ratio={self.novel_ratio:g}"] if self.novel_ratio > 1 else []
        found += [f"templates={self.templates}"] if self.templates != "{}" else []
        found += ["descriptions"] if self.use_descriptions else []
        found += [f"nonsense={self.n_nonsense}"] if self.n_nonsense else []
        found += [f"images={self.images}"] if self.images != "plain" else []
        found += self.guessing.parts if self.guessing is not None else []
        found += [f"verified={self.n_verified}"] if self.n_verified else []
        found += [f"share={self.share:g}"] if self.share < 1 else []
        return [*found, *(["pixels"] if self.views == "pixels" else [])]


@dataclass(frozen=True)
class Cell:
    """One row of a table: a method with the settings that make it this cell.

    Attributes:
      title: what the table prints.
      method: name in methods.registry.METHODS.
      settings: fields of the method's Config.
      reduced: further settings at the reduced schedule only.
      published: accuracy in percent at the full schedule, where there is one.
      given: what it is given of the images; None where that is every label.
      shows: the row's scores are those of what was trained, or of its annotator alone in the same run.
    """

    title: str
    method: str
    settings: Mapping[str, object] = field(default_factory=dict)
    reduced: Mapping[str, object] = field(default_factory=dict)
    published: float | None = None
    given: Given | None = None
    shows: Literal["trained", "annotator"] = "trained"

    @property
    def key(self) -> str:
        """Folder of this cell: the method, what it is given, and its settings.

        Example:
          >>> Cell("T0 = 1", "cvs", {"switch_frac": 1.0}).key
          'cvs,switch_frac=1.0'
        """
        given = [] if self.given is None else self.given.parts
        return ",".join([self.method, *given, *(f"{key}={value}" for key, value in sorted(self.settings.items()))])


@dataclass(frozen=True)
class BenchTable:
    """A grid of cells x seeds on one data set.

    Attributes:
      title: heading.
      dataset: name in data.cards.DATASETS.
      ratio: imbalance ratio to cut the training images to, None = as they are.
      n_max: images of the largest class after the cut (reduced schedule only), None = all.
      track_frac: share of the groups to keep (reduced schedule only), None = all.
      epochs, batch_size: of the reduced schedule; the rest is the methods' own defaults.
      cells: name -> cell.
      seeds: of the grid.
      source: of the published numbers.
      is_pool: the training images are a target pool, and a vision-language model that the user names is adapted to
        them; the schedule is the methods' own but for the settings of the cells.
      network: the cells carry their whole schedule and say what they are given; this network sees the pixels, from
        random weights or from those of a run of its kind that the user names.
      size_px: the images are reduced to this side, None = as they are.
      schedule: what is printed of the schedule; "" = made from the fields above.
      at_full: the table that is run in place of this one at the published schedule.
    """

    title: str
    dataset: str
    cells: Mapping[str, Cell]
    ratio: float | None = None
    n_max: int | None = None
    track_frac: float | None = None
    epochs: int = 6
    batch_size: int = 64  # half the published one: a short run needs the steps more than the images
    seeds: tuple[int, ...] = (0, 1, 2)
    source: str = ""
    is_pool: bool = False
    network: str | None = None
    size_px: int | None = None
    schedule: str = ""
    at_full: BenchTable | None = None

    def place(self, *, full: bool, model: str | None = None) -> str:
        """Folder of all cells on these images, this model and schedule: tables that agree on them share their cells.

        Example:
          >>> BenchTable("GTSRB", "gtsrb", {}, track_frac=0.2, epochs=3).place(full=False)
          'gtsrb-whole-tracks0.2-epochs3-batch64'
          >>> BenchTable("CAP", "gtsrb", {}, is_pool=True).place(full=False, model="models/tiny-clip")
          'gtsrb-pool-tiny-clip'
          >>> BenchTable("P", "cifar10", {}, network="resnet32").place(full=False, model="runs/simclr")
          'cifar10-whole-resnet32-from-simclr'
        """
        if self.is_pool:
            return f"{self.dataset}-pool-{Path(model or 'none').name}"
        parts = [self.dataset, f"ratio{self.ratio:g}" if self.ratio else "whole"]
        if full and self.network is None:
            return "-".join([*parts, "full"])
        parts += [f"max{self.n_max}"] if self.n_max else []
        parts += [f"tracks{self.track_frac:g}"] if self.track_frac else []
        parts += [f"{self.size_px}px"] if self.size_px else []
        own = [self.network] if self.network else [f"epochs{self.epochs}", f"batch{self.batch_size}"]
        own += [f"from-{Path(model).name}"] if model is not None else []
        return "-".join([*parts, *own])
