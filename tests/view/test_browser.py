"""The page in a browser: what it draws, obeys and measures. Headless Chromium, graphics in software."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from shared_data import SHARED_DATA
from view.browser import CHROMIUM, Browser

from sinmdm.motion import walker
from sinmdm.view import Character, colours, load_characters, set_out
from sinmdm.view.page import write_page

image = pytest.importorskip("matplotlib.image")
matplotlib_colors = pytest.importorskip("matplotlib.colors")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")

SIZE = (960, 600)
BOTH = pytest.mark.parametrize("renderer", ["software", "webgl"])  # webgl: in software too, where there is no GPU
STAGE = (slice(105, 520), slice(None))  # the rows of a screenshot between legend and controls


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile"), size=SIZE) as one:
        yield one


@pytest.fixture
def renderer():
    """What draws, where a test does not say BOTH."""
    return "software"


@pytest.fixture
def show(browser, renderer, tmp_path):
    """Opens a scene in the browser, stopped at a time; afterwards nothing may have gone wrong or been fetched."""
    page = tmp_path / "page.html"

    def opened(scene, seconds=0.0, **options):
        write_page(page, scene, **options)
        browser.said.clear()
        browser.requested.clear()
        browser.open(page, renderer)
        assert browser.run("sinmdm.error") is None
        assert browser.run("sinmdm.ready")
        assert state(browser)["renderer"].lower() == renderer
        at(browser, seconds)
        return browser

    yield opened
    assert browser.said == []
    assert {address for address in browser.requested if not address.startswith("data:")} <= {
        page.as_uri(),
        "about:blank",
    }


def at(browser, seconds):
    browser.run(f"sinmdm.seek({seconds})")
    browser.next_frame()


def stage(browser):
    """The picture without legend and controls: (rows, columns, 3) from 0 to 1."""
    return image.imread(io.BytesIO(browser.screenshot()))[..., :3][STAGE]


def pixels(picture, colour):
    """How many pixels have the colour's hue, lit or in shade; text, lines and shadows are too grey to have one."""
    hue = matplotlib_colors.rgb_to_hsv(matplotlib_colors.to_rgb(colour))[0]
    seen = matplotlib_colors.rgb_to_hsv(picture)
    return int(((np.abs(seen[..., 0] - hue) < 0.03) & (seen[..., 1] > 0.6)).sum())


def animal(label="animal", seconds=2.0, given=None, fps=30.0):
    clip = walker(seconds=seconds, fps=fps)
    positions = clip.positions().numpy().astype(np.float32)
    if given is not None:
        given = np.broadcast_to(given, positions.shape[:2]).copy()
    return Character(label, clip.names, clip.parents, positions, clip.frame_time, given)


def press(browser, key, modifiers=0):
    keys = {" ": ("Space", " "), "ArrowRight": ("ArrowRight", ""), "ArrowLeft": ("ArrowLeft", ""),
            "Escape": ("Escape", "")}  # fmt: skip
    code, text = keys.get(key, (f"Key{key.upper()}", key))
    event = {"key": key, "code": code, "modifiers": modifiers}
    browser.call("Input.dispatchKeyEvent", type="keyDown", text=text, **event)
    browser.call("Input.dispatchKeyEvent", type="keyUp", **event)


def drag(browser, start, end, button="left"):
    buttons = {"left": 1, "right": 2}[button]
    middle = [(a + b) / 2 for a, b in zip(start, end, strict=True)]
    for kind, place in (("mousePressed", start), ("mouseMoved", middle), ("mouseMoved", end), ("mouseReleased", end)):
        browser.call(
            "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button=button, buttons=buttons, clickCount=1
        )


def state(browser):
    return browser.run("sinmdm.state()")


@BOTH
def test_it_draws_given_and_generated_in_their_colours(show):
    both = stage(show(set_out([[animal("given", given=True)], [animal("made")]])))
    assert pixels(both, colours.GIVEN) > 300
    assert pixels(both, colours.GENERATED) > 300
    # The given one stands left of the other.
    half = both.shape[1] // 2
    assert pixels(both[:, :half], colours.GENERATED) == pixels(both[:, half:], colours.GIVEN) == 0
    made = stage(show(set_out([[animal("made")]])))
    assert pixels(made, colours.GIVEN) == 0
    assert pixels(made, colours.GENERATED) > 300


