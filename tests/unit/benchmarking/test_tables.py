"""The tables as they stand: every cell can run, and no two different cells share a folder."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

import tiny
from labelwright.benchmarking.cap_tables import TEXT_SETS
from labelwright.benchmarking.coreg_tables import PIXELS, PIXELS_40, PIXELS_80
from labelwright.benchmarking.finished import METRICS, POOL_METRICS, metrics_of
from labelwright.benchmarking.grid import Given, Guessing
from labelwright.benchmarking.tables import TABLES
from labelwright.data.cards import dataset_card
from labelwright.methods.coreg import PRESETS
from labelwright.methods.coreg import Config as CoregConfig
from labelwright.methods.registry import METHODS, resolve_config

POOLS = {name: table for name, table in TABLES.items() if table.is_pool}
COREG = {name: table for name, table in TABLES.items() if name.startswith("coreg")}
EVERY = [*TABLES.values(), *(table.at_full for table in TABLES.values() if table.at_full is not None)]


def test_every_cell__is_a_method_with_settings_that_exist() -> None:
    for table in EVERY:
        for cell in table.cells.values():
            resolve_config(METHODS[cell.method], {**cell.settings, **cell.reduced})


def test_every_cell__says_what_it_is_given_where_labels_are_hidden_and_no_other() -> None:
    assert (len(POOLS), len(COREG)) == (35, 18)
    for table in EVERY:
        for cell in table.cells.values():
            assert cell.given is None or table.is_pool or table.network is not None
            assert cell.given is not None or not table.is_pool
            assert metrics_of(table) is (METRICS if cell.given is None else POOL_METRICS)


@pytest.mark.parametrize("table", TABLES)
def test_cells_of_a_table__have_titles_and_folders_of_their_own(table: str) -> None:
    cells = TABLES[table].cells.values()
    assert len({cell.title for cell in cells}) == len(cells)
    trained = [cell for cell in cells if cell.shows == "trained"]
    assert len({cell.key for cell in trained}) == len(trained)
    assert len({cell.key for cell in cells if cell.shows == "annotator"}) == len(cells) - len(trained)


def test_cells_in_one_folder__are_the_same_run() -> None:
    """Whatever tables they are in: a cell that is there is read, not run again."""
    found: dict[tuple[str, str], object] = {}
    for table in EVERY:
        for cell in table.cells.values():
            place = (table.place(full=False, model="some/clip"), cell.key)
            what = (cell.method, dict(cell.settings), dict(cell.reduced), cell.given)
            assert found.setdefault(place, what) == what, place
    shared = TABLES["cap-margin-gtsrb"].cells["12"].key
    assert shared == TABLES["cap-ablation-gtsrb"].cells["cap_last"].key == "cap,epochs=50,patience_epochs=0"


def test_cells_of_a_pool__that_look_at_made_up_names_do_so_for_most_classes() -> None:
    assert {cell.given.n_nonsense for cell in TABLES["cap-nonsense-gtsrb"].cells.values() if cell.given} == {26}
    assert {cell.given.n_nonsense for cell in TABLES["cap-nonsense-cifar10"].cells.values() if cell.given} == {6}


def test_transductive_cells__keep_unlabelled_images_to_unseen_classes() -> None:
    for table in POOLS.values():
        for cell in table.cells.values():
            if cell.method == "cap" and cell.given is not None:
                assert (cell.settings.get("pool") == "unseen") == (cell.given.labels == "some_classes")


def test_text_sets__ask_in_the_words_of_their_card_and_fit_a_file_name() -> None:
    for dataset in TEXT_SETS:
        for cell in TABLES[f"text-{dataset}"].cells.values():
            assert cell.given is not None
            assert cell.given.templates == dataset_card(dataset).prompt.rstrip(".")
            assert cell.given.templates.count("{}") == 1
            assert (cell.given.views == "pixels") == (cell.settings.get("tune") == "maple")
            assert len(cell.key) < 255, "a folder"


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
        Given(guessing=Guessing()),
        Given(guessing=Guessing(top_k=3)),
        Given(guessing=Guessing(rule="union")),
        Given(guessing=Guessing(rule="mean")),
        Given(guessing=Guessing("chance", q=0.1, eta=0.2)),
        Given(guessing=Guessing("doubt", q=0.1, eta=0.2)),
        Given(guessing=Guessing("chance", q=0.1, eta=0.4)),
        Given(guessing=Guessing("chance", q=0.3, eta=0.2)),
        Given(n_verified=2),
        Given(n_verified=5),
        Given(share=0.05),
        Given(share=0.5),
        Given(views="pixels"),
    ]
    assert len({tuple(given.parts) for given in one_each}) == len(one_each)


def test_candidates__come_from_somewhere_in_every_cell_that_learns_from_them() -> None:
    for name, table in TABLES.items():
        for cell in table.cells.values():
            has_guessing = cell.given is not None and cell.given.guessing is not None
            assert has_guessing == (tiny.family_of(cell.method) == "candidates") == name.startswith("coreg")


def test_rows_of_an_annotator__read_a_run_in_which_a_model_guesses() -> None:
    rows = [cell for table in COREG.values() for cell in table.cells.values() if cell.shows == "annotator"]
    assert len(rows) == 3 + 2 * 5  # three main tables, five shares of two data sets
    for cell in rows:
        assert cell.method == "kd"
        assert cell.given is not None
        assert cell.given.guessing is not None
        assert cell.given.guessing.by == "model"


def test_parts__differ_from_the_whole_in_what_they_leave_out() -> None:
    for name in ("coreg-parts-cifar10", "coreg-parts-gtsrb-repaired", "coreg-pixels"):
        cells = TABLES[name].cells
        whole = dict(cells["coreg"].settings)
        changed = {
            part: {key for key, value in cell.settings.items() if whole.get(key) != value}
            for part, cell in cells.items()
            if cell.method == "coreg" and part != "coreg"
        }
        expected = {
            "no_co_labels": {"networks"},
            "no_prototypes": {"prototype_weight"},
            "no_contrastive": {"contrastive_weight"},
            "no_alignment": {"use_alignment"},
        }
        if not name.startswith("coreg-pixels"):
            expected |= {
                "one_network": {"networks"},
                "one_wide_network": {"networks", "head_width"},
                "warm_up_only": {"partial_epochs"},
            }
        assert changed == expected
        for part, keys in expected.items():
            cfg, default = (resolve_config(METHODS["coreg"], cells[at].settings) for at in (part, "coreg"))
            assert all(getattr(cfg, key) != getattr(default, key) for key in keys), part


def test_warm_up_only__has_no_other_epochs() -> None:
    settings = TABLES["coreg-parts-cifar10"].cells["warm_up_only"].settings
    assert settings["partial_epochs"] == settings["epochs"]


def test_parts_on_frozen_features__differ_in_one_setting() -> None:
    cells = TABLES["coreg-parts-cifar10"].cells
    assert cells["coreg_frozen"].settings == {}
    assert cells["frozen_no_alignment"].settings == {"use_alignment": False}
    assert cells["frozen_no_guesses"].settings == {"guess_strength": 0.0}


def test_thresholds__are_what_their_titles_say() -> None:
    for cell in TABLES["coreg-tau"].cells.values():
        cfg = resolve_config(METHODS["coreg"], cell.settings)
        assert isinstance(cfg, CoregConfig)
        assert cell.title == f"tau = {cfg.threshold:g}"


@pytest.mark.parametrize(
    ("table", "settings", "images"),
    [
        ("coreg-pixels", PIXELS, "cifar10-ratio1-max1000"),
        ("coreg-pixels-40", PIXELS_40, "cifar10-ratio1-max1000"),
        ("coreg-pixels-16px-40", PIXELS_40, "cifar10-ratio1-max1000-16px"),
        ("coreg-pixels-16px-80", PIXELS_80, "cifar10-ratio1-max1000-16px"),
    ],
)
def test_pixels__reduced_and_full_are_the_same_cells_on_other_schedules(
    table: str, settings: Mapping[str, Mapping[str, object]], images: str
) -> None:
    reduced = TABLES[table]
    full = reduced.at_full
    assert full is not None
    assert list(full.cells) == list(reduced.cells)
    for name, cell in reduced.cells.items():
        at_full = full.cells[name]
        assert (at_full.title, at_full.method, at_full.given) == (cell.title, cell.method, cell.given)
        assert settings[cell.method].items() <= cell.settings.items()
        cfg = resolve_config(METHODS[cell.method], at_full.settings)
        assert (cfg.epochs, cfg.batch_size, cfg.lr) == (800, 256, 0.01)  # section 5.1 of the paper
        published = set(PRESETS["paper"]) if cell.method == "coreg" else {"epochs", "batch_size", "lr"}
        own = {key: value for key, value in cell.settings.items() if settings[cell.method].get(key) != value}
        assert own.items() <= at_full.settings.items()
        assert set(at_full.settings) - set(own) <= published
    assert reduced.place(full=False) == f"{images}-resnet32"
    assert full.place(full=True) == "cifar10-whole-preact_resnet18"
    assert full.title == TABLES["coreg-pixels"].title  # neither the size nor the epochs of the reduced one
    assert full.schedule.startswith("published (800 epochs")


def test_headline__is_five_seeds_of_a_cell_of_the_main_table() -> None:
    table, main = TABLES["coreg-headline"], TABLES["coreg-cifar10"]
    assert table.seeds == (0, 1, 2, 3, 4)
    assert table.cells["coreg"].key == main.cells["coreg"].key
    assert table.place(full=False, model="clip") == main.place(full=False, model="clip")
