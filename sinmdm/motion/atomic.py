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

    Raises: OSError where the folder is missing or not writable, or `path` is a folder.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # whatever made the file, it is as readable as the user's other files
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def filling(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder to write to; on success what it holds is moved to `folder`, on failure it is removed.

    Raises: FileExistsError where `folder` is a file or holds anything; OSError where it cannot be made.
    """
    target = Path(folder).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target}: exists and is not empty; nothing there is overwritten, choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    there = target.exists()  # an empty folder stays the one it is: it may be a shell's, or behind a link
    place = target if there else target.parent
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=place))
    try:
        yield temporary
        if there:
            for path in sorted(temporary.iterdir()):
                path.rename(target / path.name)
            temporary.rmdir()
        else:
            temporary.chmod(0o777 & ~_umask())
            temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
