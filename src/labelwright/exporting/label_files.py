"""Labels in the formats of annotation tools and trainers: one function per format, each of rows and files.

A row is a dict with the keys of labels.parquet, its label None of an image of no class; a file: where its image lies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from PIL import Image

from labelwright.data.tabular import without_bars
from labelwright.errors import ConfigError

Rows = Sequence[Mapping[str, Any]]

BY_PEOPLE = ("given", "verified")  # sources of labels


def label_studio(rows: Rows, files: Sequence[Path]) -> list[dict[str, Any]]:
    """Tasks for Label Studio's import: labels that people gave as annotations, predicted ones as predictions.

    Args:
      rows: with id, label, source, trust, decision.
      files: of the images; Label Studio serves them from a local storage whose root is ``/``.

    Example:
      >>> row = {"id": "a.png", "label": "cat", "source": "predicted", "trust": 0.75, "decision": "review"}
      >>> task = label_studio([row], [Path("/photos/a.png")])[0]
      >>> task["data"]["image"], task["predictions"][0]["score"]
      ('/data/local-files/?d=photos/a.png', 0.75)
    """
    tasks = []
    for row, file in zip(rows, files, strict=True):
        facts = {"id": row["id"], "source": row["source"], "trust": _trust(row), "decision": row.get("decision")}
        address = f"/data/local-files/?d={quote(file.as_posix().lstrip('/'))}"
        task: dict[str, Any] = {"data": {"image": address} | facts}
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
        if row["label"] is not None and row["source"] in BY_PEOPLE:
            task["annotations"] = [choice]
        elif row["label"] is not None:
            task["predictions"] = [choice | {"model_version": "labelwright", "score": _trust(row)}]
        tasks.append(task)
    return tasks


def label_studio_interface(class_names: Sequence[str]) -> str:
    """The labelling interface of the tasks of `label_studio`, which offers every class.

    Example:
      >>> print(label_studio_interface(["cat", "black & white"]))
      <View>
        <Image name="image" value="$image"/>
        <Choices name="choice" toName="image">
          <Choice value="cat"/>
          <Choice value="black &amp; white"/>
        </Choices>
      </View>
      <BLANKLINE>
    """
    choices = "".join(f"    <Choice value={quoteattr(name)}/>\n" for name in class_names)
    image = '  <Image name="image" value="$image"/>\n  <Choices name="choice" toName="image">\n'
    return f"<View>\n{image}{choices}  </Choices>\n</View>\n"


def fiftyone(rows: Rows, files: Sequence[Path], class_names: Sequence[str]) -> dict[str, Any]:
    """``labels.json`` of a FiftyOneImageClassificationDataset, whose ``data/`` holds the files.

    Example:
      >>> row = {"label": "cat", "trust": 0.75, "source": "predicted", "decision": "review"}
      >>> found = fiftyone([row, row | {"label": None}], [Path("data/a.png"), Path("data/b.png")], ["ant", "cat"])
      >>> found["classes"], found["labels"]["b"]
      (['ant', 'cat'], None)
      >>> found["labels"]["a"]
      {'label': 1, 'confidence': 0.75, 'attributes': {'source': 'predicted', 'decision': 'review'}}
    """
    place = {name: c for c, name in enumerate(class_names)}
    labels = dict[str, Any]()
    for row, file in zip(rows, files, strict=True):
        facts = {"source": row["source"], "decision": row.get("decision")}
        label = {"label": place.get(row["label"]), "confidence": _trust(row), "attributes": facts}
        labels[file.stem] = None if row["label"] is None else label
    return {"classes": list(class_names), "labels": labels}


def coco(rows: Rows, files: Sequence[Path], class_names: Sequence[str]) -> dict[str, Any]:
    """COCO JSON: each label is an annotation whose box is the whole image; an image without a label has none.

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
        if row["label"] is None:
            continue
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": place[row["label"]],
                "bbox": [0, 0, width, height],
                "segmentation": [[0, 0, width, 0, width, height, 0, height]],
                "area": width * height,
                "iscrowd": 0,
                "score": _trust(row),
                "source": row["source"],
                "decision": row.get("decision"),
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
            "label": [place.get(row["label"]) for row in rows],
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


def _trust(row: Mapping[str, Any]) -> float:
    return round(float(row["trust"]), 4)


def _size(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as image:
            return image.size
    except OSError:
        return 0, 0
