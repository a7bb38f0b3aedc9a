"""Descriptions weighed by a double loop, useless ones refused; names that find images, and names that do not."""

import time

import pytest
import torch
import torch.nn.functional as F

from labelwright.labels import concepts as module
from labelwright.labels.concepts import (
    KNOWN_FROM,
    choose_descriptions,
    detect_mismatched,
    found_by_name,
    knowledge,
    log_presence,
)

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


def none(n_classes, n_features=16):
    return [torch.zeros(0, n_features) for _ in range(n_classes)]


def accuracy(z, class_feats, truth):
    return float(((z @ class_feats.T).argmax(1) == truth).double().mean())


def slow_gain(z, class_feats, text, c):
    """Mean over images of what the text of class c adds to the best cosine of the others, pair by pair."""
    total = 0.0
    for image in z.double().tolist():
        of = [sum(a * b for a, b in zip(image, row, strict=True)) for row in class_feats.double().tolist()]
        others = max((v for k, v in enumerate(of) if k != c), default=-1.0)
        own = sum(a * b for a, b in zip(image, text.double().tolist(), strict=True))
        total += max(0.0, own - others)
    return total / len(z)


def test_choose_descriptions__gains_by_double_loop():
    z, centres, _ = clumps(10, 4)
    names = F.normalize(centres + 0.3 * unit(4, 16, seed=2), dim=1)
    texts = none(4)
    texts[2] = F.normalize(centres[2] + 0.5 * unit(3, 16, seed=3), dim=1)
    found = choose_descriptions(z, names, texts, is_mismatched=torch.tensor([False] * 4))
    want = [slow_gain(z, names, text, 2) / slow_gain(z, names, names[2], 2) for text in texts[2]]
    assert found.gains[2] == pytest.approx(want, rel=1e-4)
    assert found.gains[0] == found.gains[1] == found.gains[3] == ()
    assert max(want) < 1.5
    assert found.chosen.tolist() == [-1] * 4


def test_choose_descriptions__good_ones_repair_and_useless_ones_are_refused():
    z, centres, truth = clumps(20, 6)
    names = centres.clone()
    names[:3] = nonsense(centres, 3)
    texts = none(6)
    useless = nonsense(centres, 4)
    texts[0] = torch.stack([useless[0], F.normalize(centres[0] + 0.1 * unit(16, seed=4), dim=0), useless[1]])
    texts[1] = useless[2:]
    texts[2] = centres[2:3]
    texts[4] = torch.stack([useless[0], names[4]])
    found = choose_descriptions(z, names, texts, is_mismatched=torch.tensor([True] * 3 + [False] * 3))
    assert found.chosen.tolist() == [1, -1, 0, -1, -1, -1]
    assert torch.equal(found.class_feats[0], texts[0][1])
    assert torch.equal(found.class_feats[[1, 3, 4, 5]], names[[1, 3, 4, 5]])
    assert accuracy(z, names, truth) <= 0.5
    assert accuracy(z, found.class_feats, truth) >= 5 / 6


@pytest.mark.parametrize(("least_ratio", "chosen"), [(1.0, 0), (1.5, -1), (30.0, -1)])
def test_choose_descriptions__a_name_that_fits_stays_unless_far_better(least_ratio, chosen, monkeypatch):
    monkeypatch.setattr(module, "LEAST_RATIO", least_ratio)
    z, centres, _ = clumps(20, 4)
    names = centres.clone()
    names[1] = F.normalize(centres[1] + 0.5 * centres[0], dim=0)
    texts = none(4)
    texts[1] = centres[1:2]
    found = choose_descriptions(z, names, texts, is_mismatched=torch.zeros(4, dtype=torch.bool))
    assert 1 < found.gains[1][0] < 1.5
    assert found.chosen[1].item() == chosen
    mismatched = torch.tensor([False, True, False, False])
    again = choose_descriptions(z, names, texts, is_mismatched=mismatched)
    assert again.chosen[1] == 0, "of a mismatched class better is enough"


