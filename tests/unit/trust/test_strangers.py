"""Images of no class: bars that 1% of true images miss, references that strangers do not get into."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from labelwright.trust.strangers import (
    K,
    Strangers,
    distances,
    fit_strangers,
    from_tensors,
    small_pixels,
)

N_CLASSES, N_FEATURES = 4, 16


def drawn(n: int, seed: int, *, centre: int | None = None, spread: float = 0.15) -> tuple[Tensor, Tensor]:
    """Features [n, D] about the first four axes, or about another one, and their classes [n]."""
    draw = torch.Generator().manual_seed(seed)
    classes = torch.arange(n) % N_CLASSES
    axes = classes if centre is None else torch.full((n,), centre)
    return F.one_hot(axes, N_FEATURES) + spread * torch.randn(n, N_FEATURES, generator=draw), classes


def fitted(feats: Tensor, labels: Tensor, predicted: Tensor, **more: Tensor) -> tuple[Strangers, Tensor]:
    found = fit_strangers(lambda rows: (feats[rows],), labels, predicted, n_classes=N_CLASSES, **more)  # type: ignore[arg-type]
    assert found is not None
    return found


def rows_of(found: Strangers, feats: Tensor) -> Tensor:
    """Which of the images the references are."""
    return (F.normalize(feats, dim=1) @ found.references[0].float().T).argmax(0)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_distances__mean_of_the_nearest_against_a_slow_loop() -> None:
    z, references = drawn(7, 0)[0], F.normalize(drawn(9, 1)[0], dim=1)
    exclude = torch.zeros(7, 9, dtype=torch.bool)
    exclude[0, :6] = True  # three are left
    exclude[1] = True  # none is
    for b, found in enumerate(distances(z, references, exclude=exclude.nonzero(as_tuple=True)).tolist()):
        cosines = sorted(
            (
                float(F.cosine_similarity(z[b], r, dim=0))
                for r, out in zip(references, exclude[b], strict=True)
                if not out
            ),
            reverse=True,
        )[:K]
        assert found == pytest.approx(1 - sum(cosines) / len(cosines) if cosines else 0.0, abs=1e-6)


def test_score__of_a_training_image_again_is_what_it_was_in_training() -> None:
    feats, classes = drawn(400, 0)
    feats = torch.cat([feats, feats[:1]])  # the first is there twice: its copy is a neighbour both times
    classes = torch.cat([classes, classes[:1]])
    found, own = fitted(feats, classes, classes)
    assert torch.allclose(found.score((feats,)), own, atol=2e-3)
    assert own[0] < own[1:-1].median()


@pytest.mark.parametrize("has_labels", [True, False])
def test_fit_strangers__a_hundredth_of_true_images_and_all_strangers(has_labels: bool) -> None:
    feats, classes = drawn(3_000, 0)
    found, own = fitted(feats, classes if has_labels else torch.full_like(classes, -1), classes)
    assert 0.005 < (own > 1).float().mean() <= 0.011
    fresh = found.score((drawn(4_000, 1)[0],))
    assert 0.004 < (fresh > 1).float().mean() < 0.02  # 1%, three standard errors of 4,000 and the bar's own
    assert (found.score((drawn(200, 2, centre=9)[0],)) > 1).all()
    assert len(found.classes) < 1_000  # those unlike the others are taken out
    assert torch.bincount(found.classes).min() > 200


def test_fit_strangers__unlabelled_strangers_are_no_references() -> None:
    feats, classes = drawn(1_000, 0)
    others, _ = drawn(200, 1, centre=9)
    both = torch.cat([feats, others])
    labels, predicted = torch.cat([classes, torch.full((200,), -1)]), torch.cat([classes, torch.zeros(200).long()])
    found, own = fitted(both, labels, predicted)
    assert (own[1_000:] > 1).all()
    assert (found.score((drawn(100, 2, centre=9)[0],)) > 1).all()
    # Without labels a cluster as large as a class is one.
    assert (fitted(both, torch.full_like(labels, -1), predicted)[1][1_000:] > 1).float().mean() < 0.5


def test_fit_strangers__few_among_unlabelled_images_raise_no_bar() -> None:
    feats, classes = drawn(970, 0)
    apart = F.normalize(torch.randn(30, N_FEATURES, generator=torch.Generator().manual_seed(1)), dim=1)
    apart[:, :N_CLASSES] *= 0.2  # each points elsewhere
    labels, predicted = torch.full((1_000,), -1), torch.cat([classes, torch.zeros(30).long()])
    found, own = fitted(torch.cat([feats, apart]), labels, predicted)
    assert (own[970:] > 1).all()
    assert found.threshold < 0.975
    assert (own[:970] > 1).float().mean() < 0.01


def test_fit_strangers__groups_are_not_their_own_neighbours() -> None:
    """Ten frames of each of 40 signs."""
    signs, classes = drawn(40, 0, spread=0.3)
    frames = signs.repeat_interleave(10, 0) + 0.01 * torch.randn(
        400, N_FEATURES, generator=torch.Generator().manual_seed(1)
    )
    of_class, group = classes.repeat_interleave(10), torch.arange(40).repeat_interleave(10)
    _, alone = fitted(frames, of_class, of_class)
    found, grouped = fitted(frames, of_class, of_class, groups=group)
    assert (grouped >= 0).all()
    # Compared with frames of its own, an image is as near to the others as frames are to one another.
    nearest = distances(
        frames, found.references[0], exclude=(group[:, None] == group[rows_of(found, frames)]).nonzero(as_tuple=True)
    )
    assert torch.allclose(grouped, nearest / found.bars[0], atol=1e-3)
    assert alone.median() < 0.5 * grouped.median()
    assert (found.score((drawn(400, 2, spread=0.3)[0],)) > 1).float().mean() < 0.1


def test_fit_strangers__learned_by_heart() -> None:
    """Training images lie on their class's axis, others of the same kind do not: the bars are of held-out ones."""
    feats, classes = drawn(1_000, 0, spread=0.01)
    others, new = drawn(500, 1)[0], drawn(1_000, 2)[0]
    alone = fitted(feats, classes, classes)[0]
    told = fit_strangers(
        lambda rows: (feats[rows],), classes, classes, n_classes=N_CLASSES, held_out=(lambda rows: (others[rows],), 500)
    )
    assert told is not None
    assert (alone.score((new,)) > 1).float().mean() > 0.9
    assert (told[0].score((new,)) > 1).float().mean() < 0.03


