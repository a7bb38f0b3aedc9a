"""Clusters given to classes without a good text, and the test that refuses images that are no class."""

import pytest
import torch
import torch.nn.functional as F

from labelwright.labels import leftovers as module
from labelwright.labels.leftovers import distinctness, last_class, leftover_concepts

SCALE = 20.0


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def clumps(n_per_class, n_classes, *, n_features=16, noise=0.12, seed=0):
    draw = torch.Generator().manual_seed(seed)
    centres = torch.linalg.qr(torch.randn(n_features, n_features, generator=draw)).Q[:n_classes]
    truth = torch.arange(n_classes).repeat(n_per_class)
    return (
        F.normalize(centres[truth] + noise * torch.randn(len(truth), n_features, generator=draw), dim=1),
        centres,
        truth,
    )


def nonsense(centres, count):
    """Names that fit no image: away from all centres, and near each other."""
    noise = 0.05 * torch.randn(count, centres.shape[1], generator=torch.Generator().manual_seed(9))
    return F.normalize(-centres.sum(0) + noise, dim=1)


def accuracy(z, class_feats, truth):
    return float(((z @ class_feats.T).argmax(1) == truth).double().mean())


def test_leftover_concepts__one_class_is_certain():
    z, centres, truth = clumps(20, 6)
    gap = F.normalize(torch.ones(16), dim=0)  # texts lie apart from images
    names = F.normalize(centres + 0.6 * gap, dim=1)
    names[4] = nonsense(centres, 1)[0]
    mismatched = torch.arange(6) == 4
    labels = torch.full((120,), -1)
    found = leftover_concepts(z, names, logit_scale=SCALE, is_mismatched=mismatched, labels=labels)
    assert accuracy(z, names, truth) < 0.9
    assert accuracy(z, found, truth) > 0.98
    assert torch.equal(found[~mismatched], names[~mismatched])
    assert float(found[4].norm()) == pytest.approx(1, rel=1e-5)
    ideal = F.normalize(centres[4] + 0.6 * gap, dim=0)
    assert float(found[4] @ ideal) > 0.95, "carried into the space of texts"


def test_leftover_concepts__labels_say_which_cluster_is_whose():
    z, centres, truth = clumps(20, 8)
    names = centres.clone()
    names[:4] = nonsense(centres, 4)
    mismatched = torch.arange(8) < 4
    labels = torch.full((160,), -1)
    for c in range(4):
        labels[(truth == c).nonzero().flatten()[:2]] = c
    found = leftover_concepts(z, names, logit_scale=SCALE, is_mismatched=mismatched, labels=labels)
    assert accuracy(z, found, truth) > 0.98
    swapped = torch.where(labels >= 0, (labels + 1) % 4, labels)
    wrong = leftover_concepts(z, names, logit_scale=SCALE, is_mismatched=mismatched, labels=swapped)
    assert accuracy(z, wrong, truth) < 0.6, "the labels decide"


def test_leftover_concepts__clusters_are_found_even_where_owners_are_guessed():
    z, centres, truth = clumps(20, 8)
    names = centres.clone()
    names[:3] = nonsense(centres, 3)
    mismatched = torch.arange(8) < 3
    labels = torch.full((160,), -1)
    found = leftover_concepts(z, names, logit_scale=SCALE, is_mismatched=mismatched, labels=labels)
    answers = (z @ found.T).argmax(1)
    assert accuracy(z[truth >= 3], found, truth[truth >= 3]) == 1
    for c in range(3):  # each clump of a mismatched class is one class, and no two are the same
        assert (answers[truth == c] == answers[truth == c].mode().values).double().mean() > 0.95
    assert answers[truth < 3].unique().tolist() == [0, 1, 2]


def test_leftover_concepts__seed_and_inputs():
    z, centres, _ = clumps(10, 6, noise=0.4)
    names = centres.clone()
    names[:3] = nonsense(centres, 3)
    given = z.clone(), names.clone()
    knobs = {"logit_scale": SCALE, "is_mismatched": torch.arange(6) < 3, "labels": torch.full((60,), -1)}
    state = torch.get_rng_state()
    assert torch.equal(leftover_concepts(z, names, **knobs, seed=3), leftover_concepts(z, names, **knobs, seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(z, given[0])
    assert torch.equal(names, given[1])


@pytest.mark.parametrize("n", [1, 2, 4])
def test_leftover_concepts__fewer_images_than_classes(n):
    mismatched = torch.tensor([False, True, True, False, True, True])
    names = unit(6, 16, seed=1)
    labels = torch.full((n,), -1)
    found = leftover_concepts(unit(n, 16), names, logit_scale=SCALE, is_mismatched=mismatched, labels=labels)
    assert torch.isfinite(found).all()
    assert torch.equal(found[~mismatched], names[~mismatched])


def test_leftover_concepts__no_class_and_copies_of_one_image():
    z, centres, _ = clumps(10, 4)
    labels = torch.full((40,), -1)
    none_bad = torch.zeros(4, dtype=torch.bool)
    assert torch.equal(leftover_concepts(z, centres, logit_scale=SCALE, is_mismatched=none_bad, labels=labels), centres)
    found = leftover_concepts(
        z[:1].repeat(40, 1), centres, logit_scale=SCALE, is_mismatched=torch.arange(4) > 0, labels=labels
    )
    assert torch.isfinite(found).all()


def test_leftover_concepts__few_labels_survive_the_thinning_of_many_images(monkeypatch):
    monkeypatch.setattr(module, "ROWS_MAX", 80)
    z, centres, truth = clumps(20, 8)
    names = centres.clone()
    names[:4] = nonsense(centres, 4)
    order = torch.randperm(160, generator=torch.Generator().manual_seed(0))
    z, truth = z[order], truth[order]
    rows = torch.linspace(0, 159, 80, dtype=torch.float64).long()
    dropped = torch.ones(160, dtype=torch.bool)
    dropped[rows] = False
    labels = torch.full((160,), -1)
    for c in range(4):
        labels[(dropped & (truth == c)).nonzero().flatten()[:2]] = c
    assert (labels >= 0).sum() == 8
    found = leftover_concepts(z, names, logit_scale=SCALE, is_mismatched=torch.arange(8) < 4, labels=labels)
    assert accuracy(z, found, truth) > 0.98


def test_distinctness__a_class_cut_in_half_is_less_distinct_than_two():
    z, centres, _ = clumps(60, 4)
    own, shares = distinctness(z, centres, logit_scale=SCALE)
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.01)
    aside = 0.2 * torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(3))).Q[0]
    halved = F.normalize(torch.cat([centres[:3], centres[3:] + aside, centres[3:] - aside]), dim=1)
    parts, shares = distinctness(z, halved, logit_scale=SCALE)
    assert float(parts[3:].max()) < 0.6 * float(own.min())
    assert float(shares[3:].sum()) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("is_present", [True, False])
