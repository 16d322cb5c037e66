"""Editing with a trained run: in-betweening, expansion, body parts, keyframes, ways, style, loops, joining.

edit = sinmdm.editing.in_between(run, generate=[(100, 200)])
motions = sinmdm.editing.apply(run, edit, n=4, seed=0)
"""

from .applications import compose, expand, follow, harmonise, in_between, join, keyframes, loop, way_of
from .edit import Edit, EditError, apply
from .joints import HALVES, select_joints

__all__ = [
    "HALVES",
    "Edit",
    "EditError",
    "apply",
    "compose",
    "expand",
    "follow",
    "harmonise",
    "in_between",
    "join",
    "keyframes",
    "loop",
    "select_joints",
    "way_of",
]
