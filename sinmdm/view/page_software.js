// Drawing without a graphics processor: into an array of pixels, each joint projected once, far bones before near ones.
// Edges are blended by how much of a pixel they cover; a depth for each pixel keeps crossing bones apart.
"use strict";

const LAYERS = 1024;  // of depth, that bones are sorted into
const THIN = 1.6;  // pixels: bones of a smaller radius are strokes of one colour
const FLAT = LIGHT.ambient + Math.PI / 4 * (LIGHT.lamp * LIGHT.from[2] + LIGHT.eye);  // light on a stick, on average

/** A pixel of red, green and blue, each 0 to 1: their bytes from the lowest on, opaque. */
const packed = ([red, green, blue], light = 1) => {
  const byte = (part) => Math.round(255 * Math.min(1, part * light));
  return (0xff000000 | byte(blue) << 16 | byte(green) << 8 | byte(red)) >>> 0;
};

/** A pixel over another, with a share of so many 256ths. */
const mixed = (under, over, share) => {
  const rest = 256 - share;
  return (Math.imul(under & 0xff00ff, rest) + Math.imul(over & 0xff00ff, share)) >>> 8 & 0xff00ff
    | (Math.imul(under >>> 8 & 0xff00ff, rest) + Math.imul(over >>> 8 & 0xff00ff, share)) & 0xff00ff00;
};

class SoftwareDrawing extends Drawing {
  constructor(canvas, parts) {
    super(canvas, parts, parts.joints);
    this.name = "software";
    this.context = canvas.getContext("2d", {alpha: false, willReadFrequently: true});
    this.ratios = [2, 1, 0.7, 0.5].filter((ratio) => ratio <= Math.max(1, devicePixelRatio || 1));
    // Of each joint x and y in pixels, and pixels to a unit of length (the nearer the more; 0 behind the eye): where it
    // is seen, and where its shadow falls.
    this.seen = new Float32Array(3 * parts.joints);
    this.thrown = new Float32Array(3 * parts.joints);
    this.order = new Uint32Array(parts.bones.ends.length / 2);
    this.layers = new Uint16Array(this.order.length);
    this.starts = new Uint32Array(LAYERS + 1);
    this.ends = new Float64Array(6);
    this.shades = new Uint32Array(256);
    const {points, middle: [x, z, radius]} = parts.grid;
    this.opacities = Float32Array.from({length: points.length / 3}, (_, end) => {
      const away = Math.hypot(points[3 * end] - x, points[3 * end + 1] - z) / radius;
      const part = Math.min(1, Math.max(0, (away - FADE) / (1 - FADE)));
      return points[3 * end + 2] * (1 - part * part * (3 - 2 * part));
    });
  }

  write(colours) {
    const {canvas, shades} = this, {width, height} = canvas;
    if (this.picture?.width !== width || this.picture.height !== height) {
      this.pixels = new Uint32Array(width * height);
      this.depths = new Float32Array(width * height);
      this.picture = new ImageData(new Uint8ClampedArray(this.pixels.buffer), width, height);
    }
    this.page = packed(colours.page);
    this.lines = packed(colours.grid);
    this.tints = [colours.generated, colours.given].map((colour) => colour.map((part) => 255 * part));
    this.flat = [colours.generated, colours.given].map((colour) => packed(colour, FLAT));
    this.plain = [colours.generated, colours.given].map((colour) => packed(colour));
    for (let level = 0; level < 256; level++) shades[level] = packed(colours.page, 1 - level / 255);
    this.shade = 255 * colours.shade;
    this.letters = this.lettered(colours, 4096);
  }

  draw(camera, colours, shown, now, looping) {
    const {canvas, parts} = this;
    this.width = canvas.width;
    this.height = canvas.height;
    this.focal = this.height / 2 / Math.tan(FIELD / 2);
    this.pixels.fill(this.page);
    this.depths.fill(0);
    const visible = this.visible(camera);
    this.project(camera);
    if (shown.grid) this.grid(camera);
    if (shown.paths) this.paths(camera, now, looping);
    this.shadows(camera, visible.shadows);
    this.bones(this.sort(visible.bones));
    this.context.putImageData(this.picture, 0, 0);
    if (shown.labels) this.labels(camera);
  }

