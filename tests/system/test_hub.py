"""Budgets from the hub's cache, without the hub, and what is uploaded to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from baklava.budgets import Budgets
from baklava.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """The cache of the hub after a download of org/name, a repository with two ratios."""
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / COMMIT
    for ratio in (0.5, 0.75):
        Budgets.uniform(n_layers=1, n_kv_heads=2, ratio=ratio, model="theirs").save(snapshot / f"{ratio:g}.json")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path / "hub"


def test_budgets_are_those_of_the_ratio(hub: Path) -> None:
    for options in ({}, {"revision": COMMIT}):
        budgets = Budgets.from_pretrained("org/name", ratio=0.75, cache_dir=hub, local_files_only=True, **options)
        assert (budgets.ratio, budgets.model) == (0.75, "theirs")
    assert Budgets.from_pretrained(hub / "models--org--name" / "snapshots" / COMMIT, ratio=0.5).ratio == 0.5


@pytest.mark.parametrize(
    ("repo", "ratio", "said"),
    [
        ("org/name", 0.7, r"org/name: no budgets at ratio 0\.7; there are 0\.5, 0\.75"),
        ("org/other", 0.5, r"org/other: not found on the hub"),
        ("a/b/c", 0.5, "a/b/c: neither a folder here nor a name on the hub such as org/name"),
    ],
)
def test_what_is_not_there_is_one_line(hub: Path, repo: str, ratio: float, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        Budgets.from_pretrained(repo, ratio=ratio, cache_dir=hub, local_files_only=True)
    assert "\n" not in str(error.value)


def test_a_folder_of_good_budgets_is_uploaded(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    calls: list[Any] = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo, **options: calls.append((repo, options)))
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: calls.append(options) or "address")
    folder = hub / "models--org--name" / "snapshots" / COMMIT
    assert Budgets.push_to_hub(folder, "org/name", private=True) == "address"
    assert calls[0] == ("org/name", {"private": True, "exist_ok": True})
    assert calls[1]["folder_path"] == folder and "README.md" in calls[1]["allow_patterns"]
    (folder / "0.9.json").write_text("{}")
    with pytest.raises(UserError, match=r"0\.9\.json: not a budgets file"):
        Budgets.push_to_hub(folder, "org/name")
    assert len(calls) == 2
