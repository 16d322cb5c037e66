"""The page as text: one file that asks for nothing, whose data are the scene's, whatever things are called."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from sinmdm.cli import main
from sinmdm.motion import walker
from sinmdm.view import Character, colours, load_characters, set_out
from sinmdm.view import page as page_module
from sinmdm.view.page import page, write_page


class Structure(HTMLParser):
    """Tags with their attributes, and the text inside each kind of tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open = tag
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open:
            self.texts[self._open][-1] += data


def data_of(text):
    """The scene in a page, its arrays decoded: each character's positions (frames, J, 3) and given (frames, J)."""
    scene = json.loads(Structure(text).texts["script"][0])
    for one in scene["characters"]:
        joints = len(scene["skeletons"][one["skeleton"]]["names"])
        roots = np.frombuffer(base64.b64decode(one["roots"]), "<f4").reshape(one["frames"], 1, 3)
        offsets = np.frombuffer(base64.b64decode(one["offsets"]), "<i2").reshape(one["frames"], joints, 3)
        one["positions"] = roots + one["scale"] * offsets.astype(np.float64)
        if isinstance(one["given"], str):
            bits = np.unpackbits(np.frombuffer(base64.b64decode(one["given"]), np.uint8), bitorder="little")
            one["given"] = bits[: one["frames"] * joints].reshape(one["frames"], joints).astype(bool)
    return scene


@pytest.fixture
def scene(person):
    given = np.zeros((9, 4), dtype=bool)
    given[2:5, 1] = given[0, 0] = given[8, 3] = True
    all_given = np.ones((7, 4), dtype=bool)
    return set_out(
        [[person("a", frames=9, given=given)], [person("b", size=2, given=all_given)], [person("c", fps=60)]]
    )


def test_what_is_in_the_page_is_the_scene(scene):
    data = data_of(page(scene))
    assert len(data["skeletons"]) == 1
    assert data["skeletons"][0] == {"names": ["Hips", "Left", "Right", "Foot"], "parents": [-1, 0, 0, 2]}
    for one, stored in zip(scene.characters, data["characters"], strict=True):
        assert stored["label"] == one.label
        assert stored["frameTime"] == one.frame_time
        offsets = one.positions - one.positions[:, :1]
        # Half a step of an int16, and the rounding of the float32 it is added to and taken from.
        bound = np.abs(offsets).max() / 65534 + 2 * np.spacing(np.abs(one.positions).max())
        assert np.abs(stored["positions"] - one.positions).max() <= bound
        np.testing.assert_array_equal(stored["positions"][:, 0], one.positions[:, 0])
        np.testing.assert_allclose(stored["lengths"], one.bone_lengths)
    a, b, c = (stored["given"] for stored in data["characters"])
    np.testing.assert_array_equal(a, scene.characters[0].given)
    assert b is True
    assert c is None


def test_a_motion_far_from_where_it_began_stays_as_exact():
    """Joints are stored as seen from the root: a walk of a thousand lengths costs them nothing."""
    clip = walker(seconds=1)
    positions = clip.positions().numpy()
    far = positions + np.linspace(0, 1000, len(positions))[:, None, None] * [1, 0, 0]
    one = Character("far", clip.names, clip.parents, far.astype(np.float32), clip.frame_time)
    stored = data_of(page(set_out([[one]], together=True)))["characters"][0]["positions"]
    own = (stored - stored[:, :1]) - (one.positions - one.positions[:, :1])
    assert np.abs(own).max() <= np.abs(positions - positions[:, :1]).max() / 65534 + np.spacing(np.float32(1000))


def test_a_lone_joint_can_be_shown():
    one = Character("dot", ("Hips",), (-1,), np.ones((2, 1, 3), dtype=np.float32), 0.1)
    stored = data_of(page(set_out([[one]], together=True)))["characters"][0]
    np.testing.assert_array_equal(stored["positions"], one.positions)


