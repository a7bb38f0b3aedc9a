"""Target pools, what is hidden of them, made-up names, transformed images, descriptions."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from labelwright.annotators.annotator import load_matching, views_of
from labelwright.benchmarking.grid import Given, Guessing
from labelwright.benchmarking.pools import (
    as_given,
    converted,
    descriptions_of,
    probs_of,
    share_of,
    target_pool,
    with_nonsense,
)
from labelwright.data.prepare import open_source
from labelwright.data.registry import open_dataset
from labelwright.data.table import Images, LabelTable
from labelwright.encoders.templates import prompt_text_feats, templates_named
from labelwright.errors import ConfigError, DataError

SHARED = Path(os.environ.get("LABELWRIGHT_SHARED", Path(__file__).parents[4] / "shared"))
needs_data = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the data sets are not on this machine")
NAMES = tuple("abcdefghij")


def table_of(ids: list[str], labels: list[int], *, pixels: NDArray[np.uint8] | None = None) -> LabelTable:
    """A table whose images exist only if their pixels [N, H, W, 3] are given."""
    if pixels is None:
        images = Images(paths=pa.array(ids, pa.large_string()))
    else:
        cells = []
        for each in pixels:
            encoded = io.BytesIO()
            Image.fromarray(each).save(encoded, "PNG")
            cells.append({"bytes": encoded.getvalue(), "path": None})
        features = datasets.Features({"image": datasets.Image(decode=False)})
        images = Images(dataset=datasets.Dataset.from_dict({"image": cells}, features=features))
    return LabelTable(images, pa.array(ids, pa.large_string()), np.array(labels, dtype=np.int32), NAMES)


@pytest.fixture
def pool() -> LabelTable:
    """5 images of every class."""
    labels = np.repeat(np.arange(10), 5).tolist()
    return table_of([f"{label}/{row}.jpg" for row, label in enumerate(labels)], labels)


def test_target_pool__takes_the_images_that_the_model_has_not_seen() -> None:
    cifar = table_of(["airplane/2499.jpg", "airplane/2500.jpg", "cat/0000.jpg", "cat/4999.jpg"], [0, 0, 1, 1])
    assert target_pool(cifar, "cifar10").ids.to_pylist() == ["airplane/2500.jpg", "cat/4999.jpg"]
    signs = table_of(["00000/00000_00001.jpg", "00000/00001_00000.jpg", "00042/00011_00029.jpg"], [0, 0, 1])
    assert target_pool(signs, "gtsrb").ids.to_pylist() == ["00000/00001_00000.jpg", "00042/00011_00029.jpg"]


@pytest.mark.parametrize(("dataset", "name"), [("cifar10", "17"), ("cifar10", "cat/a2500.jpg"), ("gtsrb", "00001.jpg")])
def test_target_pool__refuses_ids_that_do_not_tell(dataset: str, name: str) -> None:
    with pytest.raises(DataError, match=f"the id '{name}' of row 0 does not say .* target pool of {dataset}"):
        target_pool(table_of([name], [0]), dataset)


@needs_data
@pytest.mark.parametrize(("dataset", "n_pool"), [("cifar10", 25_000), ("gtsrb", 19_319)])
def test_target_pool__of_the_data_sets(dataset: str, n_pool: int) -> None:
    train = open_dataset(dataset, root=SHARED / "data", split="train")
    found = target_pool(train, dataset)
    assert len(found) == n_pool
    if dataset == "cifar10":
        assert found.counts().tolist() == [2500] * 10
        return
    assert train.groups is not None
    assert found.groups is not None
    ids = set(found.ids.to_pylist())
    rest = np.array([i not in ids for i in train.ids.to_pylist()])
    assert not set(found.groups.tolist()) & set(train.groups[rest].tolist())  # no sign is on both sides
    assert (found.counts() > 0).all()


def test_as_given__hides_every_label_and_keeps_the_truth_apart(pool: LabelTable) -> None:
    found = as_given(pool, Given(), seed=0)
    assert (found.labels == -1).all()
    assert found.truth is not None
    assert found.truth.tolist() == pool.labels.tolist()
    assert found.truth_names == found.class_names == NAMES
    assert (pool.labels >= 0).all()  # the pool itself is as it was


def test_as_given__few_labels_are_two_of_every_class_drawn_by_the_seed(pool: LabelTable) -> None:
    first, same, other = (as_given(pool, Given(labels="few"), seed=seed) for seed in (0, 0, 1))
    assert first.counts().tolist() == [2] * 10
    known = first.labels >= 0
    assert (first.labels[known] == pool.labels[known]).all()
    assert first.labels.tolist() == same.labels.tolist() != other.labels.tolist()
    alone = as_given(pool, Given(labels="few_alone"), seed=0)
    assert alone.ids.to_pylist() == [
        name for name, is_known in zip(pool.ids.to_pylist(), known, strict=True) if is_known
    ]
    assert alone.labels.tolist() == first.labels[known].tolist()


def test_as_given__some_classes_are_labelled_in_full(pool: LabelTable) -> None:
    found = [as_given(pool, Given(labels="some_classes"), seed=seed) for seed in range(4)]
    for table in found:
        assert sorted(table.counts().tolist()) == [0] * 4 + [5] * 6  # 62% of 10 classes, cut to 6
    assert len({tuple(table.counts()) for table in found}) > 1


def test_as_given__all_labels_leave_no_truth_beside_them(pool: LabelTable) -> None:
    found = as_given(pool, Given(labels="all"), seed=0)
    assert found.labels.tolist() == pool.labels.tolist()
    assert found.truth is None


def test_as_given__verified_labels_are_as_many_of_every_class_as_asked(pool: LabelTable) -> None:
    for n in (0, 1, 3):
        found = as_given(pool, Given(guessing=Guessing(), n_verified=n), seed=0)
        assert found.counts().tolist() == [n] * 10
        known = found.labels >= 0
        assert (found.labels[known] == pool.labels[known]).all()
        assert found.candidates is None  # fit asks the model
        assert len(found) == len(pool)


@pytest.fixture
def large_pool() -> LabelTable:
    """400 images of every class."""
    labels = np.repeat(np.arange(10), 400).tolist()
    return table_of([f"{label}/{row}.jpg" for row, label in enumerate(labels)], labels)


def members(table: LabelTable) -> NDArray[np.bool_]:
    """[N, C] candidate sets."""
    assert table.candidates is not None
    sets = np.zeros((len(table), 10), dtype=bool)
    for row in range(len(table)):
        sets[row, table.candidates.of(row).numpy()] = True
    return sets


def test_as_given__candidates_by_chance_have_the_shares_that_were_asked(large_pool: LabelTable) -> None:
    found = as_given(large_pool, Given(guessing=Guessing("chance", q=0.3, eta=0.2)), seed=0)
    sets, truth = members(found), large_pool.labels
    n = len(truth)
    inside = sets[np.arange(n), truth].mean()
    assert abs(inside - 0.8) < 4 * np.sqrt(0.2 * 0.8 / n)
    # with eta a set keeps its size: one label and 9 wrong ones with 0.3 each
    assert abs(sets.sum(1).mean() - (1 + 9 * 0.3)) < 4 * np.sqrt(9 * 0.3 * 0.7 / n)
    other = as_given(large_pool, Given(guessing=Guessing("chance", q=0.3, eta=0.2)), seed=1)
    same = as_given(large_pool, Given(guessing=Guessing("chance", q=0.3, eta=0.2)), seed=0)
    assert (members(same) == sets).all()
    assert (members(other) != sets).any()


def test_as_given__of_the_truth_candidates_are_all_that_training_sees(large_pool: LabelTable) -> None:
    found = as_given(large_pool, Given(guessing=Guessing("chance", q=0.3, eta=0.2)), seed=0)
    task = found.task()
    assert bool((task.labels == -1).all())
    assert task.candidates is found.candidates
    assert found.truth is not None  # for scoring
    assert found.truth.tolist() == large_pool.labels.tolist()
    assert found.candidates is not None
    assert found.candidates.weights is None
    assert task.groups is None
    assert large_pool.candidates is None


def test_as_given__candidates_by_doubt_are_the_wrong_labels_that_the_model_likes(large_pool: LabelTable) -> None:
    n = len(large_pool)
    probs = np.full((n, 10), 0.001, dtype=np.float32)
    liked = (large_pool.labels + 3) % 10
    probs[np.arange(n), liked] = 0.991
    found = as_given(large_pool, Given(guessing=Guessing("doubt", q=0.1, eta=0.0)), seed=0, probs=probs)
    sets = members(found)
    assert sets[np.arange(n), large_pool.labels].all()
    wrong = sets.sum() - n
    assert abs(wrong / (9 * n) - 0.1) < 0.005  # the rate is the mean over wrong labels
    assert sets[np.arange(n), liked].sum() / wrong > 0.95


def test_as_given__doubt_goes_with_its_image_where_a_share_is_drawn(large_pool: LabelTable) -> None:
    n = len(large_pool)
    liked = np.random.default_rng(0).integers(1, 10, n)
    liked = (large_pool.labels + liked) % 10
    probs = np.full((n, 10), 1e-4, dtype=np.float32)
    probs[np.arange(n), liked] = 1.0
    found = as_given(large_pool, Given(guessing=Guessing("doubt", q=0.1), share=0.25), seed=2, probs=probs)
    rows = share_of(n, 0.25, seed=2)
    assert found.ids.to_pylist() == [large_pool.ids[int(row)].as_py() for row in rows]
    assert len(found) == n // 4
    assert members(found)[np.arange(len(rows)), liked[rows]].mean() > 0.85


def test_share_of__does_not_look_at_classes_and_lies_in_the_larger_one() -> None:
    small, large = (set(share_of(1000, share, seed=4).tolist()) for share in (0.05, 0.4))
    assert (len(small), len(large)) == (50, 400)
    assert small < large
    assert small != set(share_of(1000, 0.05, seed=5).tolist())
    assert share_of(1000, 1.0, seed=4).tolist() == list(range(1000))
    assert len(share_of(3, 0.05, seed=0)) == 1


def test_probs_of__are_the_mean_over_prompts_of_each_softmax(noise: LabelTable) -> None:
    model = "labelwright/digits-clip"
    found = probs_of(noise, model, templates="photo27", device="cpu")
    on = torch.device("cpu")
    encoder = load_matching(model, device=on, precision="auto")
    source = open_source(noise, classes=None, size_px=encoder.tower.stats.size_px)
    z = torch.cat(list(views_of(source, encoder, on).feats())).double()
    wanted = np.zeros((3, 10))
    templates = templates_named("photo27")
    for template in templates:
        text = prompt_text_feats(encoder.tower.text_feats, NAMES, [template])[0].double()
        for row in range(3):
            weights = np.exp([float(encoder.tower.logit_scale * (z[row] @ text[c])) for c in range(10)])
            wanted[row] += weights / weights.sum() / len(templates)
    assert found.shape == (3, 10)
    assert np.abs(found - wanted).max() < 1e-3  # features and products in lower precision
    assert found.std() > 0.01


def test_with_nonsense__replaces_as_many_as_asked_by_different_words() -> None:
    official = [f"class {k}" for k in range(43)]
    found = with_nonsense(official, 26, seed=3)
    replaced = [now for now, was in zip(found, official, strict=True) if now != was]
    assert len(replaced) == len(set(replaced)) == 26
    assert all(word.isalpha() and len(word) == 7 for word in replaced)
    assert found == with_nonsense(official, 26, seed=3)
    assert found != with_nonsense(official, 26, seed=4)
    assert with_nonsense(official, 0, seed=3) == tuple(official)


def pixels_of(table: LabelTable) -> NDArray[np.float64]:
    return np.stack([np.asarray(table.image(row), dtype=np.float64) for row in range(len(table))])


@pytest.fixture
def noise() -> LabelTable:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    return table_of(["a/0.png", "a/1.png", "b/2.png"], [0, 0, 1], pixels=pixels)


def test_converted__negative_is_255_minus_every_value(noise: LabelTable) -> None:
    assert (pixels_of(converted(noise, "negative")) == 255 - pixels_of(noise)).all()


def test_converted__grey_is_the_luminance_in_all_channels(noise: LabelTable) -> None:
    found = pixels_of(converted(noise, "grey"))
    luminance = pixels_of(noise) @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(found - luminance[..., None]).max() <= 1.0  # rounding
    assert found.std() > 20


def test_converted__blur_leaves_what_a_gaussian_of_two_pixels_leaves_of_noise(noise: LabelTable) -> None:
    before, after = (pixels_of(table)[:, 6:-6, 6:-6] for table in (noise, converted(noise, "blurred")))
    # the sum of squared weights of a Gaussian: 1 / (4 pi sigma^2) = 0.0199; the neighbours that are left are alike
    assert 0.012 < after.var() / before.var() < 0.03
    assert abs(after.mean() - before.mean()) < 4
    flat = table_of(["a/0.png"], [0], pixels=np.full((1, 32, 32, 3), 77, dtype=np.uint8))
    assert (pixels_of(converted(flat, "blurred")) == 77).all()


def test_converted__changes_nothing_but_the_images(noise: LabelTable) -> None:
    found = converted(noise, "grey")
    assert found.ids.to_pylist() == noise.ids.to_pylist()
    assert found.labels.tolist() == noise.labels.tolist()
    assert found.fingerprint != noise.fingerprint
    assert converted(noise, "plain") is noise


def described(folder: Path, entries: Any) -> Path:
    file = folder / "descriptions.json"
    file.write_text(json.dumps(entries))
    return file


def test_descriptions_of__follow_the_class_and_not_the_name(tmp_path: Path) -> None:
    described(tmp_path, {"cifar10": {"cat": ["soft", "small"], "owl": "large eyes"}})
    found = descriptions_of(None, str(tmp_path / "clip"), "cifar10", ["cat", "dog", "owl"], ["zubag", "dog", "owl"])
    assert found == {"zubag": ["soft", "small"], "owl": ["large eyes"]}
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    file = described(elsewhere, {"cifar10": {"dog": ["loud"]}})
    assert descriptions_of(file, str(tmp_path / "clip"), "cifar10", ["dog"], ["dog"]) == {"dog": ["loud"]}


def test_descriptions_of__names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no descriptions: there is no .*descriptions[.]json"):
        descriptions_of(None, str(tmp_path / "clip"), "cifar10", ["cat"], ["cat"])
    for entries, message in (
        ({"gtsrb": {}}, "KeyError: 'cifar10'"),
        ({"cifar10": {"unicorn": ["white"]}}, "'unicorn' is not in list"),
        (["cat"], "TypeError"),
        ({"cifar10": ["cat"]}, "AttributeError"),
    ):
        file = described(tmp_path, entries)
        with pytest.raises(DataError, match=message) as raised:
            descriptions_of(file, "clip", "cifar10", ["cat"], ["cat"])
        assert str(file) in str(raised.value)
