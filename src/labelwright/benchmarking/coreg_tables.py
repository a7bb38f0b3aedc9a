"""The tables of Co-Reg: candidate labels that may all be wrong, on stored features and on pixels, as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from labelwright.benchmarking.grid import BenchTable, Cell, Given, Guessing
from labelwright.methods.coreg_settings import PRESETS

BASELINE: Mapping[str, object] = {"epochs": 20, "lr": 0.05}
"""Settings of the baselines on stored features."""
COREG: Mapping[str, object] = {"epochs": 20, "queue_size": 2048}
"""Settings of Co-Reg on stored features; the rest are its own defaults."""


def _pixel_settings(*, epochs: int, partial_epochs: int) -> Mapping[str, Mapping[str, object]]:
    """Settings on pixels, by method, at a reduced schedule; they are part of the name of a cell's folder."""
    schedule = {"epochs": epochs, "batch_size": 64, "lr": 0.05}
    coreg = {**schedule, "partial_epochs": partial_epochs, "queue_size": 2048}
    return {"top1": schedule, "proden": schedule, "dividemix": schedule, "coreg": coreg}


PIXELS = _pixel_settings(epochs=16, partial_epochs=12)
PIXELS_40 = _pixel_settings(epochs=40, partial_epochs=28)
PIXELS_80 = _pixel_settings(epochs=80, partial_epochs=56)
_PIXELS_FULL: Mapping[str, object] = {"epochs": 800, "batch_size": 256, "lr": 0.01}  # Sec. 5.1, of the other methods

_BY_CHANCE = "candidates by chance (q 0.3, eta 0.2)"
BEST = Guessing(rule="top_k", top_k=5)
UNION = Guessing(rule="union")

_TITLES: Mapping[str, str] = {
    "cifar10": "CIFAR-10",
    "gtsrb": "GTSRB",
    "gtsrb-repaired": "GTSRB, names repaired by descriptions",
}
_BASELINES: Mapping[str, str] = {
    "kd": "Knowledge distillation",
    "top1": "Cross-entropy on the most probable candidate",
    "cc": "CC",
    "proden": "PRODEN",
    "crdpll": "CRDPLL",
    "pico": "PiCO",
    "dividemix": "DivideMix",
}
_PARTS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "coreg": ("Co-Reg", {}),
    "no_co_labels": ("each network on its own labels", {"networks": "apart"}),
    "no_prototypes": ("no prototypes", {"prototype_weight": 0.0}),
    "no_contrastive": ("no contrastive loss", {"contrastive_weight": 0.0}),
    "no_alignment": ("no alignment", {"use_alignment": False}),
}
_MORE_PARTS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "one_network": ("one network", {"networks": "one"}),
    "one_wide_network": ("one network of twice the capacity", {"networks": "one", "head_width": 512}),
    "warm_up_only": ("warm-up only", {"partial_epochs": COREG["epochs"]}),
}
_FROZEN_PARTS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "coreg_frozen": ("Co-Reg on frozen features", {}),
    "frozen_no_alignment": ("Co-Reg on frozen features: no alignment", {"use_alignment": False}),
    "frozen_no_guesses": ("Co-Reg on frozen features: guesses weigh nothing in the division", {"guess_strength": 0.0}),
}


def _given(name: str, *, guessing: Guessing = BEST, n_verified: int = 0, share: float = 1.0) -> Given:
    return Given(
        templates="photo27",
        use_descriptions=name.endswith("-repaired"),
        guessing=guessing,
        n_verified=n_verified,
        share=share,
    )


def _annotator(given: Given, title: str = "Zero-shot: the annotator alone") -> Cell:
    """What the annotator alone scores, read from the run of knowledge distillation on its guesses."""
    return Cell(title, "kd", BASELINE, given=given, shows="annotator")


def _trained(method: str, title: str, given: Given, more: Mapping[str, object] | None = None) -> Cell:
    own = {"coreg": COREG, "coreg_frozen": {}}.get(method, BASELINE)
    return Cell(title, method, {**own, **(more or {})}, given=given)


