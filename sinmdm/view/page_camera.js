// The camera: it looks at a target from a distance, and can fit points into the part of the window that is free.
"use strict";

const FIELD = 32 * Math.PI / 180;  // angle of view from top to bottom
const YAW = 0.32;  // radians: at first from the front right
const PITCH = {row: 0.26, crowd: 0.5};  // and slightly above, more where there are many behind each other

class Camera {
  constructor() {
    this.yaw = YAW;
    this.pitch = PITCH.row;
    this.distance = 1;
    this.near = 0;
    this.target = new Float32Array(3);
    this.view = new Float32Array(16);  // column after column
    this.projection = new Float32Array(16);
    this.right = new Float32Array(3);
    this.up = new Float32Array(3);
    this.back = new Float32Array(3);
    this.turn();
  }

  /** The axes of the picture for the angles as they are. */
  turn() {
    const [sy, cy, sp, cp] = [Math.sin(this.yaw), Math.cos(this.yaw), Math.sin(this.pitch), Math.cos(this.pitch)];
    this.right.set([cy, 0, -sy]);
    this.up.set([-sy * sp, cp, -cy * sp]);
    this.back.set([sy * cp, sp, cy * cp]);
  }

  orbit(x, y) {
    this.yaw -= x;
    this.pitch = Math.min(1.55, Math.max(0.02, this.pitch + y));  // never under the ground, never quite overhead
    this.turn();
  }

  /** Shift what is looked at by so many pixels of a window so high. */
  pan(x, y, height) {
    const pixel = 2 * Math.tan(FIELD / 2) * this.distance / height;
    for (let axis = 0; axis < 3; axis++) this.target[axis] += (y * this.up[axis] - x * this.right[axis]) * pixel;
  }

  zoom(factor, size) {
    this.distance = Math.min(1e4 * size, Math.max(0.2 * size, this.distance * factor));
  }

  /**
   * Look at the points ([x, y, z], ...) from the front, as near as all are in sight.
   * covered: {left, right, top, bottom}, pixels at the window's edges that are covered.
   */
  fit(points, width, height, covered) {
    const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
    for (const point of points) {
      for (let axis = 0; axis < 3; axis++) {
        low[axis] = Math.min(low[axis], point[axis]);
        high[axis] = Math.max(high[axis], point[axis]);
      }
    }
    const spans = [0, 1, 2].map((axis) => high[axis] - low[axis]);
    const crowded = Math.min(1, Math.max(0, (Math.min(spans[0], spans[2]) / spans[1] - 2) / 4)) || 0;
    this.yaw = YAW;
    this.pitch = PITCH.row + (PITCH.crowd - PITCH.row) * crowded;
    this.turn();
    for (let axis = 0; axis < 3; axis++) this.target[axis] = (low[axis] + high[axis]) / 2;
    const tall = Math.tan(FIELD / 2), wide = tall * width / height;
    const inside = {  // the free part of the window, as tangents from its middle
      left: wide * (1 - 2 * covered.left / width), right: wide * (1 - 2 * covered.right / width),
      top: tall * (1 - 2 * covered.top / height), bottom: tall * (1 - 2 * covered.bottom / height),
    };
    // Centring what is seen moves the target, which changes what is seen: a few rounds settle.
    for (let round = 0; round < 8; round++) {
      this.distance = 1e-6;
      let left = Infinity, right = -Infinity, bottom = Infinity, top = -Infinity;
      const seen = points.map((point) => this.seen(point));
      const halfWide = (inside.left + inside.right) / 2, halfTall = (inside.top + inside.bottom) / 2;
      for (const [x, y, z] of seen) {
        this.distance = Math.max(this.distance, z + Math.abs(x) / halfWide, z + Math.abs(y) / halfTall);
      }
      for (const [x, y, z] of seen) {
        const depth = this.distance - z;
        left = Math.min(left, x / depth); right = Math.max(right, x / depth);
        bottom = Math.min(bottom, y / depth); top = Math.max(top, y / depth);
      }
      const x = (left + right) / 2 * this.distance, y = (bottom + top) / 2 * this.distance;
      for (let axis = 0; axis < 3; axis++) this.target[axis] += x * this.right[axis] + y * this.up[axis];
    }
    const x = (inside.left - inside.right) / 2 * this.distance, y = (inside.bottom - inside.top) / 2 * this.distance;
    for (let axis = 0; axis < 3; axis++) this.target[axis] += x * this.right[axis] + y * this.up[axis];
  }

  /** A point as right, up and towards the eye from the target. */
  seen(point) {
    const [x, y, z] = [point[0] - this.target[0], point[1] - this.target[1], point[2] - this.target[2]];
    const along = (axis) => x * axis[0] + y * axis[1] + z * axis[2];
    return [along(this.right), along(this.up), along(this.back)];
  }

  /** View and projection for a window of this shape; extent: how far from the target anything may be. */
  update(aspect, extent) {
    const axes = [this.right, this.up, this.back], view = this.view;
    for (let row = 0; row < 3; row++) {
      const axis = axes[row];
      for (let column = 0; column < 3; column++) view[4 * column + row] = axis[column];
      view[12 + row] = -(axis[0] * this.target[0] + axis[1] * this.target[1] + axis[2] * this.target[2]);
    }
    view[14] -= this.distance;
    view[15] = 1;
    this.near = 0.02 * this.distance;  // what is nearer to the eye is not seen
    const {near} = this, far = this.distance + extent, scale = 1 / Math.tan(FIELD / 2);
    this.projection.fill(0);
    this.projection[0] = scale / aspect;
    this.projection[5] = scale;
    this.projection[10] = (near + far) / (near - far);
    this.projection[11] = -1;
    this.projection[14] = 2 * near * far / (near - far);
  }

  /** Where in the window a point is seen, in pixels from its top left; null behind the eye. */
  place(x, y, z, width, height) {
    const [right, up, towards] = this.seen([x, y, z]);
    const depth = this.distance - towards;
    if (depth <= 0) return null;
    const pixels = height / 2 / Math.tan(FIELD / 2) / depth;
    return [width / 2 + right * pixels, height / 2 - up * pixels];
  }

  /** Which of the points (x, y, z and a fourth number each) is seen nearest to a place, within pixels of it; or -1. */
  nearest(points, x, y, width, height, within) {
    const [a, b, c, , d, e, f, , g, h, i, , u, v, w] = this.view, focal = height / 2 / Math.tan(FIELD / 2);
    let least = within * within, found = -1;
    for (let at = 0; at < points.length; at += 4) {
      const px = points[at], py = points[at + 1], pz = points[at + 2], depth = -(c * px + f * py + i * pz + w);
      if (depth <= this.near) continue;
      const right = width / 2 + focal * (a * px + d * py + g * pz + u) / depth - x;
      const down = height / 2 - focal * (b * px + e * py + h * pz + v) / depth - y, away = right * right + down * down;
      if (away < least) [least, found] = [away, at / 4];
    }
    return found;
  }
}
