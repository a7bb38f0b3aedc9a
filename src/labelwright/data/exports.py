"""JSON files that annotation tools export, as rows of a table: Label Studio, FiftyOne, COCO, or plain objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labelwright.data.layouts import SPLIT_NAMES
from labelwright.parsing import json_of

Row = dict[str, Any]

CLASSIFICATIONS = ("Classification", "Classifications")


def loads(text: str) -> Any:
    """JSON as Python has it, but for an object that has a key twice: which value is meant, nobody can say.

    Raises: ValueError.

    Example:
      >>> loads('{"image": "a.png", "label": "cat", "label": "dog"}')
      Traceback (most recent call last):
      ValueError: the key 'label' is there twice in one object
    """
    return json_of(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice in one object")
    return found


def rows_of(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """The rows of a JSON file, an image each, and the features of their columns as `datasets` writes them.

    Raises: ValueError if it is no JSON, or of no form that is known.

    Example:
      >>> import json, tempfile
      >>> path = Path(tempfile.mkdtemp()) / "export.json"
      >>> choice = {"result": [{"type": "choices", "value": {"choices": ["cat"]}}]}
      >>> _ = path.write_text(json.dumps([{"id": 7, "data": {"image": "a.png"}, "annotations": [choice]}]))
      >>> rows_of(path)[0]
      [{'image': 'a.png', 'label': 'cat'}]
    """
    content = loads(path.read_bytes().decode("utf-8-sig"))
    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        if any(isinstance(row.get("data"), dict) for row in content):
            return [_task(row) for row in content], {}
        return content, {}
    if isinstance(content, dict):
        if isinstance(content.get("samples"), list):
            return [_sample(each) for each in content["samples"] if isinstance(each, dict)], {}
        if isinstance(content.get("labels"), dict):
            return _classified(path.parent / "data", content)
        if all(isinstance(content.get(key), list) for key in ("images", "annotations", "categories")):
            return _coco(content), {}
    raise ValueError(
        "neither a list of objects, nor an export of Label Studio (JSON), FiftyOne (labels.json, samples.json) or COCO"
    )


def _task(task: Mapping[str, Any]) -> Row:
    """A task of Label Studio; annotators who differ make candidates, unless one answer is marked as the truth."""
    data = task.get("data")
    data = data if isinstance(data, dict) else {}
    texts = [value for value in data.values() if isinstance(value, str)]
    row: Row = {"image": data.get("image") or data.get("img") or next(iter(texts), None)}
    done = task.get("annotations") or task.get("completions") or []
    done = [each for each in done if isinstance(each, dict) and not each.get("was_cancelled")]
    done = [each for each in done if each.get("ground_truth")] or done
    answers = [_choices(each.get("result")) for each in done]
    answers = [answer for answer in answers if answer]
    names = [answer[0] for answer in answers if len(answer) == 1]
    if len(names) == len(answers) > 1 and len(set(names)) > 1:
        kept = list(dict.fromkeys(names))
        row |= {"candidates": kept, "weights": [names.count(name) for name in kept]}
    elif answers:
        row["label"] = answers[0] if len(answers[0]) > 1 else answers[0][0]
    return row


def _choices(result: Any) -> list[str]:
    found = []
    for each in result if isinstance(result, list) else ():
        value = each.get("value") if isinstance(each, dict) else None
        chosen = value.get("choices") if isinstance(value, dict) else None
        found += chosen if isinstance(chosen, list) else []
    return found


def _sample(sample: Mapping[str, Any]) -> Row:
    """A sample of a FiftyOneDataset: ``ground_truth``, or its only classification, is the label; a tag the split."""
    row: Row = {"image": sample.get("filepath")}
    for name, value in sample.items():
        if isinstance(value, dict) and value.get("_cls") in CLASSIFICATIONS:
            several = value.get("classifications")
            row[name] = [each.get("label") for each in several] if isinstance(several, list) else value.get("label")
    named = [name for name in row if name != "image"]
    own = "ground_truth" if "ground_truth" in named else named[0] if len(named) == 1 else None
    if own is not None:
        row["label"] = row.pop(own)
    tags = sample.get("tags")
    tags = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    splits = {tag for tag in tags if tag.lower() in SPLIT_NAMES}
    return row | ({"split": splits.pop()} if len(splits) == 1 else {})


def _classified(folder: Path, content: Mapping[str, Any]) -> tuple[list[Row], dict[str, Any]]:
    """A FiftyOneImageClassificationDataset: labels by the stem of the file in ``data/``; other files have none."""
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.*"))}
    labels = content["labels"]
    classes = content.get("classes")
    classes = classes if isinstance(classes, list) else []
    rows: list[Row] = []
    for stem in dict.fromkeys([*labels, *files]):
        choice = labels.get(stem)
        choice = choice.get("label") if isinstance(choice, dict) else choice
        if isinstance(choice, int) and 0 <= choice < len(classes):
            choice = classes[choice]
        name = files[stem].relative_to(folder).as_posix() if stem in files else stem
        rows.append({"image": f"data/{name}", "label": choice})
    return rows, {"label": {"_type": "ClassLabel", "names": classes}} if classes else {}


def _coco(content: Mapping[str, Sequence[Any]]) -> list[Row]:
    """COCO: the categories of an image's annotations, each once."""
    names = {each.get("id"): each.get("name") for each in content["categories"] if isinstance(each, dict)}
    found: dict[Any, dict[Any, None]] = {}
    for each in content["annotations"]:
        if isinstance(each, dict):
            found.setdefault(each.get("image_id"), {})[names.get(each.get("category_id"))] = None
    images = [each for each in content["images"] if isinstance(each, dict)]
    return [{"image": each.get("file_name"), "label": [*found.get(each.get("id"), {})]} for each in images]
