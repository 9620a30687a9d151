"""The journal of a search: one search at a time, and errors that name the file."""

from __future__ import annotations

from pathlib import Path
from threading import Thread

import pytest
from optuna.distributions import FloatDistribution

from baklava.errors import UserError
from baklava.search.study import Study, journal

SPACE = {"x": FloatDistribution(0.0, 1.0)}


def points(study: Study, n: int) -> list[float]:
    found = []
    for _ in range(n):
        trial = study.ask()
        trial.report(abs(trial.params["x"] - 0.3), 1)
        study.finish(trial)
        found.append(trial.params["x"])
    return found


def test_a_second_search_on_the_same_journal_waits_for_the_first_to_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.journal"

    def save(name: str) -> None:
        with journal(path) as storage:
            study = Study(storage, name, SPACE, seed="a")
            points(study, 8)
            study.save({})

    second = Thread(target=save, args=["second"])
    with journal(path) as storage:
        second.start()
        second.join(0.1)
        assert second.is_alive()
        first = Study(storage, "first", SPACE, seed="a")
        points(first, 8)
        first.save({})
    second.join()
    assert "a.journal: waiting while another search" in capfd.readouterr().err
    with journal(path) as storage:
        assert [Study(storage, name, SPACE, seed="a").n_rounds_saved for name in ("first", "second")] == [1, 1]


@pytest.mark.parametrize("content", [b"no journal\n", b'{"op_code": 4}\n', b"[1]\n", b"\xff\xfe\n{}\n"])
def test_a_file_that_is_no_journal_is_one_line_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.journal"
    path.write_bytes(content)
    with (
        pytest.raises(UserError, match=r"a\.journal: not a readable journal of a search \(.*; move it away$"),
        journal(path),
    ):
        pass
    assert path.read_bytes() == content


def test_what_is_asked_depends_on_the_seed_and_on_what_was_found(tmp_path: Path) -> None:
    with journal(tmp_path / "a.journal") as storage:
        one, same, other = (
            Study(storage, name, SPACE, seed=seed) for name, seed in (("1", "a"), ("2", "a"), ("3", "b"))
        )
        found = points(one, 20)
        assert points(same, 20) == found
        assert points(other, 20) != found
        assert len(set(found)) == len(found)


def test_the_sampler_learns(tmp_path: Path) -> None:
    with journal(tmp_path / "a.journal") as storage:
        found = points(Study(storage, "1", SPACE, seed="a"), 40)
    assert sum(abs(x - 0.3) < 0.15 for x in found[20:]) > 9  # 6 by chance


def test_studies_of_another_name_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    for name in ("before", "after", "before"):
        with journal(path) as storage:
            study = Study(storage, name, SPACE, seed="a")
            study.resume(study.n_rounds_saved)
            points(study, 8)
            study.save({"seconds": 1.5})
    with journal(path) as storage:
        counts = [Study(storage, name, SPACE, seed="a").n_rounds_saved for name in ("before", "after")]
    assert counts == [2, 1]