def _table(name: str, title: str, cells: Mapping[str, Cell], *, seeds: tuple[int, ...] = (0, 1, 2)) -> BenchTable:
    return BenchTable(
        title,
        name.removesuffix("-repaired"),
        cells,
        seeds=seeds,
        is_pool=True,
        schedule=(
            f"{COREG['epochs']} epochs on stored features of the un-augmented image and of 2 weak and 2 strong views; "
            f"baselines at lr {BASELINE['lr']}, Co-Reg at its own defaults with a queue of {COREG['queue_size']:,} "
            "keys, Co-Reg on frozen features at its own defaults (at most 8 epochs); candidates are the 5 likeliest "
            "classes by the mean over 27 prompts where no row says otherwise; "
            "pseudolabels and Gini are of the unlabelled images, by the class names alone → by the trained classifier"
        ),
    )


def _main(name: str) -> BenchTable:
    given, union = _given(name), _given(name, guessing=UNION)
    cells = {
        "zero_shot": _annotator(given),
        **{method: _trained(method, title, given) for method, title in _BASELINES.items()},
        "coreg": _trained("coreg", "Co-Reg", given),
        "coreg_frozen": _trained("coreg_frozen", "Co-Reg on frozen features", given),
        "kd-union": _trained("kd", "Union over prompts: knowledge distillation", union),
        "top1-union": _trained("top1", "Union over prompts: most probable candidate", union),
        "coreg-union": _trained("coreg", "Union over prompts: Co-Reg", union),
    }
    return _table(name, f"Candidates from a model on the target pool of {_TITLES[name]}", cells)


def _parts(name: str) -> BenchTable:
    cells = {
        part: _trained("coreg", title, _given(name), more) for part, (title, more) in {**_PARTS, **_MORE_PARTS}.items()
    }
    for part, (title, more) in _FROZEN_PARTS.items():
        cells[part] = _trained("coreg_frozen", title, _given(name), more)
    return _table(name, f"Co-Reg without its parts, {_TITLES[name]}", cells)


def _thresholds(name: str) -> BenchTable:
    cells = {}
    for tau in (0.1, 0.3, 0.5, 0.7, 0.9):
        own: Mapping[str, object] = {} if tau == 0.5 else {"threshold": tau}  # 0.5 is the default
        cells[f"{tau:g}"] = _trained("coreg", f"tau = {tau:g}", _given(name), own)
    return _table(name, f"Threshold of the division of Co-Reg, {_TITLES[name]}", cells)


def _set_sizes(name: str, sizes: tuple[int, ...]) -> BenchTable:
    """How many candidates of an image are kept, at most half of the classes, and by which rule."""
    cells = {}
    for k in sizes:
        given = _given(name, guessing=Guessing(rule="top_k", top_k=k))
        cells[f"best-{k}"] = _trained("coreg", "the likeliest class" if k == 1 else f"the {k} likeliest classes", given)
    cells["union"] = _trained("coreg", "union over prompts", _given(name, guessing=UNION))
    return _table(name, f"Candidates kept of an image, Co-Reg on {_TITLES[name]}", cells)


def _made_up(name: str) -> BenchTable:
    """Candidates by chance over share of wrong labels and of missing truths; and those that the model would doubt."""
    cells = {}
    methods = {**{method: _BASELINES[method] for method in ("kd", "top1", "proden")}, "coreg": "Co-Reg"}
    chance = [Guessing("chance", q=q, eta=eta) for q in (0.1, 0.3, 0.5) for eta in (0.0, 0.2, 0.4)]
    for guessing in [*chance, *(Guessing("doubt", q=0.3, eta=eta) for eta in (0.0, 0.2, 0.4))]:
        given = Given(templates="photo27", guessing=guessing)
        words = f"{guessing.by}, q {guessing.q:g}, eta {guessing.eta:g}"
        for method, title in methods.items():
            name_of_cell = f"{method}-{guessing.by}-{guessing.q:g}-{guessing.eta:g}"
            cells[name_of_cell] = _trained(method, f"{words}: {title}", given)
    return _table(name, f"Made-up candidates, {_TITLES[name]}: by chance, or those that the model likes", cells)


def _shares(name: str) -> BenchTable:
    cells = {}
    for share in (0.05, 0.1, 0.18, 0.4, 1.0):
        given = _given(name, share=share)
        cells[f"zero_shot-{share:g}"] = _annotator(given, f"{share:.0%}: the annotator alone")
        cells[f"kd-{share:g}"] = _trained("kd", f"{share:.0%}: knowledge distillation", given)
        cells[f"coreg-{share:g}"] = _trained("coreg", f"{share:.0%}: Co-Reg", given)
    return _table(name, f"Share of the target pool, {_TITLES[name]}", cells)


