"""`embed`: features of any model, a Python function or an ONNX file, in a file that `fit` reads."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image

from labelwright import checksums, launch
from labelwright.arguments import check_arguments
from labelwright.data.cache import resize_to_square
from labelwright.data.checks import OnBad, check_images, resolve_problems
from labelwright.data.columns import named_columns
from labelwright.data.embedding_tables import EMBEDDING_COLUMN
from labelwright.data.images import Decoding
from labelwright.data.prepare import class_list, is_embeddings, listed, read, resolved_path
from labelwright.data.table import SPLITS, LabelTable
from labelwright.encoders.embed import load_encoder
from labelwright.errors import ConfigError, DataError
from labelwright.paths import absolute
from labelwright.pipeline.settings import check_values, column_names
from labelwright.replacing import disk_errors, new_output, replacing
from labelwright.run_folder import write_parquet_atomically
from labelwright.scale.shards import Shard
from labelwright.scale.tables import Reading, batches, known_of
from labelwright.scale.work import Sharded, is_sharded, noted, over_shards
from labelwright.train.processes import accelerator_for, device_for, gather_objects, n_processes
from labelwright.train.progress import counter

Embedder = Callable[[list[Image.Image]], Any]
"""RGB images [n], upright -> their features [n, D]: an array, a tensor or lists of numbers."""

COLUMN_OF = {"ids": "id", "paths": "path", "labels": "label", "split": "split", "groups": "group", "truth": "truth"}
"""Array of an .npz -> column of Parquet."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Embedded:
    """What `embed` made.

    Attributes:
      path: the file; data for `fit` and `inspect`.
      n_images, n_features: rows and columns of the features.
      left_out: rows that could not be used.
      notices: how the table or folder was read.
      annotators: columns with the answers of one annotator each, for `fit`.
    """

    path: Path
    n_images: int
    n_features: int
    left_out: list[dict[str, Any]]
    notices: tuple[str, ...] = ()
    annotators: tuple[str, ...] = ()


@check_arguments
def embed(
    data: Any,
    *,
    out: str | Path,
    function: str | Embedder | None = None,
    onnx: str | Path | None = None,
    size: int | None = None,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    model: str | None = None,
    batch_size: int = 64,
    classes: Any = None,
    group: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    candidates_column: str | None = None,
    annotator_columns: Any = None,
    on_bad: OnBad = "stop",
    device: str = "auto",
    precision: str = "auto",
    largest_image: float = 179.0,
    engine: str = "local",
    shard_rows: int | None = None,
) -> Embedded | Sharded:
    """Write the features of images by a model of your own, with ids, paths and all that is known of the images.

    Args:
      data: images, labelled or not; see data.read.load.
      out: .npz or .parquet to write; must not exist. It appears when it is whole.
      function: a Python function from a list of RGB images (PIL) to [n, D] numbers; or where it is, as "module:name" or
        "file.py:name".
      onnx: an exported network from float pixels [n, 3, H, W] to [n, D], instead.
      size: side in px of the centre square that the ONNX network sees; None = the size it was exported for.
      model: a pretrained model by hub id or path, instead: CLIP, SigLIP, any vision model, a run of `pretrain`.
      mean, std: of its pixels, per channel; those of ImageNet if not given.
      image_column, label_column, split_column, candidates_column: columns of a table that are called otherwise.
      annotator_columns: names of columns, a list or with commas between, that hold one annotator's answers each, or of
        the one that says whose answer a row's label is; the file has a column per annotator.
      batch_size: images at once.   classes, group, on_bad, largest_image: see `fit`.
      device, precision: of an ONNX network and of ``model``.   engine, shard_rows: see `label`.

    Returns: an `Embedded`: the file, and what is in it; of shards a `scale.work.Sharded`.

    Raises: ConfigError or DataError, with nothing written, for a model that cannot be found or gives no features, or
      data that cannot be read.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> for name in ("cat", "dog"):
      ...     (folder / name).mkdir()
      ...     Image.new("RGB", (8, 8), "red" if name == "cat" else "blue").save(folder / name / "1.png")
      >>> colours = lambda images: [np.asarray(image).mean((0, 1)) for image in images]
      >>> done = embed(folder, out=folder / "feats.npz", function=colours)
      >>> with np.load(done.path) as file: file["embeddings"].tolist(), file["labels"].tolist()
      ([[255.0, 0.0, 0.0], [0.0, 0.0, 255.0]], ['cat', 'dog'])
    """
    check_values(group=group, size=size, device=device, image_column=image_column, label_column=label_column)
    check_values(split_column=split_column, candidates_column=candidates_column, annotator_columns=annotator_columns)
    annotators = column_names(annotator_columns)
    is_over_shards = is_sharded(data, engine=engine, shard_rows=shard_rows)
    target = Path() if is_over_shards else new_output(out, ".npz", ".parquet")
    if sum(each is not None for each in (function, onnx, model)) != 1:
        raise ConfigError("embed needs one model", fix="give --function MODULE:NAME, --onnx FILE or --model ID")
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} is not possible", fix="give 1 or more")
    if is_embeddings(data):
        raise ConfigError(f"{resolved_path(data)} holds embeddings already", fix="give the images")
    asked = Asked(function, None if onnx is None else str(onnx), model, size, mean, std, device, precision)
    embedder = _loaded(asked)
    columns = named_columns(image=image_column, label=label_column, split=split_column, candidates=candidates_column)
    decoding = Decoding.chosen(largest_image=largest_image)
    if is_over_shards:
        if candidates_column is not None or group is not None or annotators:
            raise ConfigError(
                "shards are embedded without candidates and answers, and group by a column `group`", fix="leave it out"
            )
        names = class_list(classes)
        how = Reading(tuple(columns.items()), False, None if names is None else tuple(names), on_bad, decoding)
        what = {"verb": "embed", **asked.facts(), "classes": names, "columns": columns, "on_bad": on_bad}
        what["largest_image"] = largest_image
        return over_shards(
            data,
            out,
            EmbedShard(asked.everywhere(), how, batch_size),
            what=what,
            engine=engine,
            shard_rows=shard_rows,
            doing="embedding shards",
        )
    table = read(data, classes=classes, group=group, annotators=annotators, columns=columns, decoding=decoding)
    table = resolve_problems(table, [*table.problems, *check_images(table)], on_bad)
    if table.candidates is not None and target.suffix == ".npz":
        raise ConfigError("these images have candidate labels, which an .npz cannot hold", fix="end --out in .parquet")
    if taken := sorted({*COLUMN_OF.values(), *COLUMN_OF, EMBEDDING_COLUMN} & set(table.annotators)):
        raise DataError(f"an annotator is called {taken[0]!r}, as a column of the file", fix="rename that column")
    if launch.is_shared():
        accelerator_for(device)
    own = range(launch.rank() * batch_size, len(table), n_processes() * batch_size)  # where its batches begin
    parts = gather_objects(list(_features(table, embedder, asked.name, batch_size, own)))
    feats = np.concatenate([part for turn in zip_longest(*parts) for part in turn if part is not None])
    if not launch.rank():
        _write(target, table, feats)
    notices = tuple(table.how_read)
    return Embedded(target, len(feats), feats.shape[1], listed(table.quarantined), notices, table.annotators)