@BOTH
def test_single_frames_and_joints_are_coloured(show):
    given = np.zeros((60, 1), dtype=bool)
    given[20:40] = True
    browser = show(set_out([[animal(given=given)]]))
    browser.run("document.getElementById('paths').click()")  # it is blue where it was given, at all times
    at(browser, 0.3)
    assert pixels(stage(browser), colours.GIVEN) == 0
    at(browser, 1.0)
    assert pixels(stage(browser), colours.GENERATED) == 0
    assert pixels(stage(browser), colours.GIVEN) > 300
    assert browser.run("document.querySelectorAll('.given-span').length") == 1
    head = np.arange(40) == 2
    browser = show(set_out([[animal(given=head)]]))
    picture = stage(browser)
    assert 0 < pixels(picture, colours.GIVEN) < 0.3 * pixels(picture, colours.GENERATED)


def test_poses_are_those_of_the_scene(show, person):
    given = np.zeros((7, 4), dtype=bool)
    given[3, 1:3] = True
    scene = set_out([[person(fps=10, given=given)], [person(fps=25, frames=12)], [animal(seconds=1.0)]])
    browser = show(scene)
    for seconds in (0.0, 0.31, 0.62, 0.69, 0.93, 0.999):
        for loop in (True, False):
            if state(browser)["on"]["shorter"] != loop:
                browser.run("document.getElementById('shorter').click()")
            at(browser, seconds)
            for index, one in enumerate(scene.characters):
                pose, was = one.at(seconds, loop=loop)
                shown = np.array(browser.run(f"sinmdm.pose({index})")).reshape(-1, 4)
                # Half a step of an int16, and float32's rounding of positions, each a few times.
                bound = np.ptp(one.positions, axis=(0, 1)).max() / 65534 + 8 * np.spacing(np.abs(one.positions).max())
                assert np.abs(shown[:, :3] - pose).max() <= bound, (index, seconds, loop)
                np.testing.assert_array_equal(shown[:, 3], was)


@BOTH
def test_time_moves_the_picture(show):
    browser = show(set_out([[animal()]]))
    first = stage(browser)
    at(browser, 1.0)
    assert (np.abs(stage(browser) - first).max(axis=-1) > 0.2).sum() > 300
    at(browser, 0.0)
    np.testing.assert_array_equal(stage(browser), first)
    press(browser, " ")
    assert state(browser)["playing"]
    time.sleep(0.5)
    browser.next_frame()
    press(browser, " ")
    stopped = state(browser)
    assert not stopped["playing"]
    assert 0 < stopped["now"] < 2
    times = browser.run("sinmdm.frameTimes()")
    assert times["count"] >= 2
    assert 0 < times["median"] <= times["p95"]


def test_keys(show):
    browser = show(set_out([[animal()], [animal("short", seconds=1.0)]]), 0.5)
    press(browser, "ArrowRight")
    assert state(browser)["frames"] == pytest.approx([16, 16])
    press(browser, "ArrowLeft")
    press(browser, "ArrowLeft")
    assert state(browser)["frames"] == pytest.approx([14, 14])
    press(browser, "ArrowRight", modifiers=8)  # shift
    assert state(browser)["frames"] == pytest.approx([24, 24])
    assert state(browser)["on"] == {
        "labels": True, "paths": True, "grid": True, "follow": False, "loop": True, "shorter": True
    }  # fmt: skip
    pictures = [stage(browser)]
    for key, name in (("l", "labels"), ("p", "paths"), ("g", "grid")):
        press(browser, key)
        browser.next_frame()
        assert not state(browser)["on"][name]
        pictures.append(stage(browser))
        assert (pictures[-1] != pictures[-2]).any()
    press(browser, "f")
    assert state(browser)["on"]["follow"]


def test_the_end(show):
    browser = show(set_out([[animal()]]), 1.9)
    browser.run("document.getElementById('loop').click()")
    press(browser, " ")
    deadline = time.monotonic() + 60
    while state(browser)["playing"] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert state(browser)["frames"] == [59]
    assert state(browser)["now"] == pytest.approx(2)
    press(browser, "ArrowRight")
    assert state(browser)["frames"] == pytest.approx([59])
    browser.run("document.getElementById('loop').click()")
    press(browser, "ArrowRight")
    assert state(browser)["now"] == 0


