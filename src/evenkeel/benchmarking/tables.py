"""The benchmark tables: data, cells, schedules and published numbers, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
class Cell:
    """One column of a grid: a method with the settings that make it this cell.

    Attributes:
      title: what the table prints.
      method: name in methods.registry.METHODS.
      settings: fields of the method's Config.
      reduced: further settings at the reduced schedule only.
      published: accuracy in percent at the full schedule, where there is one.
    """

    title: str
    method: str
    settings: Mapping[str, object] = field(default_factory=dict)
    reduced: Mapping[str, object] = field(default_factory=dict)
    published: float | None = None

    @property
    def key(self) -> str:
        """Folder of this cell: the method and its settings.

        Example:
          >>> Cell("T0 = 1", "cvs", {"switch_frac": 1.0}).key
          'cvs,switch_frac=1.0'
        """
        return ",".join([self.method, *(f"{key}={value}" for key, value in sorted(self.settings.items()))])


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

    def place(self, *, full: bool) -> str:
        """Folder of all cells on these images and this schedule: tables that agree on them share their cells.

        Example:
          >>> TABLES["ablation"].place(full=False) == TABLES["cifar10-lt-100"].place(full=False)
          True
        """
        parts = [self.dataset, f"ratio{self.ratio:g}" if self.ratio else "whole"]
        if full:
            return "-".join([*parts, "full"])
        parts += [f"max{self.n_max}"] if self.n_max else []
        parts += [f"tracks{self.track_frac:g}"] if self.track_frac else []
        return "-".join([*parts, f"epochs{self.epochs}", f"batch{self.batch_size}"])


def _main(published: Mapping[str, float]) -> dict[str, Cell]:
    return {
        "ce": Cell("Cross-entropy", "ce", published=published.get("ce")),
        # Deferred weights get half of a short run, as the second phase of CVS does: a fifth of it moves nothing.
        "ldam_drw": Cell("LDAM + DRW", "ldam_drw", reduced={"drw_from_frac": 0.5}, published=published.get("ldam_drw")),
        "la": Cell("Logit adjustment", "la", published=published.get("la")),
        "vs": Cell("Vector scaling, gamma 0.05", "vs", published=published.get("vs")),
        "cvs": Cell("CVS", "cvs", published=published.get("cvs")),
    }


_AUTHORS = "the CVS authors' README, conference version; ResNet-32, 200 epochs (the row CVS is their VS+ADRW+TLA)"

TABLES: Mapping[str, BenchTable] = {
    "cifar10-lt-100": BenchTable(
        "CIFAR-10-LT, ratio 100",
        "cifar10",
        {
            **_main({"ce": 71.25, "ldam_drw": 77.97, "vs": 80.29, "cvs": 80.81}),
            "vs_strong": Cell("Vector scaling, gamma 0.15", "vs", {"gamma": 0.15}, published=80.29),
        },
        ratio=100,
        source=_AUTHORS,
    ),
    "cifar10-lt-10": BenchTable(
        "CIFAR-10-LT, ratio 10",
        "cifar10",
        _main({"ce": 86.74, "ldam_drw": 87.96, "vs": 88.74, "cvs": 88.86}),
        ratio=10,
        n_max=2500,
        epochs=3,
        source=_AUTHORS,
    ),
    "gtsrb": BenchTable(
        "GTSRB, naturally long-tailed",
        "gtsrb",
        _main({}),
        track_frac=0.2,
        batch_size=32,
        source="none for these methods",
    ),
    "ablation": BenchTable(
        "Ablation on CIFAR-10-LT, ratio 100: CE, LA, VS, MLA only, CLA only, CVS",
        "cifar10",
        {
            "ce": Cell("Cross-entropy", "ce"),
            "la": Cell("LA", "la"),
            "vs": Cell("VS", "vs"),
            "mla_only": Cell("MLA only", "cvs", {"switch_frac": 1.0}),
            "cla_only": Cell("CLA + re-weighting only", "cvs", {"switch_frac": 0.0}),
            "cvs": Cell("CVS", "cvs"),
        },
        ratio=100,
    ),
    "switch": BenchTable(
        "T0 on CIFAR-10-LT, ratio 100: share of the epochs before CLA + re-weighting",
        "cifar10",
        {
            "0": Cell("T0 = 0 (CLA only)", "cvs", {"switch_frac": 0.0}),
            "cvs": Cell("T0 = 0.5 (default of a short run)", "cvs"),
            "0.8": Cell("T0 = 0.8 (default from 100 epochs on)", "cvs", {"switch_frac": 0.8}),
            "1": Cell("T0 = 1 (MLA only)", "cvs", {"switch_frac": 1.0}),
        },
        ratio=100,
    ),
    "kappa": BenchTable(
        "Slopes on CIFAR-10-LT, ratio 100: where they are fitted, how, and which way they act",
        "cifar10",
        {
            "none": Cell("kappa = 1", "cvs", {"kappa_from": "none"}),
            "reference": Cell(
                "1 / slope, training batches, clamp 0.05-0.2 (reference run)",
                "cvs",
                {"kappa_from": "batches", "kappa_is": "inverse_slope", "kappa_clamp": "0.05,0.2", "kappa_shrink": None},
            ),
            "heldout_inverse": Cell(
                "1 / slope, held out, shrunk", "cvs", {"kappa_from": "heldout", "kappa_is": "inverse_slope"}
            ),
            "cvs": Cell("slope, held out, shrunk (default)", "cvs"),
        },
        ratio=100,
    ),
}
"""Every table by the name that ``evenkeel bench --table`` takes."""