@dataclass(frozen=True)
class Asked:
    """The model of `embed`: one of ``function``, ``onnx`` and ``model``; the others and their settings as there."""

    function: str | Embedder | None
    onnx: str | None
    model: str | None
    size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: str
    precision: str

    @property
    def name(self) -> str:
        """For messages."""
        if callable(self.function):
            return str(getattr(self.function, "__name__", "the function"))
        return self.function or self.onnx or str(self.model)

    def facts(self) -> dict[str, Any]:
        """What the features depend on: JSON-ready. Of files that are here their content, of a function its own file."""
        place = self.onnx or self.model or (self.function if isinstance(self.function, str) else "")
        place = place if place != self.function else place.rpartition(":")[0]
        own = {"model": self.name, "content": checksums.of_place(place), "precision": self.precision}
        return own | ({"size": self.size, "mean": list(self.mean), "std": list(self.std)} if self.onnx else {})

    def everywhere(self) -> Asked:
        """The same for workers that may run in another folder."""
        function = self.function
        if isinstance(function, str) and (file := function.rpartition(":")[0]).endswith(".py"):
            function = f"{absolute(file)}:{function.rpartition(':')[2]}"
        onnx, model = (None if each is None else absolute(each) for each in (self.onnx, self.model))
        return replace(self, function=function, onnx=onnx, model=model)


@dataclass(frozen=True)
class EmbedShard:
    """Features of a shard's images, with what is known of them."""

    asked: Asked
    how: Reading
    batch_size: int

    def __call__(self, shard: Shard) -> pa.Table:
        """A row per usable image, in the order of the shard."""
        model, parts, left_out = _loaded(self.asked), list[pa.Table](), list[Any]()
        for batch in batches(shard, self.how):
            left_out += batch.left_out
            if batch.source is not None:
                feats = np.concatenate(list(_features(batch.source.table, model, self.asked.name, self.batch_size)))
                parts.append(pa.table({EMBEDDING_COLUMN: _lists(feats), **known_of(batch)}))
        return noted(parts, pa.schema([("id", pa.large_string())]), left_out)


