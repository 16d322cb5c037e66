"""Motion clips of any skeleton: files, features a network can learn, a built-in clip, pictures."""

from .bvh import BVHError
from .bvh_general import GeneralLayout
from .clip import Clip
from .features import ArrayLayout, Layout, Motion, SkeletonLayout
from .files import MotionWriter, read_motion, write_motion, writing_motion
from .layouts import KINDS, layout_for, layout_from_dict, thinned_for
from .mixamo import MixamoLayout
from .normalizer import Normalizer
from .published import REPRESENTATIONS
from .results import RESULTS, Results, writing_results
from .skeleton import Skeleton
from .strip import draw_strip
from .walker import walker

__all__ = [
    "KINDS",
    "REPRESENTATIONS",
    "RESULTS",
    "ArrayLayout",
    "BVHError",
    "Clip",
    "GeneralLayout",
    "Layout",
    "MixamoLayout",
    "Motion",
    "MotionWriter",
    "Normalizer",
    "Results",
    "Skeleton",
    "SkeletonLayout",
    "draw_strip",
    "layout_for",
    "layout_from_dict",
    "read_motion",
    "thinned_for",
    "walker",
    "write_motion",
    "writing_motion",
    "writing_results",
]
