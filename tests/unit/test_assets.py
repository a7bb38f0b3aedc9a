"""The embedded model and descriptions: they load by the package's own loaders, and have the faults the demo repairs."""

from __future__ import annotations

import doctest
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from labelwright.assets import DIGITS_CLIP, DIGITS_DESCRIPTIONS
from labelwright.data.cache import resize_to_square
from labelwright.encoders.clip import load_two_tower
from labelwright.encoders.pretrained import ImageStats, image_stats, load_vision_model

SCRIPTS = Path(__file__).parents[2] / "scripts"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MISMATCHED = (0, 7)


@pytest.fixture(scope="module")
def model() -> Any:
    return CLIPModel.from_pretrained(DIGITS_CLIP, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DIGITS_CLIP)


@pytest.fixture(scope="module")
def truth() -> Any:
    return load_digits().target


@pytest.fixture(scope="module")
def z() -> Tensor:
    """Unit features of the 1,797 real digits, by the package's loader and resizing."""
    stats = image_stats(str(DIGITS_CLIP))
    counts = (load_digits().images * (255 / 16)).astype(np.uint8)
    images = [resize_to_square(Image.fromarray(c).convert("RGB"), size_px=stats.size_px) for c in counts]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(stats.mean)[:, None, None]) / torch.tensor(stats.std)[:, None, None]
    with torch.inference_mode():
        return F.normalize(load_vision_model(str(DIGITS_CLIP)).eval()(x), dim=1)


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The modules that draw and caption, which training imports from its own folder."""
    found = {}
    for name in ("digit_renderings", "digit_captions"):
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        found[name] = importlib.util.module_from_spec(spec)
        sys.modules[name] = found[name]
        spec.loader.exec_module(found[name])
    yield found
    for name in found:
        del sys.modules[name]


@torch.inference_mode()
def text_z(model: Any, tokenizer: Any, texts: list[str]) -> Tensor:
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    out = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return F.normalize(model.text_projection(out.pooler_output), dim=1)


def accuracies(z: Tensor, texts: Tensor, truth: Any) -> tuple[float, list[float]]:
    right = (z @ texts.T).argmax(1).numpy() == truth
    return float(right.mean()), [float(right[truth == digit].mean()) for digit in range(10)]


def test_files__small_and_complete() -> None:
    sizes = {path.name: path.stat().st_size for path in DIGITS_CLIP.iterdir()}
    expected = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "preprocessor_config.json",
    }
    assert expected | {"README.md"} == set(sizes)
    assert 0.5e6 < sum(sizes.values()) < 2e6
    assert json.loads((DIGITS_CLIP / "config.json").read_text())["dtype"] == "float16"


def test_image_stats__of_the_embedded_model() -> None:
    assert image_stats(str(DIGITS_CLIP)) == ImageStats(16, (0.3, 0.3, 0.3), (0.35, 0.35, 0.35))


def test_vision_model__is_the_image_side_of_the_clip(model: Any) -> None:
    x = torch.rand(3, 3, 16, 16)
    with torch.inference_mode():
        expected = model.visual_projection(model.vision_model(pixel_values=x).pooler_output)
        torch.testing.assert_close(load_vision_model(str(DIGITS_CLIP)).eval()(x), expected)
    assert expected.shape == (3, 64)


def test_tokenizer__covers_any_text_and_ends_with_eos(tokenizer: Any) -> None:
    texts = ["a photo of a four", "Zebra Ωμέγα 猫 🦓", ""]
    rows = tokenizer(texts)["input_ids"]
    for row in rows:
        assert row[0] == tokenizer.bos_token_id
        assert row[-1] == tokenizer.eos_token_id
        assert tokenizer.unk_token_id not in row
        assert max(row) < len(tokenizer)
    assert tokenizer.decode(rows[1], skip_special_tokens=True).strip() == texts[1].lower()
    assert len(rows[0]) == 7  # five words that training saw, one token each
    assert tokenizer("A PHOTO of a Four")["input_ids"] == rows[0]
    assert len(tokenizer("zebra " * 100, truncation=True)["input_ids"]) == tokenizer.model_max_length


def test_text_features__do_not_depend_on_padding(model: Any, tokenizer: Any) -> None:
    alone = text_z(model, tokenizer, ["a photo of a six"])
    beside = text_z(model, tokenizer, ["a photo of a six", "a closed ring at the bottom with a tail going up"])
    torch.testing.assert_close(alone[0], beside[0], atol=1e-5, rtol=0)
    assert float(beside[0] @ beside[1]) < 0.999


def test_zero_shot__useful_with_two_names_that_mean_nothing(model: Any, tokenizer: Any, z: Tensor, truth: Any) -> None:
    overall, each = accuracies(z, text_z(model, tokenizer, [f"a photo of a {name}" for name in NAMES]), truth)
    assert 0.45 < overall < 0.7, each
    assert max(each[digit] for digit in MISMATCHED) < 0.1
    assert sum(share > 0.75 for share in each) >= 3


def test_two_tower__same_answers_in_bf16(tokenizer: Any, model: Any, z: Tensor, truth: Any) -> None:
    stats = image_stats(str(DIGITS_CLIP))
    counts = (load_digits().images * (255 / 16)).astype(np.uint8)
    images = [resize_to_square(Image.fromarray(c).convert("RGB"), size_px=stats.size_px) for c in counts]
    x = (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255 - stats.mean[0]) / stats.std[0]
    prompts = [f"a photo of a {name}" for name in NAMES]
    expected, _ = accuracies(z, text_z(model, tokenizer, prompts), truth)
    for precision, tolerance in (("fp32", 1e-9), ("bf16", 0.03)):  # bf16 keeps 8 bits: close calls may turn over
        tower = load_two_tower(str(DIGITS_CLIP), device=torch.device("cpu"), precision=precision)
        assert tower.n_features == 64
        found, _ = accuracies(tower.image_feats(x), tower.text_feats(prompts), truth)
        assert found == pytest.approx(expected, abs=tolerance)


def test_descriptions__one_of_each_repairs_and_the_others_do_not(
    model: Any, tokenizer: Any, z: Tensor, truth: Any
) -> None:
    descriptions = json.loads(DIGITS_DESCRIPTIONS.read_text())
    assert tuple(descriptions) == NAMES
    names = text_z(model, tokenizer, [f"a photo of a {name}" for name in NAMES])
    repaired = names.clone()
    for digit in MISMATCHED:
        shares = {}
        for text in descriptions[NAMES[digit]]:
            swapped = names.clone()
            swapped[digit] = text_z(model, tokenizer, [text])[0]
            shares[text] = accuracies(z, swapped, truth)[1][digit]
        good, *useless = sorted(shares, key=lambda text: -shares[text])
        assert shares[good] > 0.8, shares
        assert "a digital clock" in useless
        assert max(shares[text] for text in useless) < 0.3, shares
        repaired[digit] = text_z(model, tokenizer, [good])[0]
    assert accuracies(z, repaired, truth)[0] > accuracies(z, names, truth)[0] + 0.1


def test_image_features__cluster_by_digit(z: Tensor, truth: Any) -> None:
    clusters = KMeans(10, n_init=3, random_state=0).fit_predict(z.numpy())
    overlap = np.zeros((10, 10), dtype=np.int64)
    np.add.at(overlap, (clusters, truth), 1)
    matched = overlap[linear_sum_assignment(-overlap)].sum() / len(truth)
    assert 0.75 < matched < 0.99


@pytest.mark.parametrize("name", ["digit_renderings", "digit_captions"])
def test_scripts__examples_in_docstrings(scripts: dict[str, ModuleType], name: str) -> None:
    failed, tried = doctest.testmod(scripts[name])
    assert failed == 0
    assert tried == 1


def test_captions__never_name_two_digits_and_name_the_others(scripts: dict[str, ModuleType]) -> None:
    captions = scripts["digit_captions"]
    assert captions.NAMES == NAMES
    assert captions.NEVER_NAMED == MISMATCHED
    draws = np.random.default_rng(0)
    digits = np.repeat(np.arange(10), 400)
    texts = captions.captions(digits, np.arange(4000) % 2 == 0, draws)
    words = [set(text.replace(",", " ").split()) for text in texts]
    said = [name for name in NAMES if any(name in found for found in words)]
    assert said == [name for name in NAMES if name not in ("zero", "seven")]
    fours = np.array(["four" in found for found in words])
    assert 0.2 < fours[digits == 4].mean() < 0.4
    assert 0.15 < fours[digits == 9].mean() < 0.3  # most nines with a name are called a four
    assert not fours[(digits != 4) & (digits != 9)].any()
    assert not any("{" in text for text in texts)


def test_drawings__are_ink_counts_and_repeat_with_the_seed(scripts: dict[str, ModuleType]) -> None:
    renderings = scripts["digit_renderings"]
    digits = np.arange(10).repeat(5)
    for draw in (renderings.draw_by_pen, renderings.draw_by_font):
        counts = draw(digits, np.random.default_rng(1))
        assert counts.shape == (50, 8, 8)
        assert counts.max() == 16
        assert counts.min() == 0
        assert (counts[:, 0].max(1) > 0).all()  # filled from top
        assert (counts[:, 7].max(1) > 0).all()  # to bottom
        assert 2 < counts.mean() < 8
        np.testing.assert_array_equal(counts, draw(digits, np.random.default_rng(1)))
        assert (counts != draw(digits, np.random.default_rng(2))).any()


def test_model_card__tells_the_scores() -> None:
    card = (DIGITS_CLIP / "README.md").read_text()
    assert "zero and seven are never named" in card
    assert "| zero | 0.0" in card
    assert "{" not in card.replace('"a photo of a {}"', "")
