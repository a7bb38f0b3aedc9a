"""Candidate sets out of features against slow loops; the table they are written to, read back."""

import json
import math
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from labelwright.annotators import candidate_rules as annotate
from labelwright.annotators.candidate_rules import (
    candidates_from_feats,
    check_rule,
    describe_candidates,
    write_candidates,
)
from labelwright.data.read import load
from labelwright.data.table import Images, LabelTable
from labelwright.errors import ConfigError
from labelwright.types import Candidates

RULES = ("union", "top_k", "ratio", "mean")
N, D, P, C, SCALE = 37, 6, 5, 8, 7.0


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def feats() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    base = torch.randn(1, C, D, generator=g)
    prompts = F.normalize(base + 0.6 * torch.randn(P, C, D, generator=g), dim=2)
    return F.normalize(torch.randn(N, D, generator=g), dim=1), prompts


def by_hand(z: list[float], prompts: list[list[list[float]]], rule: str, k: int, r: float) -> dict[int, float]:
    """Candidates of one image and their weights, in Python's own floats."""
    mean, tops = [0.0] * C, set()
    for prompt in prompts:
        raised = [math.exp(SCALE * sum(a * b for a, b in zip(z, text, strict=True))) for text in prompt]
        probs = [e / sum(raised) for e in raised]
        tops.add(max(range(C), key=probs.__getitem__))
        mean = [m + p / len(prompts) for m, p in zip(mean, probs, strict=True)]
    ranked = sorted(range(C), key=lambda c: -mean[c])
    kept = {"union": tops, "top_k": ranked[:k], "mean": ranked[:1]}.get(rule)
    kept = [c for c in range(C) if mean[c] >= r * max(mean)] if kept is None else kept
    return {c: mean[c] / sum(mean[j] for j in kept) for c in sorted(kept)}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n_at_once", [1, 10, N])
def test_candidates__against_a_loop(feats, rule, n_at_once) -> None:
    z, prompts = feats
    chunks = torch.split(z, n_at_once)
    sets = candidates_from_feats(chunks, prompts, logit_scale=SCALE, rule=rule, top_k=3, ratio=0.4)
    told = describe_candidates(sets, n_classes=prompts.shape[1])
    assert (sets.offsets.dtype, sets.classes.dtype, sets.weights.dtype) == (torch.int64, torch.int32, torch.float32)
    sizes = set()
    for row in range(N):
        wanted = by_hand(z[row].double().tolist(), prompts.double().tolist(), rule, 3, 0.4)
        span = slice(int(sets.offsets[row]), int(sets.offsets[row + 1]))
        assert sets.classes[span].tolist() == list(wanted)
        assert sets.weights[span].tolist() == pytest.approx(list(wanted.values()), abs=1e-5)
        sizes.add(len(wanted))
    assert sizes == {"top_k": {3}, "mean": {1}}.get(rule, sizes)
    assert len(sizes) > 1 or rule in ("top_k", "mean"), "the rule is tried on sets of several sizes"
    assert told["mean_set_size"] == pytest.approx(len(sets.classes) / N, abs=1e-4)