def test_choose_descriptions__one_that_explains_next_to_nothing_is_useless(monkeypatch):
    z, centres, _ = clumps(20, 4)
    names = centres.clone()
    names[0] = nonsense(centres, 1)[0]
    texts = none(4)
    z = z[torch.arange(len(z)) % 4 > 0]  # no image of class 0: its description hits one image by chance
    texts[0] = z[:1]
    mismatched = torch.tensor([True, False, False, False])
    found = choose_descriptions(z, names, texts, is_mismatched=mismatched)
    assert found.gains[0][0] > 1, "better than the name"
    assert found.chosen[0] == -1
    monkeypatch.setattr(module, "LEAST_SHARE", 0.0)
    anything = choose_descriptions(z, names, texts, is_mismatched=mismatched)
    assert anything.chosen[0] == 0


def test_choose_descriptions__two_classes_do_not_take_the_same_images():
    """Once a class explains the images, a copy of its description explains nothing more."""
    z, centres, _ = clumps(20, 4)
    names = centres.clone()
    names[:2] = nonsense(centres, 2)
    texts = none(4)
    texts[0] = texts[1] = centres[:1]
    found = choose_descriptions(z, names, texts, is_mismatched=torch.tensor([True, True, False, False]))
    assert found.chosen.tolist() == [0, -1, -1, -1]


@pytest.mark.parametrize("n_rounds", [1, 2, 3])
def test_choose_descriptions__one_class(n_rounds, monkeypatch):
    monkeypatch.setattr(module, "CHOICE_ROUNDS", n_rounds)
    z, _, _ = clumps(8, 1)
    near, far = F.normalize(z.mean(0), dim=0), unit(16, seed=6)
    for name, text, chosen in ((far, near, 0), (near, far, -1)):
        found = choose_descriptions(z, name[None], [text[None]], is_mismatched=torch.tensor([True]))
        assert found.chosen.tolist() == [chosen]
        want = slow_gain(z, name[None], text, 0) / slow_gain(z, name[None], name, 0)
        assert found.gains[0][0] == pytest.approx(want, rel=1e-4)


def test_choose_descriptions__no_descriptions_or_all_mismatched():
    z, centres, truth = clumps(10, 3)
    nothing = choose_descriptions(z, centres, none(3), is_mismatched=torch.tensor([True] * 3))
    assert torch.equal(nothing.class_feats, centres)
    names = nonsense(centres, 3)
    found = choose_descriptions(z, names, [c[None] for c in centres], is_mismatched=torch.tensor([True] * 3))
    assert found.chosen.tolist() == [0, 0, 0]
    assert accuracy(z, found.class_feats, truth) == 1


def test_choose_descriptions__of_a_real_model(signs):
    """What descriptions.json holds: poems and wrong guesses among descriptions that help."""
    concepts = signs.concepts
    bad = detect_mismatched(signs.z, concepts.feats, logit_scale=concepts.logit_scale).is_mismatched
    found = choose_descriptions(signs.z, concepts.feats, concepts.description_feats, is_mismatched=bad)
    taken = {signs.class_names[c]: concepts.descriptions[c][k] for c, k in enumerate(found.chosen.tolist()) if k >= 0}
    texts = dict(zip(signs.class_names, concepts.descriptions, strict=True))
    assert taken["General caution"] == "a triangle with an exclamation mark", "not: a sign that asks for care"
    assert taken["No vehicles"] == "an empty white circle with a red border", "not: a road without any cars"
    gains = dict(zip(signs.class_names, found.gains, strict=True))
    refused = {texts[n][k]: g for n in ("General caution", "No vehicles") for k, g in enumerate(gains[n]) if g < 1}
    assert refused.keys() == {"a sign that asks for care", "a road without any cars"}
    for name in ("Stop", "Yield", "Priority road", "No entry", "Turn left ahead"):  # names that fit
        assert name not in taken
    mended = [n for n in taken if bad[signs.at(n)]]
    assert len(mended) >= 13
    before, after = signs.recall(concepts.feats), signs.recall(found.class_feats)
    at = [signs.at(n) for n in mended]
    assert before[at].mean() < 0.1 < 0.75 < after[at].mean()
    assert 0.49 < accuracy(signs.z, concepts.feats, signs.truth) < 0.52
    assert 0.83 < accuracy(signs.z, found.class_feats, signs.truth) < 0.87


