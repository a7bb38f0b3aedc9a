"""The tables of CAP: a vision-language model on a target pool that it has not been trained on, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from labelwright.benchmarking.grid import BenchTable, Cell, Given
from labelwright.data.cards import dataset_card
from labelwright.methods.cap import PRESETS

NAMES = Given()
DESCRIBED = Given(use_descriptions=True)
FEW = Given(labels="few")
FEW_DESCRIBED = Given(labels="few", use_descriptions=True)
SOME = Given(labels="some_classes")

_UNSEEN: Mapping[str, object] = {"pool": "unseen"}
_LAST: Mapping[str, object] = {"epochs": 50, "patience_epochs": 0}  # the published length, and no choice of state

_TITLES: Mapping[str, str] = {"cifar10": "CIFAR-10", "gtsrb": "GTSRB (long-tailed)"}


def _main(dataset: str) -> BenchTable:
    cells = {
        "zero_shot": Cell("Zero-shot", "zero_shot", given=NAMES),
        "zero_shot_one": Cell("Zero-shot, a photo of a {}", "zero_shot", given=Given(templates="one")),
        "ensemble": Cell("Zero-shot, ensemble of 27 prompts", "zero_shot", given=Given(templates="photo27")),
        "pseudo_probe": Cell("Probe on all pseudolabels", "pseudo_probe", given=NAMES),
        "fpl": Cell("FPL", "fpl", given=NAMES),
        "fixmatch": Cell("FixMatch on features", "fixmatch_text", given=NAMES),
        "transclip": Cell("TransCLIP", "transclip", given=NAMES),
        "cap": Cell("CAP", "cap", given=NAMES),
        "cap_described": Cell("CAP, with descriptions", "cap", given=DESCRIBED),
        "probe_few": Cell("2 labels per class: probe on them alone", "pseudo_probe", given=Given(labels="few_alone")),
        "cap_few": Cell("2 labels per class: CAP", "cap", given=FEW),
        "cap_few_described": Cell("2 labels per class: CAP, with descriptions", "cap", given=FEW_DESCRIBED),
        "zero_shot_some": Cell("Labels for 62% of the classes: zero-shot", "zero_shot", given=SOME),
        "cap_some": Cell("Labels for 62% of the classes: CAP", "cap", _UNSEEN, given=SOME),
        "ceiling": Cell("All labels: probe (ceiling of these features)", "pseudo_probe", given=Given(labels="all")),
    }
    return BenchTable(f"CAP on the target pool of {_TITLES[dataset]}", dataset, cells, is_pool=True)


def _ablation(dataset: str) -> BenchTable:
    """Every part taken out, with the best state kept, which can hide what a part does, and with the last one."""
    without: Mapping[str, tuple[str, Mapping[str, object]]] = {
        "cap": ("CAP", {}),
        "no_alignment": ("no alignment", {"alignment": "none"}),
        "no_leftovers": ("no leftovers for classes without a text", {"use_leftovers": False}),
        "no_shape": ("no shape term", {"shape_strength": 0.0}),
        "no_margin": ("no margin (m = 0)", {"margin_scale": 0.0}),
        "shared_adapter": ("one adapter for all losses", {"shared_adapter": True}),
        "no_self_training": ("no self-training", {"confidence": 1.0}),
        "uniform": ("uniform shares (paper)", {"share_from": "uniform"}),
    }
    cells = {name: Cell(title, "cap", settings, given=NAMES) for name, (title, settings) in without.items()}
    cells |= {
        f"{name}_last": Cell(f"{title}, last epoch", "cap", {**settings, **_LAST}, given=NAMES)
        for name, (title, settings) in without.items()
    }
    return BenchTable(f"CAP without its parts, {_TITLES[dataset]}: names only", dataset, cells, is_pool=True)


def _margin(dataset: str) -> BenchTable:
    """The paper's sweep (9 to 14), none, the choice without labels, and far past it, where it should break."""
    cells = {}
    for m in (0, 9, 10, 11, 12, 13, 14, 50, 200):
        own: Mapping[str, object] = {} if m == 12 else {"margin_scale": float(m)}  # 12 is the default
        cells[str(m)] = Cell(f"m = {m}", "cap", {**own, **_LAST}, given=NAMES)
    cells["auto"] = Cell("m chosen without labels", "cap", {"margin_scale": "auto", **_LAST}, given=NAMES)
    return BenchTable(f"Margin scale of CAP, {_TITLES[dataset]}: names only, last epoch", dataset, cells, is_pool=True)


