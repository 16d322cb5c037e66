"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; on success it takes `path`'s place, on failure it is removed.

    Raises: as `check_target`, before anything is yielded; OSError where the folder is not writable.
    """
    target = check_target(path)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # whatever made the file, it is as readable as the user's other files
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and str(error.filename) == str(temporary):
            error.filename = str(target)  # which is the one that was asked for
        raise


def check_target(path: str | os.PathLike[str]) -> Path:
    """The path of a file to be written.

    Raises: FileNotFoundError where its folder is missing; IsADirectoryError where it is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target}: is a folder, must be the name of a file")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: there is no folder {target.parent}")
    return target


@contextlib.contextmanager
def filling(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder to write to; on success what it holds is moved to `folder`, on failure it is removed.

    Folders above it that are missing are made, and removed again on failure.
    Raises: FileExistsError where `folder` is a file or holds anything; OSError where it cannot be made.
    """
    target = Path(folder).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target}: exists and is not empty; nothing there is overwritten, choose another folder")
    there = target.exists()  # an empty folder stays the one it is: it may be a shell's, or behind a link
    missing = [above for above in target.parents if not above.exists()]  # the nearest first
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place = target if there else target.parent
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=place))
        yield temporary
        if there:
            for path in sorted(temporary.iterdir()):
                path.rename(target / path.name)
            temporary.rmdir()
        else:
            temporary.chmod(0o777 & ~_umask())
            temporary.rename(target)
    except BaseException:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        for above in missing:
            with contextlib.suppress(OSError):  # it holds something else by now, or was never made
                above.rmdir()
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