@functools.lru_cache(maxsize=1)
def _loaded(asked: Asked) -> Embedder:
    """Once in a process, whatever number of shards it works on."""
    if asked.onnx is not None:
        return _of_onnx(Path(asked.onnx), size=asked.size, mean=asked.mean, std=asked.std, device=asked.device)
    if asked.model is not None:
        return _pretrained(asked.model, asked.device, asked.precision)
    assert asked.function is not None
    device_for(asked.device)
    return _found(asked.function) if isinstance(asked.function, str) else asked.function


def _pretrained(name: str, device: str, precision: str) -> Embedder:
    """A pretrained model behind the pixels that it wants; features of unit norm."""
    where = accelerator_for(device).device
    encoder = load_encoder(name, device=where, precision=precision)
    mean, std = (torch.tensor(each, device=where)[:, None, None] for each in (encoder.stats.mean, encoder.stats.std))

    def run(images: list[Image.Image]) -> torch.Tensor:
        pixels = np.stack([resize_to_square(image, size_px=encoder.stats.size_px) for image in images])
        x = torch.from_numpy(pixels).to(where).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            return encoder.encode((x - mean) / std)

    return run


def _features(
    table: LabelTable, model: Embedder, name: str, batch_size: int, firsts: range | None = None
) -> Iterator[npt.NDArray[np.float32]]:
    """[n, D] of one batch after another, of those that begin at rows ``firsts``, checked; None: all."""
    width: int | None = None
    with counter(f"embedding with {name}", len(table)) as progress:
        for first in range(0, len(table), batch_size) if firsts is None else firsts:
            rows = range(first, min(first + batch_size, len(table)))
            images = [table.image(row) for row in rows]
            try:
                given = model(images)
            except Exception as error:  # of code that is not ours
                what = f"{type(error).__name__}: {error}".splitlines()[0]
                raise ConfigError(
                    f"{name} failed on {len(rows)} images from {table.images.where(first)} on: {what}",
                    fix="it gets a list of RGB images and must return their features [n, D]",
                ) from error
            feats = _numbers(given, name)
            if feats.ndim != 2 or len(feats) != len(rows) or 0 in feats.shape or width not in (None, feats.shape[1]):
                wanted = "D" if width is None else width
                raise ConfigError(
                    f"{name} gave {list(feats.shape)} for {len(rows)} images, not [{len(rows)}, {wanted}]",
                    fix="return one row of features per image; of a network without its last layer (num_classes=0)",
                )
            bad = np.flatnonzero(~np.isfinite(feats).all(axis=1))
            if len(bad):
                raise DataError(
                    f"{name} gave a value that is not a finite number for {table.images.where(first + int(bad[0]))}",
                    fix="look at that image, and at the precision of the network",
                )
            width = feats.shape[1]
            progress(rows.stop)
            yield feats


def _numbers(given: Any, name: str) -> npt.NDArray[np.float32]:
    """What a model returned, as float32."""
    if hasattr(given, "detach"):  # a tensor
        given = given.detach().float().cpu().numpy()
    try:
        return np.asarray(given, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{name} returned {type(given).__name__}, not numbers ({error})",
            fix="return an array, a tensor or lists of numbers [n, D]",
        ) from error


def _found(where: str) -> Embedder:
    """The function at "module:name" or "file.py:name"; the working folder is looked in, too."""
    place, colon, name = where.rpartition(":")
    if not colon or not place or not name:
        raise ConfigError(f"--function {where} is not MODULE:NAME", fix="write it as embedder:embed or file.py:embed")
    try:
        if place.endswith(".py"):
            path = Path(place).expanduser()
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            folder = str(Path.cwd())
            sys.path[:] = sys.path if folder in sys.path else [folder, *sys.path]
            module = importlib.import_module(place)
    except Exception as error:  # of code that is not ours
        what, fix = f"{type(error).__name__}: {error}".splitlines()[0], "give a module or a .py file"
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and missing != place.partition(".")[0]:
            fix = f"install {missing} where labelwright is installed"
        raise ConfigError(f"{place} cannot be imported ({what})", fix=fix) from error
    found = getattr(module, name, None)
    if not callable(found):
        have = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(f"{place} has no function {name!r}", fix=f"it has: {', '.join(have) or 'none'}")
    return found  # type: ignore[no-any-return]