def test_candidates__limits_of_the_rules(feats) -> None:
    z, prompts = feats

    def classes(**settings) -> list[int]:
        return candidates_from_feats([z], prompts, logit_scale=SCALE, **settings).classes.tolist()

    assert classes(rule="top_k", top_k=1) == classes(rule="ratio", ratio=1.0) == classes(rule="mean")
    assert classes(rule="ratio", ratio=1e-9) == list(range(C)) * N
    half = classes(rule="top_k", top_k=99)  # a set of all classes would say nothing
    assert half == classes(rule="top_k", top_k=(C + 1) // 2)
    assert len(half) == (C + 1) // 2 * N
    one = candidates_from_feats([z], prompts[:1], logit_scale=SCALE)
    assert one.classes.tolist() == (z @ prompts[0].T).argmax(1).tolist()


def test_candidates__a_small_block_changes_nothing(feats, monkeypatch) -> None:
    z, prompts = feats
    whole = candidates_from_feats([z], prompts, logit_scale=SCALE)
    monkeypatch.setattr(annotate, "_ENTRIES_AT_ONCE", 3 * C)
    parts = candidates_from_feats([z], prompts, logit_scale=SCALE)
    assert torch.equal(parts.offsets, whole.offsets)
    assert torch.equal(parts.classes, whole.classes)
    assert torch.allclose(parts.weights, whole.weights)


def test_candidates__of_no_image(feats) -> None:
    sets = candidates_from_feats([], feats[1], logit_scale=SCALE)
    told = describe_candidates(sets, n_classes=feats[1].shape[1])
    assert (len(sets), sets.offsets.tolist(), sets.classes.tolist(), sets.weights.tolist()) == (0, [0], [], [])
    assert (told["n_images"], told["n_classes_never_named"]) == (0, C)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"rule": "most"}, "no such rule: 'most'"), ({"top_k": 0}, "top_k=0"), ({"ratio": 0.0}, "ratio=0.0")],
)
def test_check_rule__impossible_settings(settings, said, feats) -> None:
    with pytest.raises(ConfigError, match=said):
        check_rule(**{"rule": "union", "top_k": 3, "ratio": 0.5, **settings})
    with pytest.raises(ConfigError, match=said):
        candidates_from_feats([feats[0]], feats[1], logit_scale=SCALE, **settings)


def test_candidates__features_of_two_models(feats) -> None:
    with pytest.raises(ConfigError, match="length 5, text features of length 6"):
        candidates_from_feats([feats[0][:, :5]], feats[1], logit_scale=SCALE)


SETS = Candidates(
    torch.tensor([0, 2, 2, 3, 5]),
    torch.tensor([0, 2, 1, 1, 2], dtype=torch.int32),
    torch.tensor([0.25, 0.75, 1.0, 0.5, 0.5]),
)


def test_describe__against_a_truth() -> None:
    told = describe_candidates(SETS, n_classes=4, truth=np.array([0, 1, 1, 1]))
    assert told == {
        "n_images": 4,
        "has_weights": True,
        "mean_set_size": round(5 / 3, 4),
        "largest_set": 2,
        "n_empty": 1,
        "n_single": 1,
        "n_classes_never_named": 1,
        "n_scored": 4,
        "truth_inside": 0.75,  # all but the empty set
        "top1_accuracy": 0.5,  # row 0 leans to class 2; of row 3's tie the first counts
    }


def test_describe__rows_without_a_truth_and_classes_beyond_the_list() -> None:
    told = describe_candidates(SETS, n_classes=4, truth=np.array([2, -1, 7, -1]))
    assert (told["n_scored"], told["truth_inside"], told["top1_accuracy"]) == (2, 0.5, 0.5)
    assert "n_scored" not in describe_candidates(SETS, n_classes=4, truth=np.array([-1] * 4))
    unweighted = Candidates(SETS.offsets, SETS.classes)
    assert describe_candidates(unweighted, n_classes=4, truth=np.array([0, 0, 0, 0]))["top1_accuracy"] == 0.25


# ---- the table ------------------------------------------------------------------------------------------------------

NAMES = ("owl", "cat|dog", "yak", "bee")  # neither sorted nor without a separator


def same_sets(a: Candidates, b: Candidates) -> bool:
    return (
        torch.equal(a.offsets, b.offsets)
        and torch.equal(a.classes, b.classes)
        and torch.allclose(a.weights, b.weights, atol=1e-6)
    )


def labelled(images: Images, ids: list[str]) -> LabelTable:
    return LabelTable(
        images=images,
        ids=pa.array(ids, pa.large_string()),
        labels=np.array([1, -1, -1, 3], np.int32),
        class_names=NAMES,
        split=np.array([0, 0, 1, 2], np.int8),
        groups=np.array([5, 5, 9, 9]),
        truth=np.array([1, 4, -1, 3], np.int32),
        truth_names=(*NAMES, "eel"),
    )


def check_read_back(path: Path) -> LabelTable:
    back = load(path)
    assert [p for p in back.problems if p.kind != "unseen_class"] == []
    assert back.class_names == NAMES
    assert back.labels.tolist() == [1, -1, -1, 3]
    assert back.split.tolist() == [0, 0, 1, 2]
    assert len(set(back.groups[:2])) == len(set(back.groups[2:])) == 1 < len(set(back.groups))
    assert [back.truth_names[c] if c >= 0 else None for c in back.truth] == ["cat|dog", "eel", None, "bee"]
    assert same_sets(back.candidates, SETS)
    return back