def test_mouse_and_touch(show):
    browser = show(set_out([[animal()]]))
    start = state(browser)
    drag(browser, (600, 300), (700, 330))
    turned = state(browser)
    assert turned["yaw"] != start["yaw"]
    assert turned["target"] == start["target"]
    drag(browser, (600, 300), (700, 330), button="right")
    moved = state(browser)
    assert moved["yaw"] == turned["yaw"]
    assert moved["target"] != start["target"]
    browser.call("Input.dispatchMouseEvent", type="mouseWheel", x=500, y=300, deltaX=0, deltaY=-200)
    assert state(browser)["distance"] < moved["distance"]
    near = state(browser)["distance"]
    for kind, points in (
        ("touchStart", [(400, 300), (500, 300)]), ("touchMove", [(350, 300), (550, 300)]), ("touchEnd", [])
    ):  # fmt: skip
        touches = [{"x": x, "y": y, "id": k} for k, (x, y) in enumerate(points)]
        browser.call("Input.dispatchTouchEvent", type=kind, touchPoints=touches)
    assert state(browser)["distance"] == pytest.approx(near / 2, rel=0.1)
    browser.run("document.getElementById('reset').click()")
    reset = state(browser)
    assert (reset["yaw"], reset["distance"]) == (start["yaw"], pytest.approx(start["distance"]))
    assert reset["target"] == pytest.approx(start["target"], abs=1e-6)


def test_a_character_can_be_named_picked_and_followed(show):
    scene = set_out([[animal("left")], [animal("right")]])
    browser = show(scene)
    tail = scene.characters[1].names.index("Tail5")
    place = browser.run("sinmdm.place({}, {}, {})".format(*scene.characters[1].positions[0, tail].tolist()))
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    browser.next_frame()
    assert browser.run("document.getElementById('tip').textContent") == "right · Tail5"
    drag(browser, place, place)
    browser.next_frame()
    assert state(browser)["focus"] == "right"
    np.testing.assert_allclose(state(browser)["target"], scene.characters[1].positions[0, 0], atol=1e-4)
    at(browser, 1.0)
    np.testing.assert_allclose(state(browser)["target"], scene.characters[1].at(1.0)[0][0], atol=1e-4)
    press(browser, "Escape")
    assert (state(browser)["focus"], state(browser)["on"]["follow"]) == (None, False)
    press(browser, "f")
    assert state(browser)["on"]["follow"]
    drag(browser, (20, 500), (20, 500))  # a click on nothing
    assert (state(browser)["focus"], state(browser)["on"]["follow"]) == (None, False)


def test_names_are_not_obeyed(show, person, nasty):
    one = person(nasty)
    scene = set_out([[Character(nasty, ("Hips", nasty, nasty, nasty), one.parents, one.positions, 0.1)]])
    browser = show(scene, title=nasty)
    place = browser.run("sinmdm.place({}, {}, {})".format(*scene.characters[0].positions[0, 3].tolist()))
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    browser.next_frame()
    assert browser.run("document.getElementById('tip').textContent") == f"{nasty} · {nasty}"
    assert browser.run("document.querySelector('h1').textContent") == nasty
    assert browser.run("document.title").split() == nasty.split()  # a title's white space is shortened
    assert browser.run("document.querySelectorAll('img, [onerror]').length") == 0
    assert browser.run("document.querySelectorAll('script').length") == 1  # the data are taken out


@BOTH
def test_dark_and_light(show):
    browser = show(set_out([[animal("given", given=True)], [animal()]]))
    light = stage(browser)
    browser.run("document.getElementById('theme').click()")
    browser.next_frame()
    dark = stage(browser)
    assert np.median(light) > 0.9
    assert np.median(dark) < 0.15
    for colour in (colours.GIVEN, colours.GENERATED):
        assert pixels(dark, colour) > 100  # lighter ones of much the same hue


@pytest.mark.parametrize("renderer", ["webgl"])
def test_a_lost_context_comes_back(show):
    browser = show(set_out([[animal()]]))
    before = stage(browser)
    browser.run(
        """new Promise(done => {
            const stage = document.getElementById("stage"), gl = stage.getContext("webgl2");
            const context = gl.getExtension("WEBGL_lose_context");
            stage.addEventListener("webglcontextlost", () => setTimeout(() => context.restoreContext()));
            stage.addEventListener("webglcontextrestored", () => done(1));
            context.loseContext();
        })"""
    )
    browser.next_frame()
    np.testing.assert_array_equal(stage(browser), before)
    browser.said.clear()  # the browser warns that a context was lost, as it was


