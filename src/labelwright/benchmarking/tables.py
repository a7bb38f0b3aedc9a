"""The benchmark tables by name: those of CVS here, those of CAP and Co-Reg from their own files."""

from __future__ import annotations

from collections.abc import Mapping

from labelwright.benchmarking.cap_tables import CAP_TABLES
from labelwright.benchmarking.coreg_tables import COREG_TABLES
from labelwright.benchmarking.grid import BenchTable, Cell
from labelwright.benchmarking.lps_tables import LPS_TABLES


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

# The default below 80 epochs; from there on `fit` takes the slopes of the reference run (methods/cvs.py).
_HELD_OUT = ("CVS, slopes from images held out", "cvs")

_AT_LENGTH: Mapping[str, object] = {"epochs": 80, "batch_size": 128, "schedule": "step"}


def _at_length(title: str, method: str, **settings: object) -> Cell:
    return Cell(title, method, {**_AT_LENGTH, **settings})


_CVS_TABLES: Mapping[str, BenchTable] = {
    "cifar10-lt-100": BenchTable(
        "CIFAR-10-LT, ratio 100",
        "cifar10",
        {
            **_main({"ce": 71.25, "ldam_drw": 77.97, "vs": 80.29, "cvs": 80.81}),
            "vs_strong": Cell("Vector scaling, gamma 0.15", "vs", {"gamma": 0.15}, published=80.29),
            "cvs_heldout": Cell(*_HELD_OUT, {"kappa_from": "heldout"}, published=80.81),
            "vs_first": Cell(
                "CVS, held out, log prior in phase 1, too",
                "cvs",
                {"adjust": "la", "tau": 0.0, "kappa_from": "heldout"},
                published=80.81,
            ),
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
            "0.8": Cell("T0 = 0.8 (default from 80 epochs on)", "cvs", {"switch_frac": 0.8}),
            "1": Cell("T0 = 1 (MLA only)", "cvs", {"switch_frac": 1.0}),
        },
        ratio=100,
    ),
    # The published schedule in short: 4,958 images that a network nearly fits, in minutes.
    "cifar10-lt-16px": BenchTable(
        "CIFAR-10-LT, ratio 100, reduced to 16 px and 2,000 images of the largest class, 80 epochs",
        "cifar10",
        {
            "ce": _at_length("Cross-entropy", "ce"),
            "ldam_drw": _at_length("LDAM + DRW", "ldam_drw"),
            "la": _at_length("Logit adjustment", "la"),
            "vs_strong": _at_length("Vector scaling, gamma 0.15", "vs", gamma=0.15),
            "cvs": _at_length("CVS", "cvs"),
            "cvs_heldout": _at_length(*_HELD_OUT, kappa_from="heldout"),
            "cla_only": _at_length("CLA + re-weighting only", "cvs", switch_frac=0.0, kappa_from="heldout"),
            "vs_first": _at_length(
                "CVS, held out, log prior in phase 1, too", "cvs", adjust="la", tau=0.0, kappa_from="heldout"
            ),
        },
        ratio=100,
        n_max=2000,
        network="resnet32",
        size_px=16,
        schedule="80 epochs, batch 128, lr 0.1, x0.1 at 80% and 90%",
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

GROUPS: Mapping[str, Mapping[str, BenchTable]] = {
    "Long-tailed labels: cvs": _CVS_TABLES,
    "Class names instead of labels: cap": CAP_TABLES,
    "Candidate labels: coreg": COREG_TABLES,
    "Classes without a label or a name: lps": LPS_TABLES,
}
"""What the tables are about -> their names -> they."""

TABLES = {name: table for tables in GROUPS.values() for name, table in tables.items()}
"""Every table by the name that ``labelwright bench --table`` takes."""