def _of_onnx(path: Path, *, size: int | None, mean: Sequence[float], std: Sequence[float], device: str) -> Embedder:
    """The network in a file, behind the pixels that it wants."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            "ONNX files need onnxruntime, which is not installed", fix="pip install 'labelwright[export]'"
        ) from error
    if not path.expanduser().is_file():
        raise ConfigError(f"no such file: {path}", fix="check --onnx")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ConfigError(f"mean={mean}, std={std} are not possible", fix="give three numbers each, std above 0")
    on_gpu = accelerator_for(device).device.type == "cuda" and "CUDAExecutionProvider" in (
        onnxruntime.get_available_providers()
    )
    providers = [*(["CUDAExecutionProvider"] if on_gpu else []), "CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(str(path.expanduser()), providers=providers)
    except Exception as error:  # its own exceptions have no common class
        raise ConfigError(f"{path} is not an ONNX model that runs here ({error})", fix="export it anew") from error
    source, output = session.get_inputs()[0], session.get_outputs()[0].name
    shape = list(source.shape)
    if (
        len(session.get_inputs()) != 1
        or len(shape) != 4
        or (shape[1] not in (3, None) and not isinstance(shape[1], str))
    ):
        raise ConfigError(
            f"{path} takes {[list(each.shape) for each in session.get_inputs()]}, not one input [n, 3, H, W]",
            fix="export the network for a batch of RGB pixels, channels first",
        )
    own = shape[2] if isinstance(shape[2], int) else None
    if own is None and size is None:
        raise ConfigError(f"{path} takes images of any size", fix="give the one it was trained at, as --size 224")
    if own is not None and size is not None and size != own:
        raise ConfigError(f"{path} takes images of {own} px, not {size}", fix="leave --size out")
    size_px, fixed = own or size, shape[0] if isinstance(shape[0], int) else None
    assert size_px is not None
    kind = np.float16 if "float16" in source.type else np.float32
    centre, scale = np.array(mean, np.float32) * 255, np.array(std, np.float32) * 255

    def run(images: list[Image.Image]) -> npt.NDArray[Any]:
        pixels = np.stack([resize_to_square(image, size_px=size_px) for image in images])
        x = ((pixels - centre) / scale).transpose(0, 3, 1, 2).astype(kind)
        step, found = fixed or len(x), []
        for first in range(0, len(x), step):
            some = x[first : first + step]
            filled = np.concatenate([some, np.repeat(some[:1], step - len(some), axis=0)])  # of a batch that is fixed
            found.append(session.run([output], {source.name: np.ascontiguousarray(filled)})[0][: len(some)])
        return np.concatenate(found)

    return run


# ---- the file -------------------------------------------------------------------------------------------------------


def _write(target: Path, table: LabelTable, feats: npt.NDArray[np.float32]) -> None:
    """Features beside everything that the table knows, under the names that data.embeddings reads."""
    columns: dict[str, Any] = {"ids": table.ids.to_pylist(), "paths": _paths(table)}
    if len(table.class_names) and (table.labels >= 0).any():
        columns["labels"] = _names(table.labels, table.class_names)
    if table.split is not None:
        columns["split"] = _names(table.split, SPLITS)
    if table.groups is not None:
        columns["groups"] = table.groups.tolist()
    if table.truth is not None:
        columns["truth"] = _names(table.truth, table.truth_names)
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".npz":
        arrays = {key: np.array(values) for key, values in columns.items() if values is not None}
        if table.class_names:
            arrays["class_names"] = np.array(table.class_names)
        with replacing(target) as temporary, temporary.open("wb") as file:
            np.savez(file, embeddings=feats, **arrays)  # type: ignore[arg-type]
        return
    lists: Mapping[str, Any] = {COLUMN_OF[key]: values for key, values in columns.items() if values is not None}
    found = {EMBEDDING_COLUMN: _lists(feats), **lists}
    if table.votes is not None:
        for name, answers in zip(table.annotators, table.votes.T, strict=True):
            found[name] = _names(answers, table.class_names)
    elif table.candidates is not None:
        sets = [table.candidates.of(row).tolist() for row in range(len(table))]
        found["candidates"] = [[table.class_names[c] for c in some] for some in sets]
        if table.candidates.weights is not None:
            parts = np.split(table.candidates.weights.numpy(), table.candidates.offsets.numpy()[1:-1])
            found["weights"] = [part.tolist() for part in parts]
    write_parquet_atomically(pa.table(found), target)


def _lists(feats: npt.NDArray[np.float32]) -> Any:
    return pa.FixedSizeListArray.from_arrays(pa.array(feats.reshape(-1)), feats.shape[1])


def _names(numbers: npt.NDArray[Any], names: Sequence[str]) -> list[str]:
    return [names[number] if number >= 0 else "" for number in numbers.tolist()]


def _paths(table: LabelTable) -> list[str] | None:
    """Where each image is; None of embedded ones."""
    if table.images.dataset is not None:
        return None
    return [str(source) for source in table.images.sources(np.arange(len(table)))]