def test_fit_strangers__rare_classes_are_references_too() -> None:
    feats, classes = drawn(4_000, 0)
    kept = (classes > 0) | (torch.arange(4_000) < 80)  # 20 images of the first class, 1,000 of the others
    found, _ = fitted(feats[kept], classes[kept], classes[kept])
    assert torch.bincount(found.classes)[0] >= K
    new, of_class = drawn(2_000, 1)
    assert (found.score((new[of_class == 0],)) > 1).float().mean() < 0.3
    assert (found.score((new[of_class > 0],)) > 1).float().mean() < 0.01
    assert (found.score((drawn(200, 2, centre=9)[0],)) > 1).all()


def test_fit_strangers__a_second_look_finds_what_features_do_not() -> None:
    feats, classes = drawn(1_000, 0)
    pixels = torch.ones(1_000, 8) + 0.1 * torch.randn(1_000, 8, generator=torch.Generator().manual_seed(1))
    found = fit_strangers(lambda rows: (feats[rows], pixels[rows]), classes, classes, n_classes=N_CLASSES)
    assert found is not None
    strangers = found[0]
    new = drawn(100, 2)[0]
    assert (strangers.score((new, torch.ones(100, 8))) > 1).float().mean() < 0.05
    assert (strangers.score((new, -torch.ones(100, 8))) > 1).all()
    assert (strangers.score((new,)) <= strangers.score((new, -torch.ones(100, 8)))).all()  # one look alone will do


def test_fit_strangers__too_few_images_tell_nothing() -> None:
    feats, classes = drawn(19, 0)
    assert fit_strangers(lambda rows: (feats[rows],), classes, classes, n_classes=N_CLASSES) is None
    alike = torch.ones(30, N_FEATURES)  # all distances are 0
    found, own = fitted(alike, torch.zeros(30).long(), torch.zeros(30).long())
    assert (own <= 1).all()
    assert found.score((-alike[:1],)) > 1


def test_strangeness__rises_with_the_score_and_passes_the_threshold_where_it_passes_1() -> None:
    feats, classes = drawn(3_000, 0)
    found, own = fitted(feats, classes, classes)
    scores = torch.cat([torch.linspace(0.0, 0.99, 50), torch.linspace(1.01, 50.0, 50)])
    shares = found.strangeness(scores)
    assert (shares.diff() >= 0).all()
    assert shares[-1] < 1
    assert torch.equal(shares > found.threshold, scores > 1)
    assert found.threshold == pytest.approx(0.99, abs=0.003)
    ranks = own.argsort().argsort() / len(own)
    assert (found.strangeness(own) - ranks).abs().max() < 0.005  # the share of the others that are less strange
    assert float(found.strangeness(torch.zeros(1))) == 0


def test_tensors__read_back() -> None:
    found, _ = fitted(*(drawn(100, 0)[0], *(2 * [drawn(100, 0)[1]])))
    again = from_tensors(found.tensors())
    new = drawn(50, 1)[0]
    assert torch.equal(again.score((new,)), found.score((new,)))
    assert again.references[0].dtype == torch.float16
    with pytest.raises(KeyError):
        from_tensors({"bars": found.bars})


def test_small_pixels__means_over_fields() -> None:
    x = torch.arange(2 * 3 * 16 * 16).reshape(2, 3, 16, 16).float()
    found = small_pixels(x)
    assert found.shape == (2, 192)
    assert found[0, 0] == x[0, 0, :2, :2].mean()
    assert found[1, -1] == x[1, 2, 14:, 14:].mean()


def test_strangeness__looked_up_and_compared_are_the_same() -> None:
    draw = torch.Generator().manual_seed(0)
    known = (torch.rand(1_000, generator=draw) * 50).round().sort().values / 40  # with ties
    found = Strangers((), torch.tensor([]), torch.tensor([]), known)
    scores = torch.cat([known, 2 * torch.rand(500, generator=draw), torch.zeros(1)])
    assert torch.equal(found.strangeness(scores), found.placed(scores))
    assert (found.strangeness(scores).diff()[:999] >= 0).all()


def test_distances__features_that_are_not_finite_are_as_far_as_can_be() -> None:
    z = torch.tensor([[1.0, 0.0], [torch.nan, 0.0]])
    assert distances(z, torch.eye(2), k=1).tolist() == [1.0, torch.inf]
