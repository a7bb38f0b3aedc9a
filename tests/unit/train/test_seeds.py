import hashlib

import pytest
import torch

from labelwright.train.seeds import derive_seed, generator


def test_derive_seed__is_a_named_hash_of_its_parts() -> None:
    # An independent spelling: another machine, another Python, the same number, or no run could be repeated.
    digest = hashlib.blake2b(b"int:0\x1fstr:order\x1fint:3", digest_size=8).digest()
    assert derive_seed(0, "order", 3) == int.from_bytes(digest, "big") // 2


@pytest.mark.parametrize("other", [(1, "a", 2), (0, "b", 2), (0, "a", 3), ("0", "a", 2), (0, "a2"), (0, "a", 2, 0)])
def test_derive_seed__changes_with_every_part(other: tuple[int | str, ...]) -> None:
    assert derive_seed(*other) != derive_seed(0, "a", 2)


def test_derive_seed__is_spread_over_63_bits() -> None:
    seeds = [derive_seed(0, i) for i in range(2000)]
    assert len(set(seeds)) == 2000
    assert min(seeds) >= 0
    assert max(seeds) < 2**63
    above_half = sum(seed >= 2**62 for seed in seeds)
    assert abs(above_half - 1000) < 5 * 500**0.5  # binomial, 5 standard deviations


def test_generator__is_apart_from_the_global_one() -> None:
    torch.manual_seed(0)
    first = torch.rand(3, generator=generator(7))
    torch.manual_seed(1)
    assert torch.equal(first, torch.rand(3, generator=generator(7)))
    assert not torch.equal(first, torch.rand(3, generator=generator(8)))
