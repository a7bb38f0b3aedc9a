import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from labelwright.data import embeddings
from labelwright.data.checks import check_images, format_problems
from labelwright.data.embeddings import NPZ_KEYS, GivenFeats, UserEmbeddings, load_embeddings
from labelwright.data.stored import EmbeddingViews, StoredFeats
from labelwright.errors import ConfigError, DataError
from labelwright.types import ViewSource

CPU = torch.device("cpu")
N, D = 5, 4
VECTORS = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "pets.npz"
    np.savez(path, **{"embeddings": VECTORS, **arrays})
    return path


def parquet(folder: Path, **columns: Any) -> Path:
    path = folder / "pets.parquet"
    pq.write_table(pa.table({"embedding": list(VECTORS), **columns}), path)
    return path


# --------------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", ">f4", "int16"])
def test_npy__is_unlabelled_and_mapped_in_its_own_type(tmp_path: Path, dtype: str) -> None:
    vectors = (8 * VECTORS).astype(dtype)
    np.save(tmp_path / "pets.npy", vectors)
    found = load_embeddings(tmp_path / "pets.npy")
    assert isinstance(found.feats, np.memmap) == (dtype != "int16")
    assert found.table.labels.tolist() == [-1] * N
    assert found.table.ids.to_pylist() == ["0", "1", "2", "3", "4"]
    assert (found.class_feats, found.logit_scale, found.weak, found.strong) == (None, None, None, None)
    rows = torch.tensor([4, 0, 0])
    x = EmbeddingViews(found.stored).batch(rows, "clean", seed=0, device=CPU)
    assert x.dtype == torch.float32
    assert np.array_equal(x.numpy(), vectors[rows.numpy()].astype(np.float32))


def test_npz__paths_name_the_rows_where_there_are_no_ids(tmp_path: Path) -> None:
    found = load_embeddings(npz(tmp_path, paths=["1.png", "2.png", "3.png", "4.png", "5.png"]))
    assert found.table.ids.to_pylist() == ["1.png", "2.png", "3.png", "4.png", "5.png"]


def test_npz__everything_it_can_hold(tmp_path: Path) -> None:
    weak = np.stack([VECTORS + v for v in (1, 2)])
    class_feats = np.arange(3 * D, dtype=np.float64).reshape(3, D)
    path = npz(
        tmp_path,
        labels=np.array([2, -1, 0, 1, 2]),
        class_names=["owl", "cat", "dog"],
        ids=["a", "b", "c", "d", "e"],
        paths=["1.png", "2.png", "3.png", "4.png", "5.png"],
        groups=[1, 1, 2, 2, 3],
        split=["train", "test", "train", "train", "test"],
        truth=["dog", "cat", "owl", "cat", "dog"],
        class_embeddings=class_feats,
        logit_scale=np.float32(50),
        weak=weak,
        strong=weak[:1] + 7,
    )
    with np.load(path) as saved:
        assert set(saved.files) == set(NPZ_KEYS)
    found = load_embeddings(path)
    table = found.table
    assert table.class_names == ("owl", "cat", "dog")
    assert table.labels.tolist() == [2, -1, 0, 1, 2]
    assert table.truth is not None
    assert table.truth.tolist() == [2, 1, 0, 1, 2]
    assert table.ids.to_pylist() == list("abcde")
    assert table.groups is not None
    assert (table.groups[[0, 2, 4]] == table.groups[[1, 3, 4]]).all()
    assert table.where("test").tolist() == [1, 4]
    assert found.class_feats is not None
    assert found.class_feats.dtype == np.float32
    assert np.array_equal(found.class_feats, class_feats)
    assert found.logit_scale == 50
    views = EmbeddingViews(found.stored)
    rows = torch.arange(N)
    x = views.batch(rows, "weak", seed=1, device=CPU)
    shift = (x - torch.from_numpy(VECTORS)).mean(1).round()
    assert set(shift.tolist()) == {1.0, 2.0}
    assert torch.allclose(x, torch.from_numpy(VECTORS) + shift[:, None], atol=1e-6)
    assert torch.allclose(views.batch(rows, "strong", seed=1, device=CPU), torch.from_numpy(VECTORS) + 8, atol=1e-6)


