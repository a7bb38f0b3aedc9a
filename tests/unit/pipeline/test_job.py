"""What `fit` makes of a plan before it trains."""

from pathlib import Path
from typing import Any

import pytest

from labelwright.pipeline.job import embedded
from labelwright.pipeline.resolve import resolve
from labelwright.pipeline.settings import FitSettings
from pictures import write_folders

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize(("how", "n_views"), [({}, 0), ({"method": "lps", "novel": 1}, 2)], ids=["solved", "trained"])
def test_embedded__augmented_views_only_where_they_are_trained_on(
    how: dict[str, Any], n_views: int, tmp_path: Path
) -> None:
    photos = write_folders(tmp_path / "photos")
    plan = resolve(FitSettings(data=str(photos), out=str(tmp_path / "run"), device="cpu", model="descriptor", **how))
    stored = embedded(plan).train.stored
    assert stored is not None
    assert plan.cfg.takes_steps == bool(n_views)
    assert (stored.n_views("weak"), stored.n_views("strong")) == (n_views, n_views)
