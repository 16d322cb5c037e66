"""Looking at motions: skeletons on a page, as a video, as a strip of poses."""

from .scene import Character, Scene, load_characters, set_out

__all__ = ["Character", "Scene", "load_characters", "set_out"]
