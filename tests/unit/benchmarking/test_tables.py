"""The tables as they stand: every cell can run, and no two different cells share a folder."""

from __future__ import annotations

import pytest

from evenkeel.benchmarking.grid import Given
from evenkeel.benchmarking.tables import TABLES
from evenkeel.methods.registry import METHODS, resolve_config

POOLS = {name: table for name, table in TABLES.items() if table.is_pool}


def test_every_cell__is_a_method_with_settings_that_exist() -> None:
    for table in TABLES.values():
        for cell in table.cells.values():
            resolve_config(METHODS[cell.method], {**cell.settings, **cell.reduced})


def test_every_cell__of_a_pool_says_what_it_is_given_and_no_other() -> None:
    assert len(POOLS) == 9
    for table in TABLES.values():
        for cell in table.cells.values():
            assert (cell.given is not None) == table.is_pool


@pytest.mark.parametrize("table", TABLES)
def test_cells_of_a_table__have_titles_and_folders_of_their_own(table: str) -> None:
    cells = TABLES[table].cells.values()
    assert len({cell.title for cell in cells}) == len(cells)
    assert len({cell.key for cell in cells}) == len(cells)


def test_cells_in_one_folder__are_the_same_run() -> None:
    """Whatever tables they are in: a cell that is there is read, not run again."""
    found: dict[tuple[str, str], object] = {}
    for table in TABLES.values():
        for cell in table.cells.values():
            place = (table.place(full=False, model="some/clip"), cell.key)
            what = (cell.method, dict(cell.settings), dict(cell.reduced), cell.given)
            assert found.setdefault(place, what) == what, place
    shared = TABLES["cap-margin-gtsrb"].cells["12"].key
    assert shared == TABLES["cap-ablation-gtsrb"].cells["cap_last"].key == "cap,keep_best=False"


def test_cells_of_a_pool__that_look_at_made_up_names_do_so_for_most_classes() -> None:
    assert {cell.given.n_nonsense for cell in TABLES["cap-nonsense-gtsrb"].cells.values() if cell.given} == {26}
    assert {cell.given.n_nonsense for cell in TABLES["cap-nonsense-cifar10"].cells.values() if cell.given} == {6}


def test_transductive_cells__keep_unlabelled_images_to_unseen_classes() -> None:
    for table in POOLS.values():
        for cell in table.cells.values():
            if cell.method == "cap" and cell.given is not None:
                assert (cell.settings.get("pool") == "unseen") == (cell.given.labels == "some_classes")


def test_place__is_of_one_model_and_one_pool() -> None:
    table = TABLES["cap-gtsrb"]
    places = {table.place(full=False, model=model) for model in ("a/clip", "a/siglip")}
    places.add(TABLES["cap-cifar10"].place(full=False, model="a/clip"))
    assert places == {"gtsrb-pool-clip", "gtsrb-pool-siglip", "cifar10-pool-clip"}
    assert TABLES["ablation"].place(full=False) == TABLES["cifar10-lt-100"].place(full=False)


def test_given__every_difference_is_in_its_folder() -> None:
    one_each = [
        Given(),
        Given(labels="few"),
        Given(labels="few_alone"),
        Given(templates="one"),
        Given(use_descriptions=True),
        Given(n_nonsense=3),
        Given(images="grey"),
        Given(images="negative"),
    ]
    assert len({tuple(given.parts) for given in one_each}) == len(one_each)
