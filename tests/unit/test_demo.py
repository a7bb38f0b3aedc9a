"""The offline first run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evenkeel import cli, demo


def test_digits__no_image_on_both_sides() -> None:
    train, test = demo.digits()
    seen = {train.image(row).tobytes() for row in range(len(train))}
    assert len(seen) == len(train)
    assert not seen & {test.image(row).tobytes() for row in range(len(test))}
    extrema = [train.image(row).getextrema()[0] for row in range(len(train))]
    assert (min(low for low, _ in extrema), max(high for _, high in extrema)) == (0, 255)


def test_verdict__also_when_it_did_not_help() -> None:
    low, high = {"few": 0.2, "balanced_accuracy": 0.5}, {"few": 0.4, "balanced_accuracy": 0.6}
    assert demo.verdict(low, high).endswith("it kept them learning.")
    assert demo.verdict(high, low).endswith("this time it did not help.")
    assert demo.verdict(high, {"few": 0.5, "balanced_accuracy": 0.5}).endswith("this time it did not help.")


def test_run__twice_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVENKEEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo, "SETTINGS", {**demo.SETTINGS, "epochs": 1})
    threads = torch.get_num_threads()
    for number in (1, 2):
        assert cli.run(["demo", "--out", str(tmp_path / "demo-run")]) == 0
        told = capsys.readouterr().out
        for method in ("ce", "cvs"):
            report = tmp_path / "demo-run" / str(number) / method / "report.html"
            assert report.exists()
            assert f"report: {report}\n" in told
        assert "437 real handwritten digits" in told
        assert "Of the rare digits" in told
    assert torch.get_num_threads() == threads


def test_run__into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").touch()
    assert cli.run(["demo", "--out", str(tmp_path / "taken")]) == 2
    assert "taken is a file\n  fix: give --out a folder" in capsys.readouterr().err