  project(camera) {
    const {texels, seen, thrown, width, height, focal, parts: {joints, ground}} = this, {near} = camera;
    const [a, b, c, , d, e, f, , g, h, i, , u, v, w] = camera.view;
    for (let joint = 0, from = 0, to = 0; joint < joints; joint++, from += 4, to += 3) {
      const x = texels[from], y = texels[from + 1], z = texels[from + 2], depth = -(c * x + f * y + i * z + w);
      const scale = depth > near ? focal / depth : 0;
      seen[to] = width / 2 + (a * x + d * y + g * z + u) * scale;
      seen[to + 1] = height / 2 - (b * x + e * y + h * z + v) * scale;
      seen[to + 2] = scale;
      const high = y > ground ? y - ground : 0, sx = x + SHADOW.x * high, sz = z + SHADOW.z * high;
      const far = -(c * sx + f * ground + i * sz + w), size = far > near ? focal / far : 0;
      thrown[to] = width / 2 + (a * sx + d * ground + g * sz + u) * size;
      thrown[to + 1] = height / 2 - (b * sx + e * ground + h * sz + v) * size;
      thrown[to + 2] = size;
    }
  }

  /** Order the first so many bones by how near they are, without those outside of the picture; how many are left. */
  sort(count) {
    const {seen, order, layers, starts, width, height, parts: {bones: {ends, radii}}} = this;
    let least = Infinity, most = 0, kept = 0;
    for (let bone = 0; bone < count; bone++) {
      const a = 3 * ends[2 * bone], b = 3 * ends[2 * bone + 1], near = seen[a + 2] + seen[b + 2];
      const ax = seen[a], ay = seen[a + 1], bx = seen[b], by = seen[b + 1], edge = 2 + near * radii[2 * bone];
      layers[bone] = LAYERS;
      if (!seen[a + 2] || !seen[b + 2] || ax < -edge && bx < -edge || ay < -edge && by < -edge
          || ax > width + edge && bx > width + edge || ay > height + edge && by > height + edge) continue;
      layers[bone] = 0;
      kept++;
      if (near < least) least = near;
      if (near > most) most = near;
    }
    const factor = most > least ? (LAYERS - 1) / (most - least) : 0;
    starts.fill(0);
    for (let bone = 0; bone < count; bone++) {
      if (layers[bone] === LAYERS) continue;
      layers[bone] = factor * (seen[3 * ends[2 * bone] + 2] + seen[3 * ends[2 * bone + 1] + 2] - least);
      starts[layers[bone] + 1]++;
    }
    for (let layer = 0; layer < LAYERS; layer++) starts[layer + 1] += starts[layer];
    for (let bone = 0; bone < count; bone++) if (layers[bone] < LAYERS) order[starts[layers[bone]]++] = bone;
    return kept;
  }

  bones(count) {
    const {seen, order, texels, ratio, parts: {bones: {ends, radii}}} = this, least = Math.max(0.5, LEAST * ratio);
    for (let index = 0; index < count; index++) {
      const bone = order[index], one = ends[2 * bone], other = ends[2 * bone + 1], a = 3 * one, b = 3 * other;
      const begin = Math.max(least, radii[2 * bone] * seen[a + 2]);
      const end = Math.max(least, radii[2 * bone + 1] * seen[b + 2]);
      const given = texels[4 * other + 3];
      if (begin < THIN && one !== other) {
        this.stroke(seen[a], seen[a + 1], seen[b], seen[b + 1], (begin + end) / 2, least, this.flat[given], 1, 1,
          seen[a + 2], seen[b + 2]);
      } else {
        this.stick(seen[a], seen[a + 1], seen[b], seen[b + 1], begin, end, this.tints[given], one === other ? JOINT : 1,
          seen[a + 2], seen[b + 2]);
      }
    }
  }

  /**
   * A straight line of one colour from a to b, so wide to each side, and at the ends by a cap. It changes its opacity
   * from one to the other, and its nearness, by which other things hide it.
   */
  stroke(ax, ay, bx, by, radius, cap, colour, opacityA, opacityB, nearA, nearB) {
    const {pixels, depths, width, height} = this, steep = Math.abs(by - ay) > Math.abs(bx - ax);
    const forward = steep ? by >= ay : bx >= ax;
    // Along the axis that it follows more, and across it.
    const begin = steep ? forward ? ay : by : forward ? ax : bx, end = steep ? forward ? by : ay : forward ? bx : ax;
    const start = steep ? forward ? ax : bx : forward ? ay : by, stop = steep ? forward ? bx : ax : forward ? by : ay;
    const along = steep ? width : 1, across = steep ? 1 : width, limit = steep ? width : height;
    const part = end > begin ? 1 / (end - begin) : 0, slope = (stop - start) * part;
    const longer = Math.sqrt(1 + slope * slope), half = radius * longer, reach = cap / longer;
    const first = Math.max(0, Math.ceil(begin - reach - 0.5));
    const last = Math.min(steep ? height : width, Math.ceil(end + reach - 0.5));
    const near = forward ? nearA : nearB, nearing = part * (forward ? nearB - nearA : nearA - nearB);
    const opacity = 256 * (forward ? opacityA : opacityB);
    const clearing = 256 * part * (forward ? opacityB - opacityA : opacityA - opacityB);
    for (let place = first; place < last; place++) {
      const done = place + 0.5 - begin, depth = near + done * nearing, solid = opacity + done * clearing;
      const low = start + done * slope - half, high = low + 2 * half, to = Math.min(limit, Math.ceil(high));
      for (let side = Math.max(0, Math.floor(low)); side < to; side++) {
        const at = place * along + side * across;
        if (depth < depths[at]) continue;
        const cover = (high < side + 1 ? high : side + 1) - (low > side ? low : side);
        pixels[at] = mixed(pixels[at], colour, cover * solid | 0);
        if (cover > 0.5) depths[at] = depth;
      }
    }
  }