def test_last_class__what_is_left_over_is_given_only_if_it_is_a_class(is_present, seed):
    z, centres, truth = clumps(60, 5, seed=seed)
    names = centres.clone()
    names[2] = nonsense(centres, 1)[0]
    kept = (truth != 2) | is_present
    found = last_class(z[kept], names, logit_scale=SCALE, which=2, seed=seed)
    if is_present:
        names[2] = found
        assert accuracy(z, names, truth) > 0.98
    else:
        assert found is None


def test_last_class__refused_where_every_class_falls_into_parts_as_clear_as_classes():
    """Tight clumps, three to a class, as of frames of one track: nothing tells a class from a part of one."""
    draw = torch.Generator().manual_seed(0)
    clump = torch.linalg.qr(torch.randn(16, 16, generator=draw)).Q[:9]
    of_clump = torch.arange(9).repeat(30)
    z = F.normalize(clump[of_clump] + 0.05 * torch.randn(270, 16, generator=draw), dim=1)
    names = F.normalize(clump.reshape(3, 3, 16).sum(1), dim=1)
    names[2] = nonsense(clump, 1)[0]
    assert last_class(z, names, logit_scale=SCALE, which=2) is None


def test_last_class__too_few_images_to_tell():
    z, centres, _ = clumps(1, 4)
    assert last_class(z, centres, logit_scale=SCALE, which=1) is None
    assert last_class(z[:, :8], centres[:1, :8], logit_scale=SCALE, which=0) is None


def one_name_for_two(small, large, *, alike):
    """Clumps of small, large, 60 and 60 images. The name of class 0 finds both of the first two, its own a bit surer;
    that of class 1 finds nothing, or is like it.
    """
    z, centres, truth = clumps(max(small, large, 60), 4, seed=3)
    sizes = torch.tensor([small, large, 60, 60])
    rank = torch.arange(len(truth)) // 4
    z, truth = z[rank < sizes[truth]], truth[rank < sizes[truth]]
    names = centres.clone()
    names[0] = F.normalize(centres[0] + 0.7 * centres[1], dim=0)
    names[1] = nonsense(centres, 1)[0]
    if alike:
        names[1] = F.normalize(names[0] - 0.2 * centres[1] - 0.1 * centres[0], dim=0)
    return z, names, truth


def test_last_class__the_name_says_which_part_is_its_own_however_small():
    z, names, truth = one_name_for_two(60, 240, alike=False)
    found = last_class(z, names, logit_scale=SCALE, which=1)
    assert found is not None
    names[1] = found
    assert accuracy(z, names, truth) > 0.95


def test_last_class__refused_where_another_name_is_like_it():
    z, names, _ = one_name_for_two(60, 60, alike=True)
    assert last_class(z, names, logit_scale=SCALE, which=1) is None
    names[1] = nonsense(names, 1)[0]
    assert last_class(z, names, logit_scale=SCALE, which=1) is not None


def test_last_class__refused_where_names_do_not_say_whose_the_parts_are():
    z, names, truth = one_name_for_two(60, 60, alike=False)
    own = [F.normalize(z[truth == c].mean(0), dim=0) for c in (0, 1)]
    names[0] = F.normalize(own[0] + own[1], dim=0)
    assert last_class(z, names, logit_scale=SCALE, which=1) is None


def test_leftover_concepts__labels_go_before_names_that_are_alike():
    z, names, truth = one_name_for_two(60, 60, alike=True)
    centres = torch.stack([F.normalize(z[truth == c].mean(0), dim=0) for c in range(4)])
    names[0] = F.normalize(0.7 * centres[0] + centres[1], dim=0)  # the wrong way round
    names[1] = F.normalize(names[0] - 0.2 * centres[1] - 0.1 * centres[0], dim=0)
    labels = torch.full((len(z),), -1)
    for c in (0, 1):
        labels[(truth == c).nonzero().flatten()[0]] = c
    found = leftover_concepts(z, names, logit_scale=SCALE, is_mismatched=torch.arange(4) == 1, labels=labels)
    centre_of_1 = F.normalize(z[truth == 1].mean(0), dim=0)
    assert (found[1] @ centre_of_1) > (found[1] @ F.normalize(z[truth == 0].mean(0), dim=0))
