"""`verify`: whether the files of a run are as labelwright wrote them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from labelwright import checksums
from labelwright.arguments import check_arguments
from labelwright.errors import DataError
from labelwright.run_folder import CHECKPOINTS, Run
from labelwright.train import checkpoint


@dataclass(frozen=True)
class Verified:
    """What `verify` found.

    Attributes:
      n_files, n_bytes: looked at.
      faults: file, by its path in the run folder -> what is wrong with it, in words.
      notes: what could not be checked, and why.
    """

    n_files: int
    n_bytes: int
    faults: dict[str, str]
    notes: tuple[str, ...]


@check_arguments
def verify(run: str | Path) -> Verified:
    """Compare every byte of a run's files with the checksums that were taken when it finished; changes nothing.

    Args:
      run: a run folder. Of a run that has not finished the checkpoints are looked at, which hold sums of their own.

    Raises: DataError if it is no folder of a run.
    """
    found = Run(run)
    if not any((found.path / name).is_file() for name in ("config.yaml", checksums.NAME)):
        raise DataError(f"{run} is not the folder of a run", fix="give the --out of a fit or pretrain")
    sums, faults, notes = checksums.read(found.path), dict[str, str](), list[str]()
    if not sums:
        notes.append("there are no checksums yet: the run has not finished, or an earlier version made it")
    for name, each in sums.items():
        if (what := checksums.fault(found.path / name, each, sampled=False)) is not None:
            faults[name] = what
    files = [found.path / name for name in sums]
    for name in CHECKPOINTS:
        path = found.checkpoint.with_name(name)
        if path.exists() and f"checkpoints/{name}" not in sums:  # while a run goes on
            files.append(path)
            try:
                checkpoint.load(path)
            except DataError as error:
                faults[f"checkpoints/{name}"] = error.message.removeprefix(f"{path} ")
    n_bytes = sum(path.stat().st_size for path in files if path.exists())
    return Verified(len(files), n_bytes, faults, tuple(notes))
