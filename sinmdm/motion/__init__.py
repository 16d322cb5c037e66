"""Motion clips of any skeleton: files, features a network can learn, a built-in clip, pictures."""

from .bvh import BVHError
from .clip import Clip
from .features import ArrayLayout, Layout, Motion, SkeletonLayout, layout_for, layout_from_dict
from .files import MotionWriter, read_motion, write_motion, writing_motion
from .normalizer import Normalizer
from .skeleton import Skeleton
from .strip import draw_strip
from .walker import walker

__all__ = [
    "ArrayLayout",
    "BVHError",
    "Clip",
    "Layout",
    "Motion",
    "MotionWriter",
    "Normalizer",
    "Skeleton",
    "SkeletonLayout",
    "draw_strip",
    "layout_for",
    "layout_from_dict",
    "read_motion",
    "walker",
    "write_motion",
    "writing_motion",
]
