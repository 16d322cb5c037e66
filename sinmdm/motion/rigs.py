"""The classes of skeletons that the published mixamo loader knows, and how it finds a clip's (Raab et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rig:
    """A class of skeletons.

    joints: what is taken of a skeleton, in the order of the features. contacts: which of them can touch the ground.
    slow: a joint in contact moves less than this from frame to frame, in scaled units.
    scale: what the file's units are multiplied by, beside what its size asks for.
    """

    name: str
    joints: tuple[str, ...]
    contacts: tuple[str, ...]
    slow: float = 0.018
    scale: float = 1.0


def _numbered(stem: str, first: int, last: int, end: bool = False) -> tuple[str, ...]:
    """stem_01, stem_02, ... and, where the bone has an end, stem_02_end."""
    names = tuple(f"{stem}_{number:02d}" for number in range(first, last + 1))
    return (*names, f"{names[-1]}_end") if end else names


def _containing(names: Sequence[str], *parts: str) -> tuple[str, ...]:
    return tuple(name for name in names if any(part in name for part in parts))


# What sinmdm.evaluation judges of a person.
MIXAMO_JOINTS = (
    "Hips",
    *(f"{side}{part}" for side in ("Left", "Right") for part in ("UpLeg", "Leg", "Foot", "ToeBase", "Toe_End")),
    *("Spine", "Spine1", "Spine2", "Neck", "Head"),
    *(f"{side}{part}" for side in ("Left", "Right") for part in ("Shoulder", "Arm", "ForeArm", "Hand")),
)

_ELEPHANT_JOINTS = (
    *("Hips", "Bip01_Pelvis", *_numbered("BN_Tail", 1, 4), "Bip01_Spine"),
    *(f"Bip01_{side}_{part}" for side in "RL" for part in ("Thigh", "Calf", "Foot", "Toe0")),
    *("Bip01_Spine1", "Bip01_Spine2", "Bip01_Neck", "Bip01_Head", "BN_Eyebrow_L", "BN_Eyebrow_R"),
    *(*_numbered("BN_Ear_L", 1, 2), "BN_Mouth_01", *_numbered("BN_Ear_R", 1, 2), *_numbered("BN_Nose", 1, 6)),
    *(f"Bip01_{side}_{part}" for side in "RL" for part in ("Clavicle", "UpperArm", "Forearm", "Hand")),
)


def _crab_legs(side: str) -> tuple[str, ...]:
    first = _numbered(f"DEF_BN_leg_{side}", 1, 5, end=True)
    return (*first, f"DEF_BN_leg_{side}_06", *_numbered(f"DEF_BN_Leg_{side}", 7, 10, end=True))


_CRAB_JOINTS = (
    *("ORG_Hips", "ORG_BN_Bip01_Pelvis"),
    *(name for side in "LR" for name in _numbered(f"DEF_BN_Eye_{side}", 1, 3, end=True)),
    *(name for side in "LR" for name in _numbered(f"DEF_BN_Leg_{side}", 11, 15, end=True)),
    *(*_crab_legs("L"), *_crab_legs("R"), "DEF_BN_Bip01_Pelvis", "DEF_BN_Bip01_Pelvis_end"),
    *(name for side in "LR" for name in _numbered(f"DEF_BN_Arm_{side}", 1, 3, end=True)),
)


def _xia_leg(first: str, side: str) -> tuple[str, ...]:
    return (f"{first}HipJoint", *(f"{side}{part}" for part in ("UpLeg", "Leg", "Foot", "ToeBase")))


def _xia_arm(first: str, side: str) -> tuple[str, ...]:
    parts = ("Shoulder", "Arm", "ForeArm", "Hand", "FingerBase", "HandIndex1")
    return (*(f"{side}{part}" for part in parts), f"{first}Thumb")


_XIA_JOINTS = (
    *("Hips", *_xia_leg("L", "Left"), *_xia_leg("R", "Right")),
    *("LowerBack", "Spine", "Spine1", "Neck", "Neck1", "Head"),
    *(*_xia_arm("L", "Left"), *_xia_arm("R", "Right")),
)

RIGS = (
    Rig("Mixamo", MIXAMO_JOINTS, ("LeftToe_End", "RightToe_End", "LeftToeBase", "RightToeBase")),
    Rig("Elephant", _ELEPHANT_JOINTS, _containing(_ELEPHANT_JOINTS, "Hand", "Toe", "Foot")),
    Rig("Crab_dance", _CRAB_JOINTS, _containing(_CRAB_JOINTS, "05_end", "10_end", "15_end"), slow=0.006),
    Rig("Xia", _XIA_JOINTS, ("LeftToeBase", "RightToeBase"), scale=0.14),
)


def find_rig(names: Sequence[str]) -> tuple[Rig, tuple[int, ...]]:
    """The rig of a skeleton with these joint names, and for each of the rig's joints its index among them.

    Names count from behind their first ':'. The rig is the one with the most joints of exactly these names, the earlier
    one of equals; its joint is the first whose name contains the rig's name for it, so that suffixes and prefixes of
    other kinds do no harm and a joint may stand for two.
    Raises: ValueError where the rig has joints that the skeleton lacks, naming them, or another root.
    """
    bare = [name.split(":", 1)[-1] for name in names]
    rig = max(RIGS, key=lambda rig: len(set(rig.joints) & set(bare)))
    found = {joint: next((index for index, name in enumerate(bare) if joint in name), None) for joint in rig.joints}
    missing = [joint for joint, index in found.items() if index is None]
    if missing:
        raise ValueError(
            f"the skeleton must be of the class {', '.join(rig.name for rig in RIGS[:-1])} or {RIGS[-1].name}; the "
            f"nearest is {rig.name}, of whose {len(rig.joints)} joints it lacks {', '.join(missing)}"
        )
    if found[rig.joints[0]] != 0:
        raise ValueError(f"the skeleton's root is {names[0]!r}; in the class {rig.name} it must be {rig.joints[0]!r}")
    return rig, tuple(index for index in found.values() if index is not None)
