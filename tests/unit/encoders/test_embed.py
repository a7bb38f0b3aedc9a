"""A pretrained encoder at the door of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import clip_folders
import two_towers
from labelwright.data.prepare import prepare
from labelwright.encoders.backbones import Classifier
from labelwright.encoders.embed import Encoder, concepts_of, embed, is_two_tower, load_encoder
from labelwright.encoders.lora import LoraTowers
from labelwright.encoders.nets import EncoderNets
from labelwright.encoders.prompts import PromptedTowers
from labelwright.encoders.towers import EmbeddedTowers, FrozenTowers
from labelwright.errors import ConfigError
from labelwright.types import Concepts
from pictures import write_folders

CPU = torch.device("cpu")
NAMES = ("cat", "dog", "owl")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABELWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(clip_folders.save_two_tower(tmp_path_factory.mktemp("clip") / "m", "clip", size_px=16, patch_px=8))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(clip_folders.save_vision(tmp_path_factory.mktemp("vit") / "m", size_px=16))


def nets(encoder: Encoder | None, concepts: Concepts | None, *, is_stored: bool) -> EncoderNets:
    n_features = 12 if encoder is None else encoder.n_features
    return EncoderNets(n_features, concepts, encoder, is_stored, NAMES, "a photo of a {}", seed=3)


def encoder_of(name: str) -> Encoder:
    return load_encoder(name, device=CPU, precision="fp32")


def concepts(encoder: Encoder) -> Concepts:
    assert encoder.tower is not None
    return concepts_of(encoder.tower, NAMES, templates="one")


def test_load_encoder__with_words_and_without(clip: str, vit: str) -> None:
    assert (is_two_tower(clip), is_two_tower(vit)) == (True, False)
    with_words, without = encoder_of(clip), encoder_of(vit)
    assert (with_words.n_features, without.n_features) == (12, 16)
    assert with_words.tower is not None
    assert without.tower is None
    assert with_words.identity != without.identity
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for encoder in (with_words, without):
        z = encoder.encode(x)
        assert torch.allclose(z.norm(dim=1), torch.ones(3), atol=1e-5)
        assert torch.allclose(z, F.normalize(encoder.vision(x), dim=1), atol=1e-6)
        assert not any(p.requires_grad for p in encoder.vision.parameters())


def test_embed__features_of_every_row_in_order_and_views_that_differ(clip: str, tmp_path: Path) -> None:
    encoder = encoder_of(clip)
    assert encoder.tower is not None
    stats = encoder.tower.stats
    root = write_folders(tmp_path / "photos", {"cat": 5, "dog": 4}, size_px=16)
    prepared = prepare(root, size_px=16, stats=(stats.mean, stats.std), test_frac=0.3)
    source = embed(prepared.train, encoder, prepared.view, n_views=2, device=CPU)
    assert source.stored is not None
    views, pixels = source.views(prepared.view), prepared.train.pixel_views(prepared.view)
    rows = torch.arange(len(source.table))
    expected = encoder.encode(pixels.batch(rows, "clean", seed=0, device=CPU))
    assert torch.allclose(views.batch(rows, "clean", seed=0, device=CPU), expected, atol=2e-3)  # kept in float16
    assert {source.stored.n_views("weak"), source.stored.n_views("strong")} == {2}
    weak, strong = (views.batch(rows, view, seed=1, device=CPU) for view in ("weak", "strong"))
    assert (weak - strong).abs().max() > 1e-3
    few = source.take(np.array([3, 1]))
    assert torch.allclose(
        few.views(prepared.view).batch(torch.arange(2), "clean", seed=0, device=CPU), expected[[3, 1]], atol=2e-3
    )


def test_embed__a_part_of_the_images_keeps_its_pixels(vit: str, tmp_path: Path) -> None:
    encoder = encoder_of(vit)
    root = write_folders(tmp_path / "photos", {"cat": 5, "dog": 4}, size_px=16)
    prepared = prepare(root, size_px=16, stats=(encoder.stats.mean, encoder.stats.std), test_frac=0.3)
    assert prepared.test is not None
    rows = torch.arange(len(prepared.test.table))
    expected = prepared.test.pixel_views(prepared.view).batch(rows, "clean", seed=0, device=CPU)
    source = embed(prepared.test, encoder, prepared.view, n_views=0, device=CPU)
    assert torch.equal(source.pixel_views(prepared.view).batch(rows, "clean", seed=0, device=CPU), expected)
    last = source.take(np.array([len(rows) - 1])).pixel_views(prepared.view)
    assert torch.equal(last.batch(torch.arange(1), "clean", seed=0, device=CPU), expected[-1:])


def test_concepts_of__names_and_descriptions(clip: str) -> None:
    tower = encoder_of(clip).tower
    assert tower is not None
    found = concepts_of(tower, NAMES, templates="one", descriptions={"dog": ["big", "red with spots"]})
    assert found.descriptions == ((), ("big", "red with spots"), ())
    assert [len(feats) for feats in found.description_feats] == [0, 2, 0]
    texts = tower.text_feats(["a photo of a cat", "a photo of a dog", "a photo of an owl"])
    assert torch.allclose(found.feats, texts, atol=1e-5)
    assert found.logit_scale == pytest.approx(20.0, rel=1e-4)


@pytest.mark.parametrize(
    ("tune", "kind"),
    [
        ("none", FrozenTowers),
        ("coop", PromptedTowers),
        ("vpt", PromptedTowers),
        ("maple", PromptedTowers),
        ("lora", LoraTowers),
    ],
)
def test_towers__of_pixels(tune: str, kind: type, clip: str) -> None:
    encoder = encoder_of(clip)
    towers = nets(encoder, concepts(encoder), is_stored=False).towers(tune)
    assert type(towers) is kind
    x = torch.randn(2, 3, 16, 16)
    assert towers.features(x).shape == (2, 12)
    assert towers.text_feats().shape == (3, 12)
    if tune == "none":
        assert torch.equal(towers.text_feats(), concepts(encoder).feats)


def test_towers__of_stored_features(clip: str) -> None:
    encoder = encoder_of(clip)
    build = nets(encoder, concepts(encoder), is_stored=True)
    assert type(build.towers()) is EmbeddedTowers
    with pytest.raises(ConfigError, match="tune=lora trains the encoder") as caught:
        build.towers("lora")
    assert caught.value.fix == "add --views pixels"
    with pytest.raises(ConfigError, match="no text features of the classes"):
        nets(encoder, None, is_stored=True).towers()


def test_nets__heads_on_features_and_the_encoder_in_front_afterwards(clip: str) -> None:
    encoder = encoder_of(clip)
    build = nets(encoder, None, is_stored=True)
    first, second = build(4), build(4, head="cosine")
    assert isinstance(first, Classifier)
    assert not any(torch.equal(p, q) for p, q in zip(first.head.parameters(), second.head.parameters(), strict=False))
    x = torch.randn(2, 3, 16, 16)
    whole = build.deployable(first).eval()
    with torch.no_grad():
        assert torch.allclose(whole(x), first(encoder.encode(x)), atol=1e-5)
    assert whole.image_size_px == 16
    again = nets(encoder, None, is_stored=True)(4)
    assert all(torch.equal(p, q) for p, q in zip(first.head.parameters(), again.head.parameters(), strict=True))
    bare = nets(None, None, is_stored=True)
    net = bare(4)
    assert isinstance(net, Classifier)
    assert bare.deployable(net) is net


def test_nets__of_pixels_train_the_head_alone(clip: str) -> None:
    net = nets(encoder_of(clip), None, is_stored=False)(4)
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith("head") for name in trained)
    assert net(torch.randn(2, 3, 16, 16)).shape == (2, 4)


def test_words_of_the_made_up_models() -> None:
    assert set(NAMES) <= set(two_towers.WORDS)  # or the tests above would compare one unknown word with another
