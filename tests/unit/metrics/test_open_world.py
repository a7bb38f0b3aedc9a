"""metrics/open_world.py: the best match against all permutations, and what counts as what."""

import itertools

import pytest
import torch

from labelwright.errors import DataError
from labelwright.metrics.open_world import cluster_match, open_match, seen_novel_all


@pytest.mark.parametrize("seed", range(5))
def test_cluster_match__is_the_best_of_all_permutations(seed):
    draw = torch.Generator().manual_seed(seed)
    predicted, truth = (torch.randint(4, (30,), generator=draw) for _ in range(2))
    best = max(
        (torch.tensor(order)[predicted] == truth).float().mean().item() for order in itertools.permutations(range(4))
    )
    match = cluster_match(predicted, truth)
    assert (match[predicted] == truth).float().mean().item() == pytest.approx(best)


def test_cluster_match__more_clusters_than_classes_leaves_some_without():
    assert cluster_match(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 0, 0, 1])).tolist() == [0, -1, 1]


def test_seen_novel_all__seen_classes_keep_their_names_where_they_are_scored_alone():
    # The two seen classes are swapped: no match makes that right.
    scores = seen_novel_all(torch.tensor([1, 0, 2, 0]), torch.tensor([0, 1, 2, 2]), n_seen=2)
    assert (scores["seen"], scores["novel"], scores["all"]) == (0.0, 0.5, 0.25)


@pytest.mark.parametrize("seed", range(5))
def test_open_match__is_the_best_of_all_in_which_names_stay(seed):
    draw = torch.Generator().manual_seed(seed)
    predicted, truth = (torch.randint(5, (40,), generator=draw) for _ in range(2))
    orders = ([0, 1, *order] for order in itertools.permutations(range(2, 5)))
    best = max((torch.tensor(order)[predicted] == truth).double().mean().item() for order in orders)
    scores = seen_novel_all(predicted, truth, n_seen=2)
    assert scores["all"] == pytest.approx(best)
    parts = scores["seen"] * scores["n_seen_images"] + scores["novel"] * scores["n_novel_images"]
    assert parts / 40 == pytest.approx(best)
    assert open_match(predicted, truth, n_seen=2)[:2].tolist() == [0, 1]


def test_open_match__more_novel_outputs_or_none():
    assert open_match(torch.tensor([2, 3, 3]), torch.tensor([2, 2, 2]), n_seen=2).tolist() == [0, 1, -1, 2]
    assert open_match(torch.tensor([0, 0]), torch.tensor([1, 2]), n_seen=2).tolist() == [0, 1]


def test_seen_novel_all__images_taken_for_the_other_side_are_counted():
    scores = seen_novel_all(torch.tensor([0, 2, 0, 3]), torch.tensor([0, 0, 2, 3]), n_seen=2)
    assert (scores["to_seen"], scores["to_novel"]) == (0.5, 0.5)
    assert (scores["n_novel_classes"], scores["n_clusters_used"]) == (2, 2)


def test_seen_novel_all__no_novel_image_and_unknown_ones():
    scores = seen_novel_all(torch.tensor([0, 1, 1]), torch.tensor([0, 1, -1]), n_seen=2)
    assert scores["novel"] is None
    assert scores["to_seen"] is None
    assert (scores["seen"], scores["n_seen_images"]) == (1.0, 2)


def test_refusals():
    with pytest.raises(DataError, match="2 predictions for 1 images"):
        cluster_match(torch.tensor([0, 1]), torch.tensor([0]))
    with pytest.raises(DataError, match="no image has a known class"):
        seen_novel_all(torch.tensor([0]), torch.tensor([-1]), n_seen=1)
    with pytest.raises(DataError, match="a class below 0"):
        cluster_match(torch.tensor([0]), torch.tensor([-1]))
