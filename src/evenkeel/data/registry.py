"""The data sets of the four papers by name: where they are, what they hold, how to ask a text encoder about them.

`DATASETS` describes, `open_dataset` opens: from a local copy when there is one, else from the Hugging Face hub.
Class names (`class_names.json`, in class order, spellings of other copies behind the first one) are listed for the
sets that have at most 102 classes, CUB apart; the others bring their names along.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evenkeel.data.images import resolve_problems
from evenkeel.data.read import load
from evenkeel.data.table import SPLITS, LabelTable
from evenkeel.errors import ConfigError, DataError, OfflineError, Problem

DATA_VARIABLE = "EVENKEEL_DATA"
"""Environment variable: a folder with a sub-folder per data set, named by its key in `DATASETS`."""

_SPELLINGS: Mapping[str, Sequence[str | Sequence[str]]] = json.loads(
    Path(__file__).with_name("class_names.json").read_text(encoding="utf-8")
)


@dataclass(frozen=True)
class DatasetCard:
    """What is known of one data set.

    Attributes:
      key: its name here, and the name of its folder below `EVENKEEL_DATA`.
      title: its name in papers.
      hub_id: "user/name" on the Hugging Face hub; "" if it is read from a local copy only.
      hub_config: configuration to ask for there; "" for the only one.
      hub_splits: our split -> the hub's name for it, for the splits it has; {} = the same names.
      label_column: column with the labels where it is not called ``label``.
      splits: split -> images in it, as published (or as customary, where the authors made none).
      n_classes: C.
      class_names: C names in class order; empty where they come with the data set's own features.
      prompt: text for a class name {}, from CLIP's list unless ``notes`` says otherwise.
      image_px: native side of the (square) images; None = they vary.
      flip: whether a mirrored image still shows its class.
      citation: author, year and arXiv id or venue.
      licence: terms of use as the authors state them.
      is_gated: the hub asks for an agreement and a login first.
      lists: split -> file with a line ``path label`` per image (or ``class/image``), relative to the local folder.
      image_dir: folder that the paths of ``lists`` start from.
      image_suffix: what the paths of ``lists`` lack.
      notes: what else a user should know, such as columns and splits that differ.
    """

    key: str
    title: str
    splits: Mapping[str, int]
    n_classes: int
    prompt: str
    citation: str
    licence: str
    hub_id: str = ""
    hub_config: str = ""
    hub_splits: Mapping[str, str] = field(default_factory=dict)
    label_column: str = "label"
    image_px: int | None = None
    flip: bool = True
    is_gated: bool = False
    lists: Mapping[str, str] = field(default_factory=dict)
    image_dir: str = ""
    image_suffix: str = ""
    notes: str = ""

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names in class order; empty where they come with the data set's own features."""
        return tuple(name if isinstance(name, str) else name[0] for name in _SPELLINGS.get(self.key, ()))