def test_npz__classes_given_reorder_names_and_class_embeddings(tmp_path: Path) -> None:
    class_feats = np.arange(2 * D, dtype=np.float32).reshape(2, D)
    path = npz(tmp_path, labels=[0, 1, -1, 0, 1], class_names=["cat", "dog"], class_embeddings=class_feats)
    found = load_embeddings(path, classes=["dog", "cat"])
    assert found.table.labels.tolist() == [1, 0, -1, 1, 0]
    assert np.array_equal(found.class_feats, class_feats[::-1])  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"pets.npz: no class_embeddings of 'owl'"):
        load_embeddings(path, classes=["dog", "cat", "owl"], on_bad="report")


def test_npz__integer_labels_and_class_embeddings_without_names(tmp_path: Path) -> None:
    path = npz(tmp_path, labels=[0, 1, -1, 0, 1], class_embeddings=np.ones((3, D)))
    found = load_embeddings(path)
    assert found.table.class_names == ("0", "1", "2")
    assert found.table.labels.tolist() == [0, 1, -1, 0, 1]
    path = npz(tmp_path, labels=["cat"] * N, class_embeddings=np.ones((1, D)))
    with pytest.raises(DataError, match=r"without class_names beside labels that are names"):
        load_embeddings(path)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float64(), D), pa.large_list(pa.float16())])
def test_parquet__lists_of_any_kind_with_the_columns_of_a_table(tmp_path: Path, kind: Any) -> None:
    path = parquet(
        tmp_path,
        embedding=pa.array([list(row) for row in VECTORS.astype(np.float16)], kind),
        label=["cat", None, "dog", "", "cat"],
        candidates=["cat|dog", "dog", None, "cat", "cat"],
        image_id=list("vwxyz"),
        split=["train", "train", "test", "train", "train"],
        path=["v.png"] * N,
    )
    found = load_embeddings(path)
    assert np.array_equal(found.feats, VECTORS.astype(np.float16).astype(np.float32))
    assert found.table.class_names == ("cat", "dog")
    assert found.table.labels.tolist() == [0, -1, 1, -1, 0]
    assert found.table.ids.to_pylist() == list("vwxyz")
    assert found.table.where("test").tolist() == [2]
    assert found.table.candidates is not None
    assert [found.table.candidates.of(row).tolist() for row in range(3)] == [[0, 1], [1], []]
    assert load_embeddings(path, classes=["dog", "cat"]).table.labels.tolist() == [1, -1, 0, -1, 1]


def test_parquet__embeddings_alone(tmp_path: Path) -> None:
    found = load_embeddings(parquet(tmp_path))
    assert np.array_equal(found.feats, VECTORS)
    assert found.table.labels.tolist() == [-1] * N
    assert found.table.class_names == ()


def test_parquet__class_label_column(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"embedding": datasets.Sequence(datasets.Value("float32")), "label": datasets.ClassLabel(names=["owl", "cat"])}
    )
    data = datasets.Dataset.from_dict({"embedding": VECTORS.tolist(), "label": [1, 0, -1, 1, 1]}, features=features)
    data.to_parquet(tmp_path / "pets.parquet")
    table = load_embeddings(tmp_path / "pets.parquet").table
    assert table.class_names == ("owl", "cat")
    assert table.labels.tolist() == [1, 0, -1, 1, 1]


# ------------------------------------------------------------------------------------------------------------ bad rows


