"""Files and folders that appear whole or not at all, and errors that name what was asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from sinmdm.motion.atomic import check_target, filling, replacing


def _tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_takes_the_place_of_another(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    target.write_text("before")
    with replacing(target) as temporary:
        temporary.write_text("after")
        assert target.read_text() == "before"
    assert target.read_text() == "after"
    assert _tree(tmp_path) == ["x.txt"]


def _interrupted(
    opened: AbstractContextManager[Path], act: Callable[[Path], object], error: type[BaseException] = RuntimeError
) -> None:
    with opened as temporary:
        act(temporary)
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_of_a_file_that_fails_nothing_is_left(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error):
        _interrupted(replacing(tmp_path / "x.txt"), lambda temporary: temporary.write_text("half"), error)
    assert _tree(tmp_path) == []


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path) -> None:
    for target, error, said in (
        (tmp_path / "none" / "x.txt", FileNotFoundError, f"{tmp_path}/none/x.txt: there is no folder {tmp_path}/none"),
        (tmp_path, IsADirectoryError, f"{tmp_path}: is a folder, must be the name of a file"),
    ):
        for opened in (check_target, lambda path: replacing(path).__enter__()):
            with pytest.raises(error) as raised:
                opened(target)
            assert str(raised.value) == said
    target = tmp_path / "x.txt"
    with pytest.raises(FileNotFoundError) as raised, replacing(target) as temporary:
        temporary.read_text()
    assert raised.value.filename == str(target)
    with pytest.raises(FileNotFoundError) as raised, replacing(target):
        (tmp_path / "another").read_text()
    assert raised.value.filename == str(tmp_path / "another")
    assert check_target(target) == target


@pytest.mark.parametrize("there", [False, True])
def test_a_folder_is_filled(there: bool, tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "c"
    if there:
        target.mkdir(parents=True)
    with filling(target) as temporary:
        (temporary / "x.txt").touch()
    assert _tree(tmp_path) == ["new", "new/deep", "new/deep/c", "new/deep/c/x.txt"]


@pytest.mark.parametrize("made", ["", "new", "new/deep", "new/deep/c"])
def test_of_a_folder_that_fails_nothing_is_left_but_what_was_there(made: str, tmp_path: Path) -> None:
    (tmp_path / made).mkdir(parents=True, exist_ok=True)
    before = _tree(tmp_path)
    with pytest.raises(RuntimeError):
        _interrupted(filling(tmp_path / "new" / "deep" / "c"), lambda temporary: (temporary / "x.txt").touch())
    assert _tree(tmp_path) == before


def test_folders_that_cannot_be_made_leave_none_above(tmp_path: Path) -> None:
    for target in (tmp_path / "new" / (300 * "a") / "c", tmp_path / "new" / (300 * "a")):
        with pytest.raises(OSError, match="too long"), filling(target):
            pytest.fail("it was made")
        assert _tree(tmp_path) == []


def test_folders_that_others_use_by_now_stay(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        _interrupted(filling(tmp_path / "new" / "deep" / "c"), lambda _: (tmp_path / "new" / "other.txt").touch())
    assert _tree(tmp_path) == ["new", "new/other.txt"]


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").touch()
    for target in (tmp_path, tmp_path / "x.txt"):
        with pytest.raises(FileExistsError, match="exists and is not empty"), filling(target):
            pytest.fail("it was made")
    assert _tree(tmp_path) == ["x.txt"]