def test_without_webgl_the_page_is_drawn_in_software(tmp_path):
    write_page(tmp_path / "page.html", set_out([[animal()]]))
    with Browser(tmp_path / "profile", "--disable-gpu", "--disable-3d-apis", size=SIZE) as browser:
        browser.open(tmp_path / "page.html")
        assert state(browser)["renderer"] == "software"
        at(browser, 0.0)
        assert pixels(stage(browser), colours.GENERATED) > 300
        browser.open(tmp_path / "page.html", "webgl")
        assert "there is no WebGL 2" in browser.run("sinmdm.error")
        assert "there is no WebGL 2" in browser.run("document.getElementById('trouble').innerText")
        assert browser.run("document.getElementById('about').textContent") == "1 character · 2.0 s"
        assert browser.run("getComputedStyle(document.querySelector('footer')).display") == "none"


def test_webgl_in_software_is_not_chosen(browser, tmp_path):
    write_page(tmp_path / "page.html", set_out([[animal()]]))
    browser.open(tmp_path / "page.html")
    assert state(browser)["renderer"] == "software"


def bar(label, start, end, given=False):
    """One bone that stands still."""
    positions = np.broadcast_to(np.array([start, end], dtype=np.float32), (10, 2, 3))
    return Character(label, ("A", "B"), (-1, 0), positions, 0.1, np.full((10, 2), given))


def place(browser, point):
    """Where a point is seen: column and row of a screenshot's stage."""
    x, y = browser.run("sinmdm.place({}, {}, {})".format(*map(float, point)))
    return np.array([x, y - STAGE[0].start])


def without(browser, *names):
    for name in names:
        if state(browser)["on"][name]:
            browser.run(f"document.getElementById('{name}').click()")
    browser.next_frame()


@BOTH
@pytest.mark.parametrize("half", [4, 6])  # shorter and longer than the other: long bones may be drawn first
def test_near_hides_far(show, half):
    """One bone passes behind another, though most of it is nearer: neither any order of the bones is right alone."""
    upright = [(0, -half, 0), (0, half, 0)]
    slanting = [(-2, 0, -4), (4, 0, 5)]
    both = [bar("upright", *upright, given=True), bar("slanting", *slanting)]
    browser = show(set_out([both], together=True))
    without(browser, "labels", "paths", "grid")
    a, b, c, d = (place(browser, point) for point in (*upright, *slanting))
    part, _ = np.linalg.solve(np.stack([b - a, c - d], axis=1), c - a)
    column, row = np.rint(a + part * (b - a)).astype(int)
    picture = stage(browser)
    assert pixels(picture[row - 1 : row + 2, column - 1 : column + 2], colours.GIVEN) == 9
    assert pixels(picture, colours.GENERATED) > 300


@BOTH
def test_joints_are_wider_than_their_bones(show):
    browser = show(set_out([[bar("pole", (0, 0, 0), (0, 2, 0))]]))
    without(browser, "labels", "paths", "grid")
    picture = stage(browser)

    def width(height):
        column, row = np.rint(place(browser, (0, height, 0))).astype(int)
        return pixels(picture[row : row + 1, column - 30 : column + 30], colours.GENERATED)

    assert 0 < width(1.7) < width(2.0)


@BOTH
def test_shadows_fall_on_the_ground(show):
    browser = show(set_out([[animal()]]))
    without(browser, "labels", "paths", "grid")
    picture = stage(browser)
    grey = (np.ptp(picture, axis=-1) < 0.03) & (picture.max(axis=-1) < 0.93)
    assert grey.sum() > 300
    assert np.abs(np.argwhere(grey)[:, 1].mean() - place(browser, (0, 0, 0))[0]) < 200
    assert picture[~grey].min(axis=-1).max() > 0.93  # the page itself is not in shadow


@BOTH
def test_labels_stand_over_their_characters(show):
    scene = set_out([[animal("left")], [animal("right")]])
    browser = show(scene)
    without(browser, "paths", "grid")
    written = stage(browser)
    without(browser, "labels")
    changed = np.abs(written - stage(browser)).max(axis=-1) > 0.2
    for one in scene.characters:
        column, row = np.rint(place(browser, one.positions[0, 0])).astype(int)
        assert changed[:row, column - 40 : column + 40].sum() > 20
        changed[:row, column - 40 : column + 40] = False
    assert not changed.any()


@BOTH
def test_paths_pale_where_time_has_not_come(show):
    browser = show(set_out([[animal()]]))
    strengths = []
    for seconds in (0.0, 1.99):
        if not state(browser)["on"]["paths"]:
            browser.run("document.getElementById('paths').click()")
        at(browser, seconds)
        drawn = stage(browser)
        without(browser, "paths")
        strengths.append(np.abs(drawn - stage(browser)).sum())
    assert strengths[1] > 2 * strengths[0] > 0