_CARDS = (
    DatasetCard(
        "cifar10",
        "CIFAR-10",
        {"train": 50_000, "test": 10_000},
        10,
        "a photo of a {}.",
        citation="Krizhevsky 2009, technical report",
        licence="none stated",
        hub_id="uoft-cs/cifar10",  # columns img, label
        image_px=32,
    ),
    DatasetCard(
        "cifar100",
        "CIFAR-100",
        {"train": 50_000, "test": 10_000},
        100,
        "a photo of a {}.",
        citation="Krizhevsky 2009, technical report",
        licence="none stated",
        hub_id="uoft-cs/cifar100",  # columns img, fine_label (100), coarse_label (20)
        label_column="fine_label",
        image_px=32,
    ),
    DatasetCard(
        "svhn",
        "SVHN",
        {"train": 73_257, "test": 26_032, "extra": 531_131},
        10,
        'a photo of the number: "{}".',
        citation="Netzer 2011, NIPS workshop",
        licence="non-commercial use only",
        hub_id="ufldl-stanford/svhn",  # columns image, label; configurations cropped_digits and full_numbers
        hub_config="cropped_digits",
        image_px=32,
        flip=False,
        notes="The prompt is the one of CLIP's list for MNIST.",
    ),
    DatasetCard(
        "fashion_mnist",
        "Fashion-MNIST",
        {"train": 60_000, "test": 10_000},
        10,
        "a photo of a {}, a type of clothing.",
        citation="Xiao 2017 (arXiv 1708.07747)",
        licence="MIT",
        hub_id="zalando-datasets/fashion_mnist",  # columns image (grey), label
        image_px=28,
        notes="The prompt is ours: CLIP's list has none. Images are grey.",
    ),
    DatasetCard(
        "eurosat",
        "EuroSAT",
        {"train": 16_200, "validation": 5_400, "test": 5_400},
        10,
        "a centered satellite photo of {}.",
        citation="Helber 2019 (arXiv 1709.00029)",
        licence="MIT",
        hub_id="timm/eurosat-rgb",  # columns image, label, image_id
        image_px=64,
        notes="27,000 images without official splits; these are the hub copy's.",
    ),
    DatasetCard(
        "gtsrb",
        "GTSRB",
        {"train": 39_209, "test": 12_630},
        43,
        'a zoomed in photo of a "{}" traffic sign.',
        citation="Stallkamp 2012, Neural Networks 32",
        licence="none stated",
        hub_id="ilee0022/GTSRB",  # columns image, label (plain integers 0-42), Width, Height, Roi.*
        flip=False,
        notes="About 30 images show one physical sign; the hub copy does not say which. Parquet files with a column "
        "``track`` do, and are then never split inside a sign.",
    ),
    DatasetCard(
        "resisc45",
        "RESISC45",
        {"train": 18_900, "validation": 6_300, "test": 6_300},
        45,
        "satellite imagery of {}.",
        citation="Cheng 2017 (arXiv 1703.00121)",
        licence="none stated",
        hub_id="timm/resisc45",  # columns image, label, image_id
        image_px=256,
        notes="31,500 images without official splits; these are the hub copy's.",
    ),
    DatasetCard(
        "dtd",
        "DTD",
        {"train": 1_880, "validation": 1_880, "test": 1_880},
        47,
        "a photo of a {} texture.",
        citation="Cimpoi 2014 (arXiv 1311.3618)",
        licence="for research purposes",
        hub_id="tanganke/dtd",  # columns image, label
        hub_splits={"train": "train", "test": "test"},
        lists={"train": "labels/train1.txt", "validation": "labels/val1.txt", "test": "labels/test1.txt"},
        image_dir="images",
        notes="Sizes are those of the first official split; the hub copy's train split is its train and validation "
        "images together (3,760).",
    ),
    DatasetCard(
        "fgvc_aircraft",
        "FGVC-Aircraft",
        {"train": 3_334, "validation": 3_333, "test": 3_333},
        100,
        "a photo of a {}, a type of aircraft.",
        citation="Maji 2013 (arXiv 1306.5151)",
        licence="non-commercial research only; copyright stays with the photographers",
        hub_id="Donghyun99/FGVC-Aircraft",  # columns image, label; splits train, val, test
        hub_splits={"train": "train", "validation": "val", "test": "test"},
        lists={
            "train": "images_variant_train.txt",
            "validation": "images_variant_val.txt",
            "test": "images_variant_test.txt",
        },
        image_dir="images",
        image_suffix=".jpg",
        notes="The local folder is fgvc-aircraft-2013b/data. The bottom 20 pixels of each image are a banner.",
    ),
    DatasetCard(
        "cub200",
        "CUB-200-2011",
        {"train": 5_994, "test": 5_794},
        200,
        "a photo of a {}, a type of bird.",
        citation="Wah 2011, Caltech technical report",
        licence="non-commercial research and education",
        hub_id="Donghyun99/CUB-200-2011",  # columns image, label; names come with the label's feature
        notes="The prompt is the one of CLIP's list for Birdsnap.",
    ),
    DatasetCard(
        "flowers102",
        "Flowers102",
        {"train": 1_020, "validation": 1_020, "test": 6_149},
        102,
        "a photo of a {}, a type of flower.",
        citation="Nilsback 2008, ICVGIP",
        licence="none stated",
        hub_id="Donghyun99/Oxford-Flower-102",  # columns image, label
    ),
    DatasetCard(
        "imagenet1k",
        "ImageNet-1k",
        {"train": 1_281_167, "validation": 50_000, "test": 100_000},
        1000,
        "a photo of a {}.",
        citation="Russakovsky 2015 (arXiv 1409.0575)",
        licence="non-commercial research; agreement at image-net.org",
        hub_id="ILSVRC/imagenet-1k",  # columns image, label; names come with the label's feature
        is_gated=True,
        notes="The test images have no public labels; papers test on the validation split.",
    ),
    DatasetCard(
        "imagenet100",
        "ImageNet-100",
        {"train": 126_689, "validation": 5_000},
        100,
        "a photo of a {}.",
        citation="Tian 2020 (arXiv 1906.05849), the 100 classes",
        licence="as ImageNet-1k",
        hub_id="clane9/imagenet-100",  # columns image, label; names come with the label's feature
        notes="Papers differ in which 100 classes they take.",
    ),
    DatasetCard(
        "imagenet_lt",
        "ImageNet-LT",
        {"train": 115_846, "validation": 20_000, "test": 50_000},
        1000,
        "a photo of a {}.",
        citation="Liu 2019 (arXiv 1904.05160)",
        licence="as ImageNet-1k",
        lists={
            "train": "ImageNet_LT_train.txt",
            "validation": "ImageNet_LT_val.txt",
            "test": "ImageNet_LT_test.txt",
        },
        notes="The authors' lists name images of ImageNet-1k, which lie in train/ and val/ beside them. A file "
        "classes.txt there, a name per line, names the classes; without it they are their numbers.",
    ),
    DatasetCard(
        "inaturalist2018",
        "iNaturalist 2018",
        {"train": 437_513, "validation": 24_426},
        8142,
        "a photo of a {}.",
        citation="Van Horn 2018 (arXiv 1707.06642)",
        licence="non-commercial research; each photograph has its own licence",
        lists={"train": "iNaturalist18_train.txt", "validation": "iNaturalist18_val.txt"},
        notes="Lists name images below train_val2018/. A file classes.txt beside them, a name per line, names the "
        "classes; without it they are their numbers.",
    ),
)

