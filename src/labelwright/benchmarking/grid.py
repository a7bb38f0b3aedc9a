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
    """Where the candidate labels of a cell come from."""

    # The model, asked by `fit`; or made up from the truth: by chance (data.noise.candidate_sets) or by doubt
    # (data.noise.instance_dependent: the wrong labels that the model likes).
    by: Literal["model", "chance", "doubt"] = "model"
    rule: Literal["union", "top_k", "ratio", "mean"] = "top_k"  # of the model, see annotators.candidate_rules.pick
    top_k: int = 5  # likewise
    q: float = 0.0  # of those made up: share of the wrong labels that are candidates
    eta: float = 0.0  # likewise: share of the images without their truth

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
    """What a cell is given of a target pool (benchmarking.pools): labels, candidates, texts, and which images."""

    # Labels of all images; of none; of two of every class (few; few_alone: without the other images); of all images of
    # 62% of the classes; or of `labelled_frac` of the first `n_seen` classes, the names of the others unknown.
    labels: Literal["all", "none", "few", "few_alone", "some_classes", "open_world"] = "none"
    templates: str = "{}"  # what class names are put into, see encoders.templates.templates_named
    use_descriptions: bool = False  # texts of how the classes look are there as well
    n_nonsense: int = 0  # classes whose name is a made-up word
    images: Literal["plain", "negative", "grey", "blurred"] = "plain"  # as they are, or out of the model's domain
    guessing: Guessing | None = None  # where candidate labels come from; None = there are none
    n_verified: int = 0  # images of every class that keep their label, with labels="none"
    n_seen: int = 0  # see labels
    labelled_frac: float = 0.5  # likewise
    novel: Literal["known", "auto"] = "known"  # the number of the other classes is given to `fit`, or estimated
    novel_ratio: float = 1.0  # open_world: the unlabelled images are cut to a long tail, largest over smallest class
    share: float = 1.0  # of the images, drawn without a look at their classes; smaller shares lie in larger ones
    views: Literal["embeddings", "pixels"] = "embeddings"  # stored features of the frozen model, or pixels, to tune it

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
    """One row of a table: a method with the settings that make it this cell."""

    title: str  # what the table prints
    method: str  # name in methods.registry.METHODS
    settings: Mapping[str, object] = field(default_factory=dict)  # fields of the method's Config
    reduced: Mapping[str, object] = field(default_factory=dict)  # further ones at the reduced schedule only
    published: float | None = None  # accuracy in percent at the full schedule, where there is one
    given: Given | None = None  # what it is given of the images; None where that is every label
    shows: Literal["trained", "annotator"] = "trained"  # the scores of what was trained, or of its annotator alone

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
    """A grid of cells x seeds on one data set."""

    title: str  # heading
    dataset: str  # name in data.cards.DATASETS
    cells: Mapping[str, Cell]
    ratio: float | None = None  # imbalance ratio that the training images are cut to, None = as they are
    n_max: int | None = None  # images of the largest class after the cut (reduced schedule only), None = all
    track_frac: float | None = None  # share of the groups to keep (reduced schedule only), None = all
    epochs: int = 6  # of the reduced schedule; what is not here are the methods' own defaults
    batch_size: int = 64  # half the published one: a short run needs the steps more than the images
    seeds: tuple[int, ...] = (0, 1, 2)
    source: str = ""  # of the published numbers
    # The training images are a target pool, and a vision-language model that the user names is adapted to them; the
    # schedule is the methods' own but for the settings of the cells.
    is_pool: bool = False
    # The cells carry their whole schedule and say what they are given; this network sees the pixels, from random
    # weights or from those of a run of its kind that the user names.
    network: str | None = None
    size_px: int | None = None  # the images are reduced to this side, None = as they are
    schedule: str = ""  # what is printed of the schedule; "" = made from the fields above
    at_full: BenchTable | None = None  # the table that is run in place of this one at the published schedule

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