  /** A rounded stick from a to b, lit as its surface is turned; a ball where a is b. Tint: three numbers up to 255. */
  stick(ax, ay, bx, by, radiusA, radiusB, tint, light, nearA, nearB) {
    const {pixels, depths, width, height, focal} = this, {ambient, lamp, eye, shine} = LIGHT;
    const [lx, ly, lz] = LIGHT.from, [mx, my, mz] = LIGHT.mirrored, [red, green, blue] = tint;
    const dx = bx - ax, dy = by - ay, square = dx * dx + dy * dy, inverse = square > 0 ? 1 / square : 0;
    const wide = Math.max(radiusA, radiusB) + 0.5, tilted = Math.abs(dy) > 1e-3;
    const reach = tilted ? wide * Math.sqrt(square) / Math.abs(dy) : 0, slope = tilted ? dx / dy : 0;
    const left = Math.max(0, Math.floor(Math.min(ax, bx) - wide));
    const right = Math.min(width, Math.ceil(Math.max(ax, bx) + wide));
    const bottom = Math.min(height, Math.ceil(Math.max(ay, by) + wide));
    for (let y = Math.max(0, Math.floor(Math.min(ay, by) - wide)); y < bottom; y++) {
      const down = y + 0.5 - ay, middle = ax + down * slope;
      const to = tilted ? Math.min(right, Math.ceil(middle + reach)) : right;
      for (let x = tilted ? Math.max(left, Math.floor(middle - reach)) : left; x < to; x++) {
        const over = x + 0.5 - ax, inner = (over * dx + down * dy) * inverse;
        const part = inner < 0 ? 0 : inner > 1 ? 1 : inner;
        const radius = radiusA + part * (radiusB - radiusA);
        const u = (over - part * dx) / radius, v = (part * dy - down) / radius, away = u * u + v * v;
        const cover = away > 0.25 ? (1 - Math.sqrt(away)) * radius + 0.5 : 1;
        if (cover <= 0) continue;
        const towards = away < 1 ? Math.sqrt(1 - away) : 0, at = y * width + x;
        const near = (nearA + part * (nearB - nearA)) * (1 + radius * towards / focal);
        if (near < depths[at]) continue;
        const lit = light * (ambient + lamp * (u * lx + v * ly + towards * lz) + eye * towards);
        const mirror = u * mx + v * my + towards * mz, cube = mirror * mirror * mirror;
        const twelfth = cube * cube * cube * cube;
        const gloss = mirror > 0 ? 255 * shine * twelfth * twelfth : 0;
        const r = red * lit + gloss, g = green * lit + gloss, b = blue * lit + gloss;
        const pixel = 0xff000000 | (b < 255 ? b : 255) << 16 | (g < 255 ? g : 255) << 8 | (r < 255 ? r : 255);
        pixels[at] = cover < 1 ? mixed(pixels[at], pixel, 256 * cover | 0) : pixel;
        if (cover > 0.5) depths[at] = near;
      }
    }
  }

  /** Of the first so many bones; the darker of two stays. */
  shadows(camera, count) {
    const {thrown, texels, parts: {ground, size, bones: {ends, radii}}} = this;
    const high = camera.target[1] + camera.distance * camera.back[1] - ground;  // of the eye
    for (let bone = 0; bone < count; bone++) {
      const one = ends[2 * bone], other = ends[2 * bone + 1], a = 3 * one, b = 3 * other, scale = thrown[a + 2];
      if (!scale || !thrown[b + 2]) continue;
      const lower = Math.max(0, Math.min(texels[4 * one + 1], texels[4 * other + 1]) - ground);
      const wide = SHADOW.wider * radii[2 * bone] + SHADOW.edge * size + SHADOW.blur * lower;
      this.shadow(thrown[a], thrown[a + 1], thrown[b], thrown[b + 1], Math.max(1, wide * scale),
        Math.min(1, Math.max(0.05, high * scale / this.focal)), this.shade * Math.exp(-SHADOW.paler * lower / size));
    }
  }