DATASETS: Mapping[str, DatasetCard] = {card.key: card for card in _CARDS}
"""Key -> card of every data set that can be opened by name."""


def dataset_card(name: str) -> DatasetCard:
    """The card of a data set; upper case, dashes and the like do not matter.

    Raises: ConfigError listing the names, the closest one first.

    Example:
      >>> dataset_card("CIFAR-10").hub_id
      'uoft-cs/cifar10'
      >>> dataset_card("FGVC-Aircraft").prompt.format("DC-3")
      'a photo of a DC-3, a type of aircraft.'
    """
    known = {_plain(spelling): card for card in _CARDS for spelling in (card.title, card.key)}
    wanted = _plain(name)
    if wanted in known:
        return known[wanted]
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
    guess = f"did you mean {known[close[0]].key}? " if close else ""
    raise ConfigError(f"no data set is called {name!r}", fix=f"{guess}the names are {', '.join(DATASETS)}")


def open_dataset(name: str, *, root: str | Path | None = None, split: str) -> LabelTable:
    """One split of a data set as a table, from a local copy or else from the hub.

    A local copy is looked for in ``root`` if given, and nowhere else then; otherwise in ``$EVENKEEL_DATA/<key>``. It
    is a folder with the card's list files, or Parquet files with the split in their names (``train.parquet``,
    ``cifar10-train.parquet``, ``data/train-00000-of-00003.parquet``), or a folder per split with a folder per class.
    Of several data sets in one folder, the files with the key in their names are taken. ``root`` may also be one
    Parquet file. Classes are put into the official order and given the official names where
    the copy's own names or numbers can be told.

    Args:
      name: a key of `DATASETS` or a title.
      root: folder or file of the local copy, or None.
      split: one of the card's splits.

    Returns: the table; ``split`` is set on every row ("extra" counts as "train").
    Raises: ConfigError for an unknown name or split; OfflineError saying where it was looked for and how to get it;
      DataError if what is there cannot be read.
    """
    card = dataset_card(name)
    if split not in card.splits:
        raise ConfigError(f"{card.title} has no split {split!r}", fix=f"one of {', '.join(card.splits)}")
    folder = _local_folder(card, root)
    table = _open_hub(card, split) if folder is None else _open_local(card, folder, split)
    if len(table.class_names) > card.n_classes:
        raise DataError(
            f"{len(table.class_names)} classes were found, {card.title} has {card.n_classes}",
            fix="check that the folder holds this data set and nothing else",
        )
    code = SPLITS.index(split) if split in SPLITS else SPLITS.index("train")
    table = dataclasses.replace(table, split=np.full(len(table), code, dtype=np.int8))
    return _in_official_order(table, card)


