"""The registry: local copies of every layout open alike, and without one the error says how."""

import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from labelwright.data import registry
from labelwright.data.cards import DATASETS
from labelwright.data.registry import open_dataset
from labelwright.errors import ConfigError, DataError, OfflineError

SHARED = Path(os.environ.get("LABELWRIGHT_SHARED", Path(__file__).parents[3] / "../shared"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Every question to the hub is noted and answered as without a network."""
    asked = []

    def load_dataset(path, name=None, *, split=None):
        asked.append((path, name, split))
        raise ConnectionError("cannot reach the hub\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.delenv(registry.DATA_VARIABLE, raising=False)
    return asked


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8))


def write_images(folder: Path, names: list[str]) -> None:
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(k).save(folder / name)


def write_parquet(path: Path, labels: list[int], *, feature=None, column: str = "label", image: str = "image") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({image: datasets.Image(), column: feature or datasets.Value("int64")})
    rows = {image: [picture(k) for k in range(len(labels))], column: labels}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))


def test_open_dataset__offline_says_what_where_and_how(no_network, monkeypatch, tmp_path):
    with pytest.raises(OfflineError) as caught:
        open_dataset("svhn", split="train")
    assert no_network == [("ufldl-stanford/svhn", "cropped_digits", "train")]
    message = str(caught.value)
    for part in (
        "SVHN is not on this machine",
        "ConnectionError: cannot reach the hub",
        "LABELWRIGHT_DATA is not set",
        "hf download --repo-type dataset ufldl-stanford/svhn --local-dir DATA/svhn",
        "train, test, extra",
    ):
        assert part in message
    assert "second line" not in message
    # a folder that is given is the only place looked in
    with pytest.raises(OfflineError, match=r"there is no .*nowhere"):
        open_dataset("svhn", root=tmp_path / "nowhere", split="train")
    with pytest.raises(OfflineError, match="does not hold its test split") as caught:
        open_dataset("svhn", root=tmp_path, split="test")
    assert "give --data DATA/svhn" in caught.value.fix
    assert len(no_network) == 1
    monkeypatch.setenv("LABELWRIGHT_DATA", str(tmp_path))
    with pytest.raises(OfflineError, match="LABELWRIGHT_DATA is ") as caught:
        open_dataset("imagenet-1k", split="train")
    assert "accept its terms" in caught.value.fix
    with pytest.raises(OfflineError, match="not on the hub") as caught:
        open_dataset("ImageNet-LT", split="train")
    assert "ImageNet_LT_train.txt" in caught.value.fix
    with pytest.raises(OfflineError, match="has no validation split"):
        open_dataset("dtd", split="validation")
    assert len(no_network) == 2
    with pytest.raises(ConfigError, match="CIFAR-10 has no split 'validation'"):
        open_dataset("cifar10", split="validation")


def test_open_dataset__hub_answer(monkeypatch):
    # the copy's own order and spelling differ from the official ones; its validation split has another name
    spelt = datasets.ClassLabel(names=["DC 3", "707-320", "Yak 42"])
    features = datasets.Features({"image": datasets.Image(), "label": spelt})
    answer = datasets.Dataset.from_dict({"image": [picture()] * 4, "label": [0, 1, 2, 1]}, features=features)
    asked = []

    def load_dataset(path, name=None, *, split=None):
        asked.append((path, name, split))
        return answer

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    table = open_dataset("fgvc_aircraft", split="validation")
    assert asked == [("Donghyun99/FGVC-Aircraft", None, "val")]
    assert table.class_names == DATASETS["fgvc_aircraft"].class_names
    assert [table.class_names[k] for k in table.labels] == ["DC-3", "707-320", "Yak-42", "707-320"]
    assert (len(table.where("validation")), len(table.where("train"))) == (4, 0)


def test_open_dataset__cifar100_takes_the_fine_labels(tmp_path):
    fine = datasets.ClassLabel(names=[n.replace(" ", "_") for n in DATASETS["cifar100"].class_names])
    path = tmp_path / "cifar100" / "train-00000-of-00001.parquet"
    write_parquet(path, [99, 0, 1], feature=fine, column="fine_label", image="img")
    table = open_dataset("cifar100", root=tmp_path, split="train")
    assert table.labels.tolist() == [99, 0, 1]
    assert table.class_names[1] == "aquarium fish"


def test_open_dataset__parquet_of_the_right_configuration_and_split(tmp_path, monkeypatch):
    root = tmp_path / "svhn"
    write_parquet(root / "cropped_digits" / "train-00000-of-00001.parquet", [3, 0, 9])
    write_parquet(root / "cropped_digits" / "extra-00000-of-00001.parquet", [5, 5])
    write_parquet(root / "full_numbers" / "train-00000-of-00001.parquet", [1])
    monkeypatch.setenv("LABELWRIGHT_DATA", str(tmp_path))
    table = open_dataset("SVHN", split="train")
    assert [table.class_names[k] for k in table.labels] == ["3", "0", "9"]
    assert len(table.class_names) == 10
    assert len(open_dataset("SVHN", split="extra").where("train")) == 2


def test_open_dataset__class_folders_numbered_from_zero_and_from_one(tmp_path):
    write_images(tmp_path / "gtsrb/train", ["00014/a.png", "00000/b.png", "00014/c.png"])
    table = open_dataset("gtsrb", root=tmp_path / "gtsrb", split="train")
    assert sorted(table.class_names[k] for k in table.labels) == ["Speed limit (20km/h)", "Stop", "Stop"]
    write_images(tmp_path / "flowers/test", ["102/a.png", "1/b.png"])
    table = open_dataset("flowers102", root=tmp_path / "flowers", split="test")
    assert {table.class_names[k] for k in table.labels} == {"pink primrose", "blackberry lily"}
    # 1 and 5 may be counted from 0 or from 1: the folder's own names stay
    write_images(tmp_path / "vague/test", ["1/a.png", "5/b.png"])
    assert open_dataset("flowers102", root=tmp_path / "vague", split="test").class_names == ("1", "5")


def test_open_dataset__folders_by_name_and_too_many_of_them(tmp_path):
    write_images(tmp_path / "test", ["SeaLake/a.png", "AnnualCrop/b.png"])
    table = open_dataset("eurosat", root=tmp_path, split="test")
    assert sorted(table.class_names[k] for k in table.labels) == ["annual crop land", "sea or lake"]
    assert len(table.class_names) == 10
    write_images(tmp_path / "train", [f"kind{k}/a.png" for k in range(11)])
    with pytest.raises(DataError, match="11 classes were found, EuroSAT has 10"):
        open_dataset("eurosat", root=tmp_path, split="train")
    write_images(tmp_path / "cub/train", ["002.Laysan_Albatross/a.png", "001.Black_footed_Albatross/b.png"])
    table = open_dataset("cub200", root=tmp_path / "cub", split="train")
    assert table.class_names == ("Black footed Albatross", "Laysan Albatross")


def test_open_dataset__imagenet_lt_list(tmp_path):
    write_images(tmp_path, ["train/n01440764/a.JPEG", "train/n15075141/b.JPEG"])
    listing = tmp_path / "ImageNet_LT_train.txt"
    listing.write_text("train/n15075141/b.JPEG 999\ntrain/n01440764/a.JPEG 0\n")
    table = open_dataset("imagenet_lt", root=tmp_path, split="train")
    assert table.labels.tolist() == [999, 0]
    assert (len(table.class_names), table.class_names[999]) == (1000, "999")
    np.testing.assert_array_equal(
        np.asarray(table.image(1)), np.asarray(Image.open(tmp_path / "train/n01440764/a.JPEG"))
    )
    (tmp_path / "classes.txt").write_text("\n".join(f"name {k}" for k in range(1000)))
    assert open_dataset("imagenet_lt", root=tmp_path, split="train").class_names[999] == "name 999"
    (tmp_path / "classes.txt").write_text("tench\ngoldfish")
    with pytest.raises(DataError, match="has 2 names, ImageNet-LT has 1000 classes"):
        open_dataset("imagenet_lt", root=tmp_path, split="train")
    listing.write_text("train/n01440764/a.JPEG 0\n\ntrain/n01440764/a.JPEG 1000\n")
    with pytest.raises(DataError, match=r"ImageNet_LT_train\.txt line 3: no label from 0 to 999") as caught:
        open_dataset("imagenet_lt", root=tmp_path, split="train")
    assert len(caught.value.problems) == 1
    listing.write_text("\n")
    with pytest.raises(DataError, match="names no image"):
        open_dataset("imagenet_lt", root=tmp_path, split="train")


def test_open_dataset__lists_of_names(tmp_path):
    # FGVC-Aircraft: "number variant", images elsewhere and without suffix
    write_images(tmp_path / "images", ["0001.jpg", "0002.jpg"])
    (tmp_path / "images_variant_train.txt").write_text("0002 Cessna 172\n0001 707-320\n")
    table = open_dataset("fgvc_aircraft", root=tmp_path, split="train")
    assert [table.class_names[k] for k in table.labels] == ["Cessna 172", "707-320"]
    assert len(table.class_names) == 100
    np.testing.assert_array_equal(np.asarray(table.image(0)), np.asarray(Image.open(tmp_path / "images/0002.jpg")))
    # DTD: "class/image"
    write_images(tmp_path / "dtd/images", ["zigzagged/z_1.jpg", "banded/b_1.jpg"])
    (tmp_path / "dtd/labels").mkdir()
    (tmp_path / "dtd/labels/test1.txt").write_text("zigzagged/z_1.jpg\nbanded/b_1.jpg\n")
    assert open_dataset("dtd", root=tmp_path / "dtd", split="test").labels.tolist() == [46, 0]


@pytest.mark.parametrize("key", ["cifar10", "gtsrb"])
def test_open_dataset__real_files(key):
    path = SHARED / f"data/{key}-test.parquet"
    if not path.exists():
        pytest.skip(f"no {path}: set LABELWRIGHT_SHARED")
    card = DATASETS[key]
    table = open_dataset(key, root=path, split="test")
    assert len(table) == len(table.where("test")) == card.splits["test"]
    assert table.class_names == card.class_names
    assert table.counts().min() > 0


def test_open_dataset__a_missing_image_stops(tmp_path):
    write_images(tmp_path, ["train/n01440764/a.JPEG"])
    (tmp_path / "ImageNet_LT_train.txt").write_text("train/n01440764/a.JPEG 0\ntrain/n01440764/gone.JPEG 0\n")
    with pytest.raises(DataError) as caught:
        open_dataset("imagenet_lt", root=tmp_path, split="train")
    assert [(p.kind, p.row) for p in caught.value.problems] == [("missing_image", 1)]
