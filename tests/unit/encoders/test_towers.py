"""Towers over stored features and over a frozen model: unit features, texts exchanged, and what is saved."""

import copy

import pytest
import torch

from labelwright.encoders.towers import EmbeddedTowers, FrozenTowers, Towers
from two_towers import pixels, two_tower

TEXTS = ["a photo of a cat", "a photo of an owl", "a big dog"]


def test_embedded__logits_are_scaled_cosines():
    towers: Towers = EmbeddedTowers(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), logit_scale=5.0)
    logits = towers.logit_scale * towers.features(torch.tensor([[10.0, 0.0], [0.0, 0.1]])) @ towers.text_feats().T
    torch.testing.assert_close(logits, torch.tensor([[5 * 0.6, 0.0], [5 * 0.8, 5.0]]))


def test_embedded__half_precision_features_become_float32():
    towers = EmbeddedTowers(torch.eye(3), logit_scale=1.0)
    feats = towers.features(torch.tensor([[3.0, 0.0, 4.0]]).half())
    torch.testing.assert_close(feats, torch.tensor([[0.6, 0.0, 0.8]]))


def test_embedded__class_feats_are_saved():
    towers = EmbeddedTowers(torch.tensor([[0.0, 7.0], [7.0, 0.0]]), logit_scale=1.0)
    assert towers.text_feats().tolist() == [[0.0, 1.0], [1.0, 0.0]]
    again = EmbeddedTowers(torch.eye(2), logit_scale=1.0)
    again.load_state_dict(towers.state_dict())
    assert again.text_feats().tolist() == [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize("family", ["clip", "siglip", "chinese_clip"])
def test_frozen__is_the_model(family):
    tower = two_tower(family)
    towers: Towers = FrozenTowers(tower, tower.text_feats(TEXTS))
    assert torch.equal(towers.features(pixels()), tower.image_feats(pixels()))
    assert torch.equal(towers.text_feats(), tower.text_feats(TEXTS))
    assert towers.logit_scale == tower.logit_scale


def test_frozen__neither_parameters_nor_state_and_shared_by_copies():
    towers = FrozenTowers(two_tower("clip"), torch.eye(3, 10))
    assert list(towers.parameters()) == []
    assert towers.state_dict() == {}
    assert copy.deepcopy(towers).tower is towers.tower


def test_frozen__moves_with_its_owner():
    owner = torch.nn.ModuleDict({"towers": FrozenTowers(two_tower("clip"), torch.eye(3, 10))}).float()
    assert next(owner["towers"].tower.parameters()).dtype == torch.float32
    assert owner["towers"].features(pixels().float()).shape == (4, 10)