def _few(name: str) -> BenchTable:
    cells = {}
    for n in (0, 1, 2, 5, 10):
        given = _given(name, n_verified=n)
        cells[f"kd-{n}"] = _trained("kd", f"{n} verified per class: knowledge distillation", given)
        cells[f"coreg-{n}"] = _trained("coreg", f"{n} verified per class: Co-Reg", given)
    return _table(name, f"Some verified labels, {_TITLES[name]}", cells)


def _pixels(settings: Mapping[str, Mapping[str, object]], words: str = "", *, size_px: int | None = None) -> BenchTable:
    given = Given(guessing=Guessing("chance", q=0.3, eta=0.2))
    wanted: dict[str, tuple[str, str, Mapping[str, object]]] = {
        method: (method, _BASELINES[method], more)
        for method, more in {"top1": {}, "proden": {}, "dividemix": {"entropy_weight": 0.0}}.items()
    }
    for part, (title, more) in _PARTS.items():
        wanted[part] = ("coreg", title, more)
    published = {method: PRESETS["paper"] if method == "coreg" else _PIXELS_FULL for method in settings}
    reduced, full = (
        {
            name: Cell(title, method, {**schedules[method], **more}, given=given)
            for name, (method, title, more) in wanted.items()
        }
        for schedules in (settings, published)
    )
    at = f" of {size_px} px" if size_px else ""
    own = [
        f"{method}: {', '.join(f'{key} {value}' for key, value in each.items())}" for method, each in settings.items()
    ]
    table = BenchTable(
        f"CIFAR-10 from pixels{words}, {_BY_CHANCE}",
        "cifar10",
        reduced,
        ratio=1.0,
        n_max=1000,
        network="resnet32",
        size_px=size_px,
        schedule=f"REDUCED to 1,000 images per class{at}, ResNet-32; {'; '.join(own)}; else the methods' own defaults",
    )
    at_full = dataclasses.replace(
        table,
        title=f"CIFAR-10 from pixels, {_BY_CHANCE}",
        cells=full,
        ratio=None,
        n_max=None,
        size_px=None,
        network="preact_resnet18",
        schedule="published (800 epochs, batch 256, lr 0.01; Co-Reg: preset paper), PreAct ResNet-18",
    )
    return dataclasses.replace(table, at_full=at_full)


COREG_TABLES: Mapping[str, BenchTable] = {
    "coreg-cifar10": _main("cifar10"),
    "coreg-gtsrb": _main("gtsrb"),
    "coreg-gtsrb-repaired": _main("gtsrb-repaired"),
    "coreg-parts-cifar10": _parts("cifar10"),
    "coreg-parts-gtsrb-repaired": _parts("gtsrb-repaired"),
    "coreg-tau": _thresholds("cifar10"),
    "coreg-sets-cifar10": _set_sizes("cifar10", (1, 2, 3, 5)),
    "coreg-sets-gtsrb": _set_sizes("gtsrb", (1, 3, 5, 10, 20)),
    "coreg-guesses": _made_up("cifar10"),
    "coreg-share-cifar10": _shares("cifar10"),
    "coreg-share-gtsrb-repaired": _shares("gtsrb-repaired"),
    "coreg-few-cifar10": _few("cifar10"),
    "coreg-few-gtsrb": _few("gtsrb"),
    "coreg-headline": _table(
        "cifar10",
        "Co-Reg on CIFAR-10, five seeds",
        {"coreg": _trained("coreg", "Co-Reg", _given("cifar10"))},
        seeds=(0, 1, 2, 3, 4),
    ),
    "coreg-pixels": _pixels(PIXELS),
    "coreg-pixels-40": _pixels(PIXELS_40, ", 40 epochs"),
    "coreg-pixels-16px-40": _pixels(PIXELS_40, " reduced to 16 px, 40 epochs", size_px=16),
    "coreg-pixels-16px-80": _pixels(PIXELS_80, " reduced to 16 px, 80 epochs", size_px=16),
}
"""Name -> table; all but those on pixels need ``--model``, a vision-language model."""
