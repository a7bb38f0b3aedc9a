"""Labels in the formats of annotation tools and trainers: one function per format, each of rows and files.

A row is a dict with the keys of labels.parquet; a file is where its image lies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from labelwright.data.tabular import without_bars
from labelwright.errors import ConfigError

Rows = Sequence[Mapping[str, Any]]


def label_studio(rows: Rows, files: Sequence[Path]) -> list[dict[str, Any]]:
    """Tasks for Label Studio's import: given labels as annotations, predicted ones as predictions with their trust.

    Args:
      rows: with label, source, trust.
      files: of the images; Label Studio serves them from a local storage whose root is ``/``.

    The labelling interface has ``<Image name="image" value="$image"/>`` and ``<Choices name="choice" toName="image">``.

    Example:
      >>> row = {"id": "a.png", "label": "cat", "source": "predicted", "trust": 0.75}
      >>> task = label_studio([row], [Path("/photos/a.png")])[0]
      >>> task["data"]["image"], task["predictions"][0]["score"]
      ('/data/local-files/?d=photos/a.png', 0.75)
    """
    tasks = []
    for row, file in zip(rows, files, strict=True):
        choice = {
            "result": [
                {
                    "from_name": "choice",
                    "to_name": "image",
                    "type": "choices",
                    "value": {"choices": [row["label"]]},
                }
            ]
        }
        task: dict[str, Any] = {
            "data": {"image": f"/data/local-files/?d={quote(file.as_posix().lstrip('/'))}", "id": row["id"]}
        }
        if row["source"] == "given":
            task["annotations"] = [choice]
        else:
            task["predictions"] = [choice | {"model_version": "labelwright", "score": round(row["trust"], 4)}]
        tasks.append(task)
    return tasks


def fiftyone(rows: Rows, files: Sequence[Path], class_names: Sequence[str]) -> dict[str, Any]:
    """``labels.json`` of a FiftyOneImageClassificationDataset, whose ``data/`` holds the files.

    Example:
      >>> row = {"label": "cat", "trust": 0.75}
      >>> fiftyone([row], [Path("data/a.png")], ["ant", "cat"])
      {'classes': ['ant', 'cat'], 'labels': {'a': {'label': 1, 'confidence': 0.75}}}
    """
    place = {name: c for c, name in enumerate(class_names)}
    labels = {
        file.stem: {"label": place[row["label"]], "confidence": round(row["trust"], 4)}
        for row, file in zip(rows, files, strict=True)
    }
    return {"classes": list(class_names), "labels": labels}


def coco(rows: Rows, files: Sequence[Path], class_names: Sequence[str]) -> dict[str, Any]:
    """COCO JSON: each label is an annotation whose box is the whole image.

    Args: files that exist, for the sizes of the images; those that are not images have a size of 0.

    Example: nothing in, nothing out.
      >>> coco([], [], ["cat"])
      {'images': [], 'annotations': [], 'categories': [{'id': 1, 'name': 'cat', 'supercategory': ''}]}
    """
    place = {name: c + 1 for c, name in enumerate(class_names)}
    images, annotations = [], []
    for number, (row, file) in enumerate(zip(rows, files, strict=True), start=1):
        width, height = _size(file)
        images.append({"id": number, "file_name": file.as_posix(), "width": width, "height": height})
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": place[row["label"]],
                "bbox": [0, 0, width, height],
                "area": width * height,
                "iscrowd": 0,
                "score": round(row["trust"], 4),
            }
        )
    categories = [{"id": c, "name": name, "supercategory": ""} for name, c in place.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_datasets(rows: Rows, files: Sequence[Path], class_names: Sequence[str], folder: Path) -> None:
    """A folder that `datasets.load_dataset` and the hub's viewer read: Parquet with images, names of classes and trust.

    Raises: ConfigError if an image cannot be read.
    """
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(class_names)),
            "id": datasets.Value("string"),
            "source": datasets.Value("string"),
            "trust": datasets.Value("float32"),
            "decision": datasets.Value("string"),
        }
    )
    place = {name: c for c, name in enumerate(class_names)}
    try:
        content = {
            "image": [{"path": file.name, "bytes": file.read_bytes()} for file in files],
            "label": [place[row["label"]] for row in rows],
            **{key: [row.get(key) for row in rows] for key in ("id", "source", "trust", "decision")},
        }
    except OSError as error:
        raise ConfigError(f"an image cannot be read ({error})", fix="give the images with --data") from error
    (folder / "data").mkdir(parents=True)
    made = datasets.Dataset.from_dict(content, features=features)
    with without_bars():
        made.to_parquet(str(folder / "data" / "train-00000-of-00001.parquet"))


def write_json(content: Any, path: Path) -> None:
    """A JSON file, as people read it."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _size(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as image:
            return image.size
    except OSError:
        return 0, 0