def spoiled(folder: Path, kind: str) -> Path:
    """Rows 1 and 3 are bad."""
    vectors = VECTORS.copy()
    vectors[1, 2], vectors[3, 0] = np.nan, -np.inf
    labels = ["cat", "cat", "dog", "dog", "cat"]
    if kind == "npy":
        np.save(folder / "pets.npy", vectors)
        return folder / "pets.npy"
    if kind == "npz":
        return npz(folder, embeddings=vectors, labels=labels)
    if kind == "npz weak":
        weak = np.stack([VECTORS, vectors])
        return npz(folder, weak=weak, labels=labels)
    if kind == "npz double":
        huge = VECTORS.astype(np.float64)
        huge[[1, 3], 1] = 1e300
        return npz(folder, embeddings=huge, labels=labels)
    rows: list[Any] = [list(row) for row in VECTORS]
    if kind == "parquet lengths":
        rows[1], rows[3] = rows[1][:2], None
    else:
        rows[1][0], rows[3][1] = None, float("nan")
    return parquet(folder, embedding=rows, label=labels)


@pytest.mark.parametrize("kind", ["npy", "npz", "npz weak", "npz double", "parquet", "parquet lengths"])
def test_bad_rows__stop_names_them_and_skip_leaves_them_out(tmp_path: Path, kind: str) -> None:
    path = spoiled(tmp_path, kind)
    with pytest.raises(DataError, match="2 problems in the data: 2 bad_embedding") as caught:
        load_embeddings(path)
    assert [problem.row for problem in caught.value.problems] == [1, 3]
    assert caught.value.problems[0].where == f"{path} row 2"  # from 1
    assert "2 bad_embedding: embeddings with a value" in format_problems(caught.value.problems)
    found = load_embeddings(path, on_bad="skip")
    kept = [0, 2, 4]
    assert np.array_equal(found.feats, VECTORS[kept])
    assert len(found.table) == 3
    assert found.table.ids.to_pylist() == ["0", "2", "4"]
    assert [problem.row for problem in found.table.quarantined] == [1, 3]
    if kind != "npy":
        assert found.table.labels.tolist() == [0, 1, 0]
    assert EmbeddingViews(found.stored).n_rows == 3
    if kind == "npz weak":
        assert np.array_equal(found.weak, np.stack([VECTORS, VECTORS])[:, kept])  # type: ignore[arg-type]
    reported = load_embeddings(path, on_bad="report")
    assert [problem.row for problem in reported.table.problems] == [1, 3]
    assert reported.feats.shape == (N, D)