def _local_folder(card: DatasetCard, root: str | Path | None) -> Path | None:
    """Where the local copy is; None if the hub is to be asked."""
    if root is not None:
        path = Path(root).expanduser()
        if not path.exists():
            raise _offline(card, f"there is no {path}")
        return path
    if base := os.environ.get(DATA_VARIABLE):
        path = Path(base).expanduser() / card.key
        return path if path.is_dir() else None
    return None


def _open_local(card: DatasetCard, folder: Path, split: str) -> LabelTable:
    if folder.is_file():
        return _load_parquet(card, [folder])
    if split in card.lists and (folder / card.lists[split]).is_file():
        return _load_list(card, folder, split)
    hub_split = card.hub_splits.get(split, split)
    within = folder / card.hub_config if card.hub_config and (folder / card.hub_config).is_dir() else folder
    named = re.compile(rf"(^|[-_.])({re.escape(split)}|{re.escape(hub_split)})([-_.]|$)")
    shards = [p for p in sorted([*within.glob("*.parquet"), *within.glob("*/*.parquet")]) if named.search(p.stem)]
    if shards:
        own = [p for p in shards if card.key in p.stem]  # several data sets may share the folder
        return _load_parquet(card, own or shards)
    for name in (split, hub_split):
        if (folder / name).is_dir():
            return _load(folder / name)
    raise _offline(card, f"{folder} does not hold its {split} split")


def _load(source: Any, *, classes: Sequence[str] | None = None) -> LabelTable:
    """The table of what was found; a copy that lacks some of the classes will do, any other problem stops."""
    table = load(source, classes=classes, on_bad="report")
    return resolve_problems(table, [p for p in table.problems if p.kind != "empty_class"], "stop")


def _load_parquet(card: DatasetCard, files: Sequence[Path]) -> LabelTable:
    if card.label_column == "label":
        return _load(list(files))
    import datasets

    return _load(_plain_label(card, datasets.Dataset.from_parquet([str(path) for path in files])))


def _plain_label(card: DatasetCard, data: Any) -> Any:
    """The data set with its labels in a column ``label``."""
    if card.label_column in data.column_names and card.label_column != "label":
        return data.rename_column(card.label_column, "label")
    return data


def _open_hub(card: DatasetCard, split: str) -> LabelTable:
    if not card.hub_id:
        raise _offline(card, "it is not on the hub")
    if card.hub_splits and split not in card.hub_splits:
        raise _offline(card, f"{card.hub_id} on the hub has no {split} split")
    import datasets

    try:
        data = datasets.load_dataset(card.hub_id, card.hub_config or None, split=card.hub_splits.get(split, split))
    except Exception as error:  # the library raises a dozen unrelated types here; each means: no data
        reason = (str(error).splitlines() or [""])[0]
        raise _offline(card, f"{card.hub_id} on the hub: {type(error).__name__}: {reason}") from error
    return _load(_plain_label(card, data))


def _offline(card: DatasetCard, reason: str) -> OfflineError:
    """What was asked for, where it was looked for, and how to get it."""
    base = os.environ.get(DATA_VARIABLE)
    looked = f"{DATA_VARIABLE} is {base}" if base else f"{DATA_VARIABLE} is not set"
    layout = f"Parquet files or folders named {', '.join(card.splits)}"
    if card.lists:
        images = f"{card.image_dir or 'the images'} and " if card.image_dir else "the images they name and "
        layout = f"{images}{', '.join(card.lists.values())}, or {layout}"
    if card.hub_id:
        login = "accept its terms on huggingface.co, run `hf auth login`, then " if card.is_gated else ""
        get = f"{login}where there is a network run `hf download --repo-type dataset {card.hub_id} --local-dir "
        get += f"DATA/{card.key}`"
    else:
        get = f"fetch it from its authors ({card.citation}) into DATA/{card.key}"
    fix = f"{get}, and set {DATA_VARIABLE}=DATA or give root=DATA/{card.key}; expected there: {layout}"
    return OfflineError(f"{card.title} is not on this machine nor within reach: {reason} ({looked})", fix=fix)


