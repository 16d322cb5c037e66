"""Motion clips of any skeleton: files, features a network can learn, a built-in clip."""

from .bvh import BVHError
from .bvh_general import GeneralLayout
from .clip import Clip
from .features import ArrayLayout, Layout, Motion, SkeletonLayout
from .files import MotionWriter, read_motion, write_motion, writing_motion
from .humanml import HumanMLLayout, read_humanml, read_statistics, write_humanml
from .layouts import KINDS, layout_for, layout_from_dict, thinned_for
from .mixamo import MixamoLayout
from .normalizer import Normalizer
from .published import REPRESENTATIONS
from .results import RESULTS, Results, writing_results
from .skeleton import Skeleton
from .walker import walker

__all__ = [
    "KINDS",
    "REPRESENTATIONS",
    "RESULTS",
    "ArrayLayout",
    "BVHError",
    "Clip",
    "GeneralLayout",
    "HumanMLLayout",
    "Layout",
    "MixamoLayout",
    "Motion",
    "MotionWriter",
    "Normalizer",
    "Results",
    "Skeleton",
    "SkeletonLayout",
    "layout_for",
    "layout_from_dict",
    "read_humanml",
    "read_motion",
    "read_statistics",
    "thinned_for",
    "walker",
    "write_humanml",
    "write_motion",
    "writing_motion",
    "writing_results",
]