def test_bad_rows__unknown_labels_and_repeated_ids_are_problems_of_rows(tmp_path: Path) -> None:
    path = npz(tmp_path, labels=[0, 1, 7, 1, 0], class_names=["cat", "dog"], ids=["a", "b", "c", "a", "e"])
    with pytest.raises(DataError) as caught:
        load_embeddings(path)
    assert sorted((problem.kind, problem.row) for problem in caught.value.problems) == [
        ("duplicate_id", 3),
        ("unknown_label", 2),
    ]
    found = load_embeddings(path, on_bad="skip")
    assert np.array_equal(found.feats, VECTORS[[0, 1, 4]])


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": [0, 1]}, r"labels has shape \[2\] for 5 embeddings"),
        ({"ids": np.zeros((5, 1))}, r"ids has shape \[5, 1\] for 5 embeddings"),
        ({"label": [0] * 5}, r"unknown keys label"),
        ({"embeddings": np.zeros(5)}, r"embeddings has shape \[5\], which is not \[rows, features\]"),
        ({"embeddings": np.zeros((0, 4))}, r"embeddings has shape \[0, 4\]"),
        ({"embeddings": np.array([["a"]])}, r"embeddings holds <U1, not numbers"),
        ({"labels": np.array([None] * 5)}, r"labels holds Python objects, which are never unpickled"),
        ({"class_embeddings": np.zeros((2, 3))}, r"class_embeddings has shape \[2, 3\] for 2 classes of 4 features"),
        ({"class_embeddings": np.zeros((3, 4)), "class_names": ["a", "b"]}, r"\[3, 4\] for 2 classes"),
        ({"class_embeddings": np.array([[1.0] * 4, [np.nan] * 4])}, r"class_embeddings of '1' is not finite"),
        ({"class_names": ["a", "a"]}, r"class_names must be \[C\] different strings"),
        ({"class_names": [1, 2]}, r"class_names must be \[C\] different strings"),
        ({"logit_scale": 0.0}, r"logit_scale must be one positive number"),
        ({"logit_scale": [1.0, 2.0]}, r"logit_scale must be one positive number"),
        ({"weak": np.zeros((2, 4, 4))}, r"weak has shape \[2, 4, 4\] of float64, not \[V, 5, 4\]"),
        ({"strong": np.zeros((0, 5, 4))}, r"strong has shape \[0, 5, 4\]"),
    ],
)
def test_npz__errors_name_the_file_and_the_key(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = npz(tmp_path, **arrays)
    with pytest.raises(DataError, match=r"pets\.npz: .*" + message) as caught:
        load_embeddings(path)
    assert caught.value.fix


def test_npz__keys_of_another_tool_get_the_call_that_writes_ours(tmp_path: Path) -> None:
    np.savez(tmp_path / "pets.npz", X=VECTORS, y=np.arange(len(VECTORS)))
    with pytest.raises(DataError, match="unknown keys X, y, and no embeddings") as caught:
        load_embeddings(tmp_path / "pets.npz")
    assert caught.value.fix.startswith("numpy.savez('pets.npz', embeddings=[rows, features], labels=[rows])")


def test_files_that_are_something_else(tmp_path: Path) -> None:
    def refuses(name: str, message: str) -> None:
        with pytest.raises(DataError, match=message) as caught:
            load_embeddings(tmp_path / name)
        assert name in str(caught.value)
        assert caught.value.fix

    (tmp_path / "pets.txt").write_text("1 2 3")
    refuses("pets.txt", "not a file of embeddings")
    refuses("none.npy", "no such file")
    (tmp_path / "empty.npy").write_bytes(b"")
    refuses("empty.npy", "not a readable .npy file")
    (tmp_path / "text.npy").write_text("1 2 3")
    refuses("text.npy", "not a readable .npy file")
    np.save(tmp_path / "objects.npy", np.array([[None]]), allow_pickle=True)
    refuses("objects.npy", "never unpickled")
    np.savez(tmp_path / "whole.npz", embeddings=VECTORS)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:100])
    refuses("cut.npz", "not a readable .npz file")
    np.savez(tmp_path / "others.npz", labels=[0])
    refuses("others.npz", "no key embeddings")
    np.save(tmp_path / "images.npy", np.zeros((5, 2, 2)))
    refuses("images.npy", r"embeddings has shape \[5, 2, 2\]")
    (tmp_path / "text.parquet").write_text("1 2 3")
    refuses("text.parquet", "not a readable parquet file")
    pq.write_table(pa.table({"vector": [[1.0]]}), tmp_path / "other.parquet")
    refuses("other.parquet", "no column embedding; columns found: vector")
    pq.write_table(pa.table({"embedding": ["1 2"]}), tmp_path / "strings.parquet")
    refuses("strings.parquet", "its column embedding holds string")
    pq.write_table(pa.table({"embedding": pa.array([None, []], pa.list_(pa.float32()))}), tmp_path / "none.parquet")
    refuses("none.parquet", "it holds no embedding")


def test_classes__impossible_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="named twice: cat"):
        load_embeddings(npz(tmp_path), classes=["cat", "cat"])


# ---------------------------------------------------------------------------------------------- a table without images


@pytest.fixture
def pets(tmp_path: Path) -> UserEmbeddings:
    return load_embeddings(npz(tmp_path, labels=["cat", "dog", "", "dog", "cat"]))


def test_no_images__decoding_is_a_clear_error(pets: UserEmbeddings) -> None:
    for ask in (lambda: pets.table.image(3), lambda: pets.table.subset(np.array([0, 0, 0, 1])).image(3)):
        with pytest.raises(DataError, match="row 4: the data holds embeddings and no images") as caught:
            ask()
        assert caught.value.problems[0].kind == "missing_image"
    with pytest.raises(DataError, match="no images"):
        check_images(pets.table)