def test_choose_descriptions__of_a_real_model_nonsense_in_every_class(signs):
    """Descriptions of other signs, and of none, in place of good ones: nothing gets worse."""
    concepts = signs.concepts
    bad = detect_mismatched(signs.z, concepts.feats, logit_scale=concepts.logit_scale).is_mismatched
    names = concepts.feats
    known = (~bad).nonzero().flatten()
    borrowed = [names[known[(c + 1) % len(known)]][None] for c in range(len(names))]
    found = choose_descriptions(signs.z, names, borrowed, is_mismatched=bad)
    assert (found.chosen[known] >= 0).sum() <= 1
    assert accuracy(signs.z, found.class_feats, signs.truth) > accuracy(signs.z, names, signs.truth) - 0.01


# ---- names that find images, and names that do not -------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_found_by_name__by_hand(seed):
    z, names = unit(50, 8, seed=seed), unit(5, 8, seed=seed + 9)
    answers = [max(range(5), key=lambda c, image=image: float(image @ names[c])) for image in z]
    assert found_by_name(z, names).tolist() == pytest.approx([answers.count(c) / 10 for c in range(5)])
    assert float(found_by_name(z, names).mean()) == pytest.approx(1)


def test_log_presence__only_classes_that_are_nearly_absent_lose():
    z, centres, truth = clumps(40, 6, noise=0.3)
    every = torch.ones(6, dtype=torch.bool)
    assert log_presence(z, centres, logit_scale=8.0, where=every).tolist() == [0.0] * 6
    there = z[truth < 2]
    added = log_presence(there, centres, logit_scale=8.0, where=every)
    assert added[:2].tolist() == [0, 0]
    assert bool((added[2:] < -0.5).all())
    before, after = ((8.0 * there @ centres.T + b).argmax(1) for b in (0.0, added))
    assert (after < 2).sum() > (before < 2).sum()
    assert torch.equal(before[before < 2], after[before < 2]), "no image of a class that is there is taken away"


def test_log_presence__classes_that_cannot_be_absent_are_left_alone():
    z, centres, truth = clumps(40, 4, noise=0.3)
    added = log_presence(z[truth < 1], centres, logit_scale=8.0, where=torch.tensor([True, True, False, True]))
    assert float(added[2]) == 0
    assert bool((added[[1, 3]] < 0).all())
    nobody = torch.zeros(4, dtype=torch.bool)
    assert log_presence(z, centres, logit_scale=8.0, where=nobody).tolist() == [0.0] * 4


def test_knowledge__names_on_the_clusters_against_turned_ones():
    z, centres, _ = clumps(20, 8)
    gap = F.normalize(torch.ones(16), dim=0)  # a shift of all texts, and their scale, say nothing
    assert knowledge(z, centres) > KNOWN_FROM
    assert knowledge(z, F.normalize(centres + 0.8 * gap, dim=1)) > KNOWN_FROM
    assert knowledge(z, F.normalize(centres + centres.roll(1, 0) + centres.roll(2, 0), dim=1)) < KNOWN_FROM
    assert knowledge(z, centres) == knowledge(z, centres)
    assert knowledge(z, centres[:3]) == float("inf")


def test_knowledge__of_more_names_than_dimensions():
    """Only what a rotation does to so many dimensions is drawn: matrices of all names would take hours."""
    z, centres, _ = clumps(20, 8)
    names = F.normalize(torch.randn(4_000, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    began = time.process_time()
    assert knowledge(z, names) == pytest.approx(1, abs=0.1)
    names[: len(centres)] = centres
    assert knowledge(z, names) > 1.0
    assert time.process_time() - began < 10


def test_knowledge__of_a_real_model(signs):
    names = signs.concepts.feats
    turn = torch.linalg.qr(torch.randn(43, 43, generator=torch.Generator().manual_seed(5))).Q
    mixed = F.normalize(names.mean(0) + turn @ (names - names.mean(0)), dim=1)
    assert knowledge(signs.z, names) > KNOWN_FROM > knowledge(signs.z, mixed)