def test_write__files_inside_and_outside_the_folder(tmp_path) -> None:
    inside, outside = tmp_path / "data", tmp_path / "photos"
    for folder in (inside, outside):
        folder.mkdir()
    paths = [inside / "0.png", inside / "1.png", outside / "2.png", outside / "3.png"]
    for i, path in enumerate(paths):
        Image.new("RGB", (4, 4), (10 * i, 0, 0)).save(path)
    images = Images(pa.array(["0.png", "1.png", "../photos/2.png", str(paths[3])], pa.large_string()), str(inside))
    table = labelled(images, ["a", "b", "c", "d"])
    write_candidates(inside / "out.parquet", table, SETS, NAMES, {"model": "m", "rule": "union"})
    back = check_read_back(inside / "out.parquet")
    assert back.ids.to_pylist() == ["a", "b", "c", "d"]
    assert [back.image(i).getpixel((0, 0))[0] for i in range(4)] == [0, 10, 20, 30]
    written = pq.read_table(inside / "out.parquet")
    assert written.column_names == ["id", "image", "label", "candidates", "weights", "split", "group", "truth"]
    assert written["image"].to_pylist() == ["0.png", "1.png", *map(str, paths[2:])]
    assert written["candidates"].to_pylist() == [["owl", "yak"], [], ["cat|dog"], ["cat|dog", "yak"]]
    told = json.loads(written.schema.metadata[b"labelwright"])
    assert told == {"class_names": list(NAMES), "annotator": {"model": "m", "rule": "union"}}
    moved = inside.rename(tmp_path / "elsewhere")
    assert load(moved / "out.parquet", on_bad="report").image(1).getpixel((0, 0))[0] == 10


@pytest.mark.parametrize("n_at_once", [3, 512])
def test_write__embedded_images_go_with_it(tmp_path, monkeypatch, n_at_once) -> None:
    monkeypatch.setattr(annotate, "_EMBEDDED_ROWS", n_at_once)
    pixels = [Image.new("RGB", (4, 4), (10 * i, 0, 0)) for i in range(4)]
    source = load(datasets.Dataset.from_dict({"image": pixels}))
    table = labelled(source.images, ["a", "b", "c", "d"])
    write_candidates(tmp_path / "new" / "out.parquet", table, SETS, NAMES, {})
    with pq.ParquetFile(tmp_path / "new" / "out.parquet") as file:
        assert file.num_row_groups == -(-4 // n_at_once)
    back = check_read_back(tmp_path / "new" / "out.parquet")
    assert back.ids.to_pylist() == ["a", "b", "c", "d"]
    assert [back.image(i).getpixel((0, 0))[0] for i in range(4)] == [0, 10, 20, 30]
    assert back.images.sources(np.array([2])) == source.images.sources(np.array([2]))  # bit for bit


def test_write__sets_without_weights_weigh_the_same(tmp_path) -> None:
    images = Images(pa.array([f"{i}.png" for i in range(4)], pa.large_string()), str(tmp_path))
    write_candidates(
        tmp_path / "out.parquet", labelled(images, list("abcd")), Candidates(SETS.offsets, SETS.classes), NAMES, {}
    )
    assert pq.read_table(tmp_path / "out.parquet")["weights"].to_pylist() == [[0.5, 0.5], [], [1.0], [0.5, 0.5]]


def test_write__never_overwrites_and_leaves_nothing_half_done(tmp_path, monkeypatch) -> None:
    images = Images(pa.array([f"{i}.png" for i in range(4)], pa.large_string()), str(tmp_path))
    table = labelled(images, list("abcd"))
    (tmp_path / "out.parquet").write_text("mine")
    with pytest.raises(ConfigError, match=r"out.parquet exists"):
        write_candidates(tmp_path / "out.parquet", table, SETS, NAMES, {})
    assert (tmp_path / "out.parquet").read_text() == "mine"

    def fail(*columns) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(annotate, "_columns", fail)
    with pytest.raises(OSError, match="disk full"):
        write_candidates(tmp_path / "other.parquet", table, SETS, NAMES, {})
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]