def test_no_images__subsets_and_fingerprints_follow_the_vectors(pets: UserEmbeddings, tmp_path: Path) -> None:
    some = pets.table.subset(np.array([4, 1])).subset(np.array([1]))
    assert some.images.rows.tolist() == [1]  # type: ignore[attr-defined]
    assert (len(some), some.labels.tolist()) == (1, [1])
    same = load_embeddings(npz(tmp_path, labels=["dog", "dog", "", "dog", "cat"])).table
    assert same.images_digest == pets.table.images_digest
    assert same.fingerprint != pets.table.fingerprint
    changed = VECTORS.copy()
    changed[4, 3] += 1e-6
    other = load_embeddings(npz(tmp_path, embeddings=changed)).table
    assert other.images_digest != pets.table.images_digest
    assert pets.table.subset(np.array([1, 0])).images_digest != pets.table.subset(np.array([0, 1])).images_digest


# -------------------------------------------------------------------------------------------------------- views made up


def test_given_feats__are_stored_feats_and_a_view_source() -> None:
    stored: StoredFeats = GivenFeats(VECTORS)
    source: ViewSource = EmbeddingViews(stored)
    rows = torch.tensor([3, 1])
    for view in ("clean", "weak"):
        x = source.batch(rows, view, seed=5, device=CPU)
        assert np.array_equal(x.numpy(), VECTORS[rows.numpy()])


def test_given_feats__strong_views_have_the_dropout_and_noise_promised() -> None:
    n, d = 200, 500
    vectors = np.random.default_rng(1).standard_normal((n, d)).astype(np.float32) * np.linspace(0.1, 10, n)[:, None]
    vectors = vectors.astype(np.float32)
    x = EmbeddingViews(GivenFeats(vectors)).batch(torch.arange(n), "strong", seed=0, device=CPU).numpy()
    dropped = x == 0
    assert abs(dropped.mean() - 0.1) < 0.004  # 4 standard deviations of a share of 100,000
    sd = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True) / (10 * np.sqrt(d))
    noise = np.sort(((x - vectors) / sd)[~dropped])
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    quantiles = noise[(np.array([0.0228, 0.1587, 0.8413, 0.9772]) * len(noise)).astype(int)]
    assert np.abs(quantiles - [-2, -1, 1, 2]).max() < 0.05  # of a normal distribution


def test_given_feats__strong_views_hang_on_seed_and_row_alone() -> None:
    views = EmbeddingViews(GivenFeats(np.ones((50, 40), np.float32)))

    def strong(rows: torch.Tensor, seed: int = 0) -> torch.Tensor:
        return views.batch(rows, "strong", seed=seed, device=CPU)

    every = strong(torch.arange(50))
    assert torch.equal(every[[7, 3]], strong(torch.tensor([7, 3])))
    assert len(every.unique(dim=0)) == 50
    assert len(torch.cat([every, strong(torch.arange(50), seed=1)]).unique(dim=0)) == 100
    twice = strong(torch.tensor([7, 7]))
    assert not torch.equal(twice[0], twice[1])


def test_user_embeddings__weak_views_of_their_own_and_strong_ones_made_up(tmp_path: Path) -> None:
    weak = VECTORS[None] + 1
    stored = load_embeddings(npz(tmp_path, weak=weak)).stored
    assert (stored.n_rows, stored.n_features, stored.n_views("weak"), stored.n_views("strong")) == (N, D, 1, 1 << 24)
    x = stored.read(torch.tensor([2]), "weak", torch.tensor([0]))
    assert np.array_equal(x.numpy(), weak[0, [2]])
    noisy = stored.read(torch.tensor([2]), "strong", torch.tensor([0]))
    assert (noisy.numpy() != VECTORS[[2]]).all()
    assert np.linalg.norm(noisy.numpy() - VECTORS[[2]]) < np.linalg.norm(noisy.numpy() - weak[0, [2]])


