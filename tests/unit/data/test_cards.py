"""The cards hold together, and a name that is none gets the closest one."""

import collections

import pytest

from labelwright.data.cards import DATASETS, SPELLINGS, dataset_card, plain_name
from labelwright.errors import ConfigError


@pytest.mark.parametrize("card", DATASETS.values(), ids=list(DATASETS))
def test_cards__hold_together(card):
    assert DATASETS[card.key] is card
    assert card.prompt.count("{}") == 1
    assert "train" in card.splits
    assert min(card.splits.values()) > 0
    assert set(card.lists) <= set(card.splits)
    assert set(card.hub_splits) <= set(card.splits)
    assert card.hub_id.count("/") == (1 if card.hub_id else 0)
    assert card.hub_id or card.lists
    names = card.class_names
    assert len(names) in (0, card.n_classes)
    assert len(names) == card.n_classes or card.n_classes > 102 or card.key in ("imagenet100",)
    # no spelling stands for two classes
    spellings = SPELLINGS.get(card.key, ())
    plain = [
        plain_name(s) for one in spellings for s in {plain_name(x) for x in ([one] if isinstance(one, str) else one)}
    ]
    assert [s for s, n in collections.Counter(plain).items() if n > 1] == []


def test_cards__the_papers_sets_and_mirroring():
    assert len(DATASETS) == 15
    assert set(SPELLINGS) < set(DATASETS)
    assert {key for key, card in DATASETS.items() if not card.flip} == {"svhn", "gtsrb"}
    assert {key for key, card in DATASETS.items() if card.is_gated} == {"imagenet1k"}
    assert (DATASETS["cifar100"].class_names[0], DATASETS["cifar100"].class_names[99]) == ("apple", "worm")


def test_dataset_card__names_and_closest_match():
    assert dataset_card("fashion-mnist").key == "fashion_mnist"
    assert dataset_card("iNaturalist 2018").key == "inaturalist2018"
    with pytest.raises(ConfigError, match="no data set is called 'cifar1O'") as caught:
        dataset_card("cifar1O")
    assert "did you mean cifar10?" in caught.value.fix
    assert all(key in caught.value.fix for key in DATASETS)
    with pytest.raises(ConfigError) as caught:
        dataset_card("zzzzzz")
    assert "did you mean" not in caught.value.fix
