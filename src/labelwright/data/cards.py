"""The data sets of the four papers: what they hold, where they are, how to ask a text encoder about them.

Class names (`class_names.json`, in class order, spellings of other copies behind the first one) are listed for the
sets that have at most 102 classes, CUB apart; the others bring their names along.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labelwright.errors import ConfigError

SPELLINGS: Mapping[str, Sequence[str | Sequence[str]]] = json.loads(
    Path(__file__).with_name("class_names.json").read_text(encoding="utf-8")
)
"""Key -> for each class its official name, or a list of that and the spellings of other copies."""


@dataclass(frozen=True)
class DatasetCard:
    """What is known of one data set."""

    key: str  # its name here, and the name of its folder below `LABELWRIGHT_DATA`
    title: str  # its name in papers
    splits: Mapping[str, int]  # split -> images in it, as published (or as customary, where the authors made none)
    n_classes: int  # C
    prompt: str  # text for a class name {}, from CLIP's list unless ``notes`` says otherwise
    citation: str  # author, year and arXiv id or venue
    licence: str  # terms of use as the authors state them
    hub_id: str = ""  # "user/name" on the Hugging Face hub; "" if it is read from a local copy only
    hub_config: str = ""  # configuration to ask for there; "" for the only one
    hub_splits: Mapping[str, str] = field(default_factory=dict)  # our split -> the hub's name for it; {} = the same
    label_column: str = "label"  # column with the labels
    flip: bool = True  # whether a mirrored image still shows its class
    is_gated: bool = False  # the hub asks for an agreement and a login first
    lists: Mapping[str, str] = field(default_factory=dict)  # split -> file of lines ``path label`` or ``class/image``
    image_dir: str = ""  # folder that the paths of ``lists`` start from
    image_suffix: str = ""  # what the paths of ``lists`` lack
    notes: str = ""  # what else a user should know, such as columns and splits that differ

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names in class order; empty where they come with the data set's own features."""
        return tuple(name if isinstance(name, str) else name[0] for name in SPELLINGS.get(self.key, ()))


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
    known = {plain_name(spelling): card for card in _CARDS for spelling in (card.title, card.key)}
    wanted = plain_name(name)
    if wanted in known:
        return known[wanted]
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
    guess = f"did you mean {known[close[0]].key}? " if close else ""
    raise ConfigError(f"no data set is called {name!r}", fix=f"{guess}the names are {', '.join(DATASETS)}")


def spelling_index(card: DatasetCard) -> dict[str, int]:
    """Every known spelling of a class name, made plain -> the class; empty for a set without listed names.

    Example:
      >>> spelling_index(DATASETS["cifar10"])["dog"]
      5
    """
    spellings = SPELLINGS.get(card.key, ())
    return {
        plain_name(spelling): k
        for k, names in enumerate(spellings)
        for spelling in ([names] if isinstance(names, str) else names)
    }


def plain_name(name: str) -> str:
    """A name without case, spaces and punctuation.

    Example:
      >>> plain_name("FGVC-Aircraft")
      'fgvcaircraft'
    """
    return re.sub(r"[^0-9a-z]", "", name.lower())