def _load_list(card: DatasetCard, folder: Path, split: str) -> LabelTable:
    """The table of a list file: a line ``path label`` (a number or a name) or ``class/image`` per image."""
    import datasets

    file = folder / card.lists[split]
    paths: list[str] = []
    labels: list[str] = []
    malformed: list[Problem] = []
    base = str((folder / card.image_dir).absolute())
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        path, _, label = line.strip().partition(" ")
        label = label.strip() or path.rpartition("/")[0].rpartition("/")[2]
        if path and label and not (label.isdecimal() and int(label) >= card.n_classes):
            paths.append(f"{base}/{path}{card.image_suffix}")
            labels.append(label)
        elif path:
            detail = f"no label from 0 to {card.n_classes - 1} in {line.strip()[:60]!r}"
            malformed.append(Problem(f"{file} line {number}", "malformed_row", detail))
    if malformed:
        raise DataError(
            f"{malformed[0].where}: {malformed[0].detail} ({len(malformed)} such lines)",
            problems=malformed,
            fix="put the authors' own file there",
        )
    if not paths:
        raise DataError(f"{file} names no image", fix="put the authors' own file there")
    if not all(label.isdecimal() for label in labels):
        return _load(datasets.Dataset.from_dict({"image": paths, "label": labels}))
    numbers = [int(label) for label in labels]
    return _load(datasets.Dataset.from_dict({"image": paths, "label": numbers}), classes=_numbered_names(card, folder))


def _numbered_names(card: DatasetCard, folder: Path) -> list[str]:
    """Names of the classes that a list file gives as numbers: the card's, those of classes.txt, or the numbers."""
    names = folder / "classes.txt"
    if card.class_names or not names.is_file():
        return list(card.class_names) or [str(k) for k in range(card.n_classes)]
    given = [line.strip() for line in names.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(given) != card.n_classes:
        raise DataError(
            f"{names} has {len(given)} names, {card.title} has {card.n_classes} classes", fix="give one name per line"
        )
    return given


def _in_official_order(table: LabelTable, card: DatasetCard) -> LabelTable:
    """The table with the card's class names in their order, if each of its own can be told; else as it is."""
    official = card.class_names
    if not official:
        tidy = tuple(re.sub(r"^\d+\.", "", name).replace("_", " ") for name in table.class_names)
        return dataclasses.replace(table, class_names=tidy) if len(set(tidy)) == len(tidy) else table
    if table.class_names == official or table.candidates is not None or table.truth is not None:
        return table
    places = _places(table.class_names, card)
    if places is None:
        return table
    labels = np.append(places, -1).astype(np.int32)[table.labels]  # the last one serves label -1
    return dataclasses.replace(table, labels=labels, class_names=official)


def _places(names: Sequence[str], card: DatasetCard) -> list[int] | None:
    """Official class of each name, by spelling or by number (from 0, or from 1 to C); None if one cannot be told.

    Example:
      >>> _places(["dog", "Cat"], DATASETS["cifar10"]), _places(["00001", "00000"], DATASETS["gtsrb"])
      ([5, 3], [1, 0])
      >>> _places(["dog", "unicorn"], DATASETS["cifar10"]) is None
      True
    """
    known = _spelling_index(card)
    places = [known.get(_plain(name), -1) for name in names]
    if min(places, default=-1) < 0:
        if not all(name.isdecimal() for name in names):
            return None
        numbers = [int(name) for name in names]
        first = 0 if 0 in numbers else 1
        if first == 1 and max(numbers) != card.n_classes:
            return None  # counted from 0 or from 1: both fit
        places = [number - first for number in numbers]
    return places if len(set(places)) == len(places) and max(places) < card.n_classes else None


def _spelling_index(card: DatasetCard) -> dict[str, int]:
    """Every known spelling of a class name, made plain -> the class."""
    spellings = _SPELLINGS.get(card.key, ())
    return {
        _plain(spelling): k
        for k, names in enumerate(spellings)
        for spelling in ([names] if isinstance(names, str) else names)
    }


def _plain(name: str) -> str:
    """A name without case, spaces and punctuation."""
    return re.sub(r"[^0-9a-z]", "", name.lower())