def test_nothing_is_asked_of_the_network(scene):
    text = page(scene)
    structure = Structure(text)
    assert re.findall(r"https?:|//[\w.-]+\.\w+/|@import|url\(", text) == []
    for tag, attributes in structure.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert attributes.get(name, "data:,") == "data:,", (tag, attributes)
    policy = next(a["content"] for _, a in structure.tags if a.get("http-equiv") == "Content-Security-Policy")
    style, script = structure.texts["style"][0], structure.texts["script"][1]

    def hashed(part: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"

    assert policy == (
        f"default-src 'none'; img-src data:; script-src {hashed(script)}; style-src {hashed(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    assert colours.GIVEN in style
    assert "@@" not in text


def test_names_and_titles_are_only_text(person, results, nasty):
    plain = Structure(page(set_out([[person("a")], [person("b")]]), title="a, b"))
    joints = load_characters([results(joint=nasty)])
    labelled = set_out([[person(nasty), person("@@script@@")]])
    for scene, title in ((joints, nasty), (labelled, None)):
        text = page(scene, title=title)
        structure = Structure(text)
        assert [tag for tag, _ in structure.tags] == [tag for tag, _ in plain.tags]
        assert structure.texts["h1"] == structure.texts["title"] == [title or f"{nasty}, @@script@@"]
        assert nasty not in text
    assert data_of(page(joints))["skeletons"][0]["names"][2] == nasty
    assert [one["label"] for one in data_of(page(labelled))["characters"]] == [nasty, "@@script@@"]


def test_the_title_is_the_labels(person):
    def title(count: int) -> str:
        return Structure(page(set_out([[person(f"p{k}")] for k in range(count)]))).texts["title"][0]

    assert title(1) == "p0"
    assert title(3) == "p0, p1, p2"
    assert title(5) == "p0, p1, p2 and 2 more"


def test_whole_or_not_at_all(scene, tmp_path, monkeypatch):
    write_page(tmp_path / "page.html", scene, title="mine")
    before = (tmp_path / "page.html").read_bytes()
    assert before.decode("utf-8") == page(scene, title="mine")
    with pytest.raises(OSError, match="missing"):
        write_page(tmp_path / "missing" / "page.html", scene)
    monkeypatch.setattr(page_module, "_MOST", 100)
    with pytest.raises(ValueError, match=r"would make a page of 0 MB, must be at most 0 MB: show fewer"):
        write_page(tmp_path / "page.html", scene)
    assert (tmp_path / "page.html").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_the_command(tmp_path, capsys, results):
    walker(seconds=1).write(tmp_path / "clip.bvh")
    out = tmp_path / "page.html"
    files = [str(results().parent), "--given", str(tmp_path / "clip.bvh")]
    assert main(["view", *files, "-o", str(out), "--title", "what came out"]) == 0
    assert capsys.readouterr().out == f"3 characters, 1.0 s:\n  {out}\n"
    text = out.read_text(encoding="utf-8")
    assert Structure(text).texts["title"] == ["what came out"]
    data = data_of(text)
    assert [one["label"] for one in data["characters"]] == ["clip", "first", "second"]
    assert [one["given"] for one in data["characters"]] == [True, None, None]
    assert not data["together"]
    assert main(["view", *files, "-o", str(out), "--together"]) == 0
    assert data_of(out.read_text(encoding="utf-8"))["together"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to write: give -o PAGE.html, --video FILE or --strip FILE"),
        (["-o", "x.png"], "-o is x.png, must end in .html or .htm"),
        (["-o", "x.html", "--video", "x.avi"], "--video is x.avi, must end in .mp4 or .gif"),
        (["-o", "x.html", "--strip", "x.jpg"], "--strip is x.jpg, must end in .png"),
        (["--strip", "x.png", "--title", "t"], "--title is the page's: it needs -o PAGE.html"),
        (["-o", "x.html", "--given", "none.bvh"], "none.bvh"),
        (["-o", "x.html"], "there is no file to show"),
    ],
)
def test_the_command_refuses(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["view", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_installation_has_what_the_page_is_made_of():
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")
    folder = Path(page_module.__file__).parent
    setuptools = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["setuptools"]
    packaged = {path for pattern in setuptools["package-data"]["sinmdm.view"] for path in folder.glob(pattern)}
    assert packaged == {path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}