# -------------------------------------------------------------------------------------------------------- damaged files


def npy_with_header(header: bytes, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }",  # no data behind it
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 4), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 100000), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': 7, }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 'x'), }",
        b"{'descr': 3, 'fortran_order': 'no', 'shape': (3, 4), }",
        b"{'descr': '<f4', 'shape': (3, 4), }",
        b"[1, 2, 3]",
        b"{'descr': '<f4', ",
        b"(" * 5000,
        b"\xff\xfe\x00",
        b"",
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_damaged_headers__are_one_sentence(tmp_path: Path, header: bytes, suffix: str) -> None:
    path = tmp_path / f"pets{suffix}"
    if suffix == ".npy":
        path.write_bytes(npy_with_header(header))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("embeddings.npy", npy_with_header(header))
    with pytest.raises(DataError, match=rf"pets{suffix}: ") as refused:
        load_embeddings(path)
    assert refused.value.message.count("\n") == 0


def test_npz__that_unpacks_to_far_more_than_it_is_refused_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pets.npz"
    np.savez_compressed(path, embeddings=np.zeros((1000, 100), np.float32))
    assert len(load_embeddings(path).table) == 1000
    monkeypatch.setattr(embeddings, "_UNPACKED_BYTES_MAX", 1000)
    with pytest.raises(DataError, match=r"pets.npz: embeddings.npy would unpack from .* to 400,128 bytes"):
        load_embeddings(path)


def test_bad_rows__values_whose_squares_no_number_holds(tmp_path: Path) -> None:
    huge = VECTORS.copy()
    huge[0, 0], huge[2, 1] = 1e36, -3e38
    with pytest.raises(DataError, match="1 bad_embedding") as caught:
        load_embeddings(npz(tmp_path, embeddings=huge))
    assert [problem.row for problem in caught.value.problems] == [2]
    assert "beyond 1e+37" in caught.value.problems[0].detail


def test_npy__with_the_table_of_its_rows_beside(tmp_path: Path) -> None:
    np.save(tmp_path / "pets.npy", VECTORS)
    beside = tmp_path / "pets.csv"
    beside.write_text("path,species,track\na.png,cat,x\nb.png,,x\nc.png,dog,y\nd.png,,y\ne.png,cat,z\n")
    found = load_embeddings(tmp_path / "pets.npy", columns={"label": "species"}).table
    assert (found.class_names, found.labels.tolist()) == (("cat", "dog"), [0, -1, 1, -1, 0])
    assert found.ids.to_pylist()[:2] == ["a.png", "b.png"]
    assert found.groups is not None
    assert found.groups.tolist() == [0, 0, 1, 1, 2]
    assert load_embeddings(tmp_path / "pets.npy", only_rows=True).table.class_names == ()
    beside.write_text("id,label\n1,cat\n")
    [notice] = load_embeddings(tmp_path / "pets.npy").table.problems
    assert notice.detail == "not read: it has another number of rows than pets.npy, which has 5"
    beside.write_text("id,label,probability,decision\n" + "".join(f"{i},cat,0.9,accept\n" for i in range(N)))
    found = load_embeddings(tmp_path / "pets.npy").table  # what `label` writes says nothing new
    assert (found.labels.tolist(), found.problems[0].kind) == ([-1] * N, "ignored_column")


def test_parquet__files_of_different_width_keep_the_widest_numbers(tmp_path: Path) -> None:
    """Half precision of the first would turn a large number of the second into infinity."""
    for i, (value, kind) in enumerate([(1.0, pa.float16()), (70_000.0, pa.float32())]):
        numbers = [[np.float16(value) if kind == pa.float16() else value] * 2]
        pq.write_table(pa.table({"embedding": pa.array(numbers, pa.list_(kind))}), tmp_path / f"part-{i}.parquet")
    found = load_embeddings(sorted(tmp_path.glob("*.parquet")))
    assert found.feats.tolist() == [[1.0, 1.0], [70_000.0, 70_000.0]]