def test_speed_and_time_are_chosen(show):
    browser = show(set_out([[animal()]]))
    choose = (
        "(() => {{ const it = document.getElementById('{}'); it.value = {}; it.dispatchEvent(new Event('{}')); }})()"
    )
    browser.run(choose.format("scrub", 1.25, "input"))
    assert state(browser)["now"] == pytest.approx(1.25)
    browser.run(choose.format("scrub", 0, "input"))
    browser.run(choose.format("speed", 0.1, "change"))
    assert state(browser)["speed"] == 0.1
    begun = time.monotonic()
    browser.next_frame()  # the first step is counted from the frame before it
    press(browser, " ")
    time.sleep(0.5)
    browser.next_frame()
    now = state(browser)["now"]
    assert 0 < now <= 0.1 * (time.monotonic() - begun)


def test_space_on_a_button_is_one_click(show):
    browser = show(set_out([[animal()]]))
    browser.run("document.getElementById('play').focus()")
    press(browser, " ")
    assert state(browser)["playing"]


@BOTH
def test_the_window_can_change_its_size(show):
    browser = show(set_out([[animal()]]))
    try:
        browser.resize(700, 500)
        browser.next_frame()
        browser.run("document.getElementById('reset').click()")
        browser.next_frame()
        assert state(browser)["pixels"] == [700, 500]
        picture = image.imread(io.BytesIO(browser.screenshot()))[..., :3]
        assert picture.shape == (500, 700, 3)
        assert pixels(picture[110:400], colours.GENERATED) > 300
    finally:
        browser.resize(*SIZE)


def crowd_of_walkers():
    clips = [walker(legs=legs, seconds=3.0) for legs in (4, 8, 12)]
    return crowd([(c.names, c.parents, c.positions().numpy().astype(np.float32), c.frame_time) for c in clips], 2.5)


def crowd_of_dancers():
    clips = sorted(SHARED_DATA.glob("*alsa*.bvh"))
    if not clips:
        pytest.skip(f"no clip of a dancer in {SHARED_DATA}")
    one = load_characters(clips[:1]).characters[0]
    walk = one.positions[:90] - one.positions[:90].mean(axis=(0, 1)) * [1, 0, 1]
    return crowd([(one.names, one.parents, walk.astype(np.float32), one.frame_time)], 0.8 * one.size)


def crowd(motions, apart):
    """200 characters in rows, each beginning its motion somewhere else."""
    everyone = []
    for k in range(200):
        names, parents, walk, frame_time = motions[k % len(motions)]
        where = apart * np.array([k % 20, 0, k // 20], dtype=np.float32)
        given = np.random.default_rng(k).random(walk.shape[:2]) < 0.5
        everyone.append(Character(f"{k}", names, parents, np.roll(walk, 7 * k, axis=0) + where, frame_time, given))
    return set_out([everyone], together=True)


@pytest.mark.slow
@BOTH
@pytest.mark.parametrize("make", [crowd_of_walkers, crowd_of_dancers])
def test_frame_time_of_two_hundred_characters(show, make, renderer, record_property):
    """The script keeps within the 12 ms past which it takes fewer pixels; WebGL's own part depends on the GPU."""
    scene = make()
    browser = show(scene)
    times = browser.run("sinmdm.measure(60)")
    joints = sum(len(one.names) for one in scene.characters)
    for name, one in times.items():
        record_property(name, one)
        print(f"{renderer}, 200 characters, {joints} joints, {name}: {one['median']:.1f} ms, 95 %: {one['p95']:.1f} ms")
    assert times["draw"]["count"] == 60
    assert times["script"]["median"] < 12
    picture = stage(browser)
    assert pixels(picture, colours.GIVEN) > 1000
    assert pixels(picture, colours.GENERATED) > 1000


@pytest.mark.slow
def test_fewer_pixels_where_drawing_takes_too_long(show):
    browser = show(crowd_of_walkers())
    assert state(browser)["pixels"] == list(SIZE)
    browser.call("Emulation.setCPUThrottlingRate", rate=20)
    try:
        press(browser, " ")
        deadline = time.monotonic() + 60
        while state(browser)["pixels"] == list(SIZE) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert state(browser)["pixels"] in ([672, 420], [480, 300])
    finally:
        browser.call("Emulation.setCPUThrottlingRate", rate=1)
    at(browser, 0.0)
    assert pixels(stage(browser), colours.GENERATED) > 1000
