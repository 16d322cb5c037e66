// What both ways of drawing have in common (page_webgl.js, page_software.js), and which of them is taken.
"use strict";

// Pixels, at the distance of the middle of the picture: what is smaller cannot be seen, and is not drawn.
const JOINTS_SHOW = 100;  // a character in which no joint is a pixel wider than its bones
const BONE_SHOWS = 1;
const SHADOW_SHOWS = 4;  // shadows are soft
const LEAST = 0.75;  // pixels: the radius of bones that are thinner than that

// Light on a bone: from everywhere, from a lamp at the upper left, from the eye; and the lamp's reflection.
const LIGHT = {ambient: 0.62, lamp: 0.38, from: [-0.35, 0.72, 0.60], eye: 0.14,
  shine: 0.16, mirrored: [-0.20, 0.42, 0.885]};  // reflected: to the power of 24
const JOINT = 0.86;  // how light a joint is beside a bone

// Shadows, by the height of what throws them: how far away they fall in x and z, how much wider and paler they become.
const SHADOW = {x: 0.16, z: -0.12, wider: 1.3, edge: 0.012, blur: 0.05, paler: 1.1};

const PATH = {width: 0.006, past: 0.75, future: 0.22};  // width in sizes of the scene; opacities
const FADE = 0.35;  // from this share of its radius on, the grid fades

class Drawing {
  /**
   * joints: how many of all characters.
   * bones: ends Uint32Array (n, 2), radii Float32Array (n, 2), and lengths, Float32Array, falling, of the first of
   *   them; the rest are joints.
   * paths: stretches Float32Array (m, 4), times Float32Array (m, 3).
   * grid: points Float32Array (k, 3), middle [x, z, radius].
   * labels: [{text, root, above}]; ground, size: lengths of the scene.
   *
   * A way of drawing has write(colours), after which colours and size are those at hand; draw(camera, colours, shown,
   * now, looping), a frame of `texels`, where shown is {grid, paths, labels}, each whether; finish(), which waits until
   * it is done; `name`; and `ratios`, the pixels of the canvas to one of the window that it can be asked for, best
   * first.
   */
  constructor(canvas, parts, room) {
    this.canvas = canvas;
    this.parts = parts;
    this.ratio = 1;  // pixels of the canvas to one of the window
    this.texels = new Float32Array(4 * room);  // of each joint x, y, z, and 1 where it was given
  }

  resize(width, height, ratio) {
    this.canvas.width = Math.max(1, Math.round(width * ratio));
    this.canvas.height = Math.max(1, Math.round(height * ratio));
    this.ratio = ratio;
  }

  /** How many bones (with joints, where they can be seen) and how many shadows are big enough to be drawn. */
  visible(camera) {
    const {bones, size} = this.parts;
    // To a unit of length.
    const pixels = this.canvas.height / this.ratio / (2 * Math.tan(FIELD / 2) * camera.distance);
    return {
      bones: size * pixels < JOINTS_SHOW ? this.longer(BONE_SHOWS / pixels) : bones.ends.length / 2,
      shadows: this.longer(SHADOW_SHOWS / pixels),
    };
  }

  /** How many bones are at least so long. */
  longer(length) {
    const {lengths} = this.parts.bones;
    let from = 0, to = lengths.length;
    while (from < to) {
      const middle = (from + to) >> 1;
      if (lengths[middle] >= length) from = middle + 1;
      else to = middle;
    }
    return from;
  }

  /**
   * The labels' texts in one picture at most so wide and high, in these colours: {canvas, boxes}, where boxes has left,
   * top, width and height of each. Those that there is no room for are left out.
   */
  lettered(colours, most) {
    const {ratio} = this, height = Math.ceil(20 * ratio);
    const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
    const font = `600 ${12 * ratio}px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif`;
    context.font = font;
    let x = 0, y = 0;
    const boxes = [], texts = [];
    for (const label of this.parts.labels) {
      const characters = Array.from(label.text);
      const text = characters.length > 32 ? characters.slice(0, 31).join("") + "…" : label.text;
      const width = Math.ceil(Math.min(context.measureText(text).width + 8 * ratio, most));
      if (x + width > most) [x, y] = [0, y + height];
      if (y + height > most) break;
      texts.push(text);
      boxes.push([x, y, width, height]);
      x += width;
    }
    canvas.width = most;
    canvas.height = y + height;
    Object.assign(context, {font, textBaseline: "middle", lineJoin: "round", lineWidth: 3 * ratio,
      strokeStyle: colours.text.page, fillStyle: colours.text.ink});
    texts.forEach((text, index) => {
      const [left, top] = boxes[index];
      context.strokeText(text, left + 4 * ratio, top + height / 2);
      context.fillText(text, left + 4 * ratio, top + height / 2);
    });
    return {canvas, boxes};
  }
}

/** Whether WebGL 2 has a graphics processor, asked of a canvas of its own: a canvas can be drawn on in one way only. */
function accelerated() {
  const gl = document.createElement("canvas").getContext("webgl2", {failIfMajorPerformanceCaveat: true});
  if (!gl) return false;
  const named = gl.getParameter(gl.RENDERER), more = gl.getExtension("WEBGL_debug_renderer_info");
  const name = named + " " + (more ? gl.getParameter(more.UNMASKED_RENDERER_WEBGL) : "");
  return !/swiftshader|llvmpipe|softpipe|software|basic render/i.test(name);
}

/** The way to draw on a canvas: as the page's address says (#webgl, #software), or what is faster here. */
function drawing(canvas, parts) {
  const asked = location.hash.slice(1);
  const webgl = asked === "webgl" || asked !== "software" && accelerated();
  return webgl ? new WebGLDrawing(canvas, parts) : new SoftwareDrawing(canvas, parts);
}