  /** A soft stick, so wide to each side, on ground that is seen flattened by a factor. */
  shadow(ax, ay, bx, by, wide, flattened, dark) {
    const {pixels, shades, width, height} = this, dx = bx - ax, dy = (by - ay) / flattened;
    const square = dx * dx + dy * dy, inverse = square > 0 ? 1 / square : 0, fading = 1 / (wide * wide);
    const tilted = Math.abs(dy) > 1e-3, slope = tilted ? dx / dy : 0;
    const reach = tilted ? wide * Math.sqrt(square) / Math.abs(dy) : 0;
    const left = Math.max(0, Math.floor(Math.min(ax, bx) - wide));
    const right = Math.min(width, Math.ceil(Math.max(ax, bx) + wide));
    const bottom = Math.min(height, Math.ceil(Math.max(ay, by) + wide * flattened));
    for (let y = Math.max(0, Math.floor(Math.min(ay, by) - wide * flattened)); y < bottom; y++) {
      const down = (y + 0.5 - ay) / flattened, middle = ax + down * slope;
      const to = tilted ? Math.min(right, Math.ceil(middle + reach)) : right;
      for (let x = tilted ? Math.max(left, Math.floor(middle - reach)) : left; x < to; x++) {
        const over = x + 0.5 - ax, inner = (over * dx + down * dy) * inverse;
        const part = inner < 0 ? 0 : inner > 1 ? 1 : inner;
        const u = over - part * dx, v = down - part * dy, soft = 1 - (u * u + v * v) * fading;
        if (soft <= 0) continue;
        const at = y * width + x, shade = shades[dark * soft | 0];
        if (shade < pixels[at]) pixels[at] = shade;
      }
    }
  }

  grid(camera) {
    const {opacities, lines, parts: {grid: {points}}} = this;
    for (let end = 0, at = 0; end < opacities.length; end += 2, at += 6) {
      this.line(camera, points[at], points[at + 1], points[at + 3], points[at + 4], 0, lines,
        opacities[end], opacities[end + 1]);
    }
  }

  paths(camera, now, looping) {
    const {stretches, times} = this.parts.paths, width = PATH.width * this.parts.size;
    for (let index = 0; 3 * index < times.length; index++) {
      const begin = times[3 * index], seconds = times[3 * index + 1], given = times[3 * index + 2];
      const own = now <= seconds ? now : looping ? now % seconds : seconds, at = 4 * index;
      const opacity = begin <= own ? PATH.past : PATH.future;
      this.line(camera, stretches[at], stretches[at + 1], stretches[at + 2], stretches[at + 3], width,
        this.plain[given], opacity, opacity);
    }
  }

  /** A line on the ground, between two places x, z: so much of it as lies before the eye. */
  line(camera, ax, az, bx, bz, width, colour, opacityA, opacityB) {
    const {ends, focal, parts: {ground}} = this, {view, near} = camera;
    for (let end = 0; end < 2; end++) {
      const x = end ? bx : ax, z = end ? bz : az;
      for (let row = 0; row < 3; row++) {
        ends[3 * end + row] = view[row] * x + view[4 + row] * ground + view[8 + row] * z + view[12 + row];
      }
    }
    if (ends[2] > -near && ends[5] > -near) return;
    for (let behind = 0; behind < 6; behind += 3) {
      if (ends[behind + 2] <= -near) continue;
      const before = 3 - behind;
      const part = (-near - ends[behind + 2]) / (ends[before + 2] - ends[behind + 2]);
      for (let row = 0; row < 3; row++) ends[behind + row] += part * (ends[before + row] - ends[behind + row]);
    }
    const scaleA = -focal / ends[2], scaleB = -focal / ends[5], across = this.width / 2, down = this.height / 2;
    this.stroke(across + scaleA * ends[0], down - scaleA * ends[1], across + scaleB * ends[3], down - scaleB * ends[4],
      Math.max(0.5, width * (scaleA + scaleB) / 2), 0, colour, opacityA, opacityB, 0, 0);
  }

  labels(camera) {
    const {context, texels, width, height, letters: {canvas, boxes}, parts} = this;
    boxes.forEach(([left, top, wide, high], index) => {
      const {root, above} = parts.labels[index], at = 4 * root;
      const place = camera.place(texels[at], texels[at + 1] + above, texels[at + 2], width, height);
      if (!place) return;
      const x = Math.floor(place[0] - wide / 2), y = Math.ceil(place[1]) - 4 - high;
      context.drawImage(canvas, left, top, wide, high, x, y, wide, high);
    });
  }

  /** The picture is done when it was drawn; read a pixel as the other way does, which must wait. */
  finish() { this.context.getImageData(0, 0, 1, 1); }
}
