"""The demo: the built-in walker in, new motions and a picture of them out."""

from __future__ import annotations

from pathlib import Path

from .motion import Clip, layout_for, walker
from .motion.atomic import filling
from .pictures import STRIP, write_motions_strip
from .run import load
from .training import train
from .view import load_characters
from .view.page import write_page

PAGE = "page.html"


def free_folder(name: str = "demo") -> Path:
    """`name`, or the first of `name`-2, `name`-3, ... that does not exist."""
    number = 1
    while Path(name if number == 1 else f"{name}-{number}").exists():
        number += 1
    return Path(name if number == 1 else f"{name}-{number}")


def demo(out: Path, *, minutes: float, n: int = 3, seed: int = 0, progress: bool = True) -> list[Path]:
    """Train on the built-in clip, sample `n` motions of twice its length, and draw them beside it.

    Leaves in `out`: the clip (walker.bvh), the run (run/), the samples (sample00.bvh, ...), strip.png, and page.html,
    which shows them moving. Returns the files to look at. Raises FileExistsError where the folder holds anything.
    """
    clip = walker(seed=seed)
    given, layout = {"the clip": clip}, layout_for(clip)
    with filling(out) as folder:
        clip.write(folder / "walker.bvh")
        write_motions_strip(folder / STRIP, layout, given, {})  # what drawing lacks shows before the training
        train(clip, folder / "run", preset="small", minutes=minutes, seed=seed, fps=None, progress=progress)
        samples = load(folder / "run").sample(2 * len(clip), n, seed=seed)
        generated = {}
        for index, sample in enumerate(samples):
            assert isinstance(sample, Clip)
            sample.write(folder / f"sample{index:02d}.bvh")
            generated[f"generated {index}"] = sample
        write_motions_strip(folder / STRIP, layout, given, generated)
        files = [folder / "walker.bvh", *(folder / f"sample{index:02d}.bvh" for index in range(n))]
        write_page(folder / PAGE, load_characters(files, given=files[:1]), title="sinmdm demo")
    return [*(out / file.name for file in files), out / STRIP, out / PAGE]