def _nonsense(dataset: str, n: int) -> BenchTable:
    """Made-up words for ``n`` class names."""
    given = Given(n_nonsense=n)
    described = Given(n_nonsense=n, use_descriptions=True)
    few = Given(n_nonsense=n, labels="few")
    cells = {
        "zero_shot": Cell("Zero-shot", "zero_shot", given=given),
        "cap": Cell("CAP", "cap", given=given),
        "cap_described": Cell("CAP, with descriptions", "cap", given=described),
        "cap_few": Cell("2 labels per class: CAP", "cap", given=few),
    }
    return BenchTable(f"{n} names of {_TITLES[dataset]} replaced by made-up words", dataset, cells, is_pool=True)


def _out_of_domain() -> BenchTable:
    titles = {"negative": "colours inverted", "grey": "without colour", "blurred": "blurred, radius 2 px of 32"}
    cells = {}
    for images, title in titles.items():
        given = Given(images=images)  # type: ignore[arg-type]
        cells[f"zero_shot_{images}"] = Cell(f"{title}: zero-shot", "zero_shot", given=given)
        cells[f"cap_{images}"] = Cell(f"{title}: CAP", "cap", given=given)
    return BenchTable("CIFAR-10 out of the model's domain, by a fixed transformation", "cifar10", cells, is_pool=True)


def _text_set(dataset: str) -> BenchTable:
    """A data set of the paper's own, all training images, its class names in its prompt; --model is one of the hub."""
    card = dataset_card(dataset)
    prompt = card.prompt.rstrip(".")
    published = {key: value for key, value in PRESETS["paper"].items() if key != "pool"}
    cells: dict[str, Cell] = {}
    situations: Mapping[str, tuple[str, Given, Mapping[str, object]]] = {
        "": ("Class names", Given(templates=prompt), {}),
        "_few": ("2 labels per class", Given(labels="few", templates=prompt), {}),
        "_some": ("Labels for 62% of the classes", Given(labels="some_classes", templates=prompt), _UNSEEN),
    }
    for tag, (title, given, settings) in situations.items():
        if tag != "_few":
            cells[f"zero_shot{tag}"] = Cell(f"{title}: zero-shot", "zero_shot", given=given)
        cells[f"cap{tag}"] = Cell(f"{title}: CAP", "cap", settings, given=given)
        tuned = replace(given, views="pixels")
        cells[f"cap_paper{tag}"] = Cell(f"{title}: CAP as published", "cap", {**published, **settings}, given=tuned)
    return BenchTable(f"CAP on {card.title}", dataset, cells, is_pool=True)


TEXT_SETS = ("eurosat", "dtd", "resisc45", "flowers102", "cub200", "fgvc_aircraft")
"""Data sets of the paper (Sec. 4.1), by key of `data.cards.DATASETS`; they come from the hub or a local copy."""

CAP_TABLES: Mapping[str, BenchTable] = {
    "cap-cifar10": _main("cifar10"),
    "cap-gtsrb": _main("gtsrb"),
    "cap-ablation-cifar10": _ablation("cifar10"),
    "cap-ablation-gtsrb": _ablation("gtsrb"),
    "cap-margin-cifar10": _margin("cifar10"),
    "cap-margin-gtsrb": _margin("gtsrb"),
    "cap-nonsense-cifar10": _nonsense("cifar10", 6),
    "cap-nonsense-gtsrb": _nonsense("gtsrb", 26),
    "cap-out-of-domain": _out_of_domain(),
    **{f"text-{dataset}": _text_set(dataset) for dataset in TEXT_SETS},
}
"""Name -> table; each needs ``--model``, a vision-language model."""
