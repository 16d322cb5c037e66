// The page: motions out of its data, a clock, the controls, and what it measures of itself.
"use strict";

const byId = (id) => document.getElementById(id);
const MOST = 12;  // milliseconds that drawing a frame may take: 60 a second, with some left for the browser
const motionless = matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Bytes of base64 text. */
function bytes(text) {
  const decoded = atob(text), out = new Uint8Array(decoded.length);
  for (let index = 0; index < out.length; index++) out[index] = decoded.charCodeAt(index);
  return out;
}

/** A character of the data, ready to be posed; `first` is the place of its first joint among all joints. */
class Character {
  constructor(data, skeletons, first) {
    const {roots, offsets, given, ...rest} = data;
    Object.assign(this, rest, skeletons[data.skeleton]);
    this.first = first;
    this.joints = this.names.length;
    this.seconds = this.frames * this.frameTime;
    this.roots = new Float32Array(bytes(roots).buffer);
    this.offsets = new Int16Array(bytes(offsets).buffer);
    this.bits = typeof given === "string" ? bytes(given) : null;
    this.all = given === true ? 1 : 0;
  }

  /** Its own frame at a time of the scene, with a fraction. */
  frame(now, looping) {
    const own = now <= this.seconds ? now : looping ? now % this.seconds : this.seconds;
    return Math.min(own / this.frameTime, this.frames - 1);
  }

  wasGiven(frame, joint) {
    const bit = frame * this.joints + joint;
    return this.bits ? this.bits[bit >> 3] >> (bit & 7) & 1 : this.all;
  }

  /** Write x, y, z, given of every joint at a frame, from the place of its first joint on. */
  pose(frame, out) {
    const start = Math.floor(frame), next = Math.min(start + 1, this.frames - 1), part = frame - start;
    const {roots, offsets, joints, scale, bits, all} = this;
    const weight = scale * part, rest = scale - weight, nearer = (part < 0.5 ? start : next) * joints;
    const x = roots[3 * start] * (1 - part) + roots[3 * next] * part;
    const y = roots[3 * start + 1] * (1 - part) + roots[3 * next + 1] * part;
    const z = roots[3 * start + 2] * (1 - part) + roots[3 * next + 2] * part;
    let to = 4 * this.first, a = 3 * joints * start, b = 3 * joints * next;
    for (let joint = 0; joint < joints; joint++, to += 4, a += 3, b += 3) {
      out[to] = x + offsets[a] * rest + offsets[b] * weight;
      out[to + 1] = y + offsets[a + 1] * rest + offsets[b + 1] * weight;
      out[to + 2] = z + offsets[a + 2] * rest + offsets[b + 2] * weight;
      out[to + 3] = bits ? bits[nearer + joint >> 3] >> (nearer + joint & 7) & 1 : all;
    }
  }

  /** Of the box it stays in, sticks and balls included. */
  get corners() {
    const edge = 0.03 * this.size, low = this.low.map((at) => at - edge), high = this.high.map((at) => at + edge);
    return [0, 1, 2, 3, 4, 5, 6, 7].map((bit) => [
      bit & 1 ? high[0] : low[0], bit & 2 ? high[1] : low[1], bit & 4 ? high[2] : low[2]]);
  }
}

/** The middle value and the 95th percentile of the numbers, which are sorted for it. */
function summary(numbers) {
  const sorted = Float64Array.from(numbers).sort();
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  return sorted.length ? {count: sorted.length, median: at(0.5), p95: at(0.95)} : {count: 0, median: NaN, p95: NaN};
}

/** The latest 240 of a series of times, in milliseconds. */
class Times {
  constructor() {
    this.kept = new Float64Array(240);
    this.count = 0;
  }

  add(time) { this.kept[this.count++ % this.kept.length] = time; }

  get summary() { return summary(this.kept.subarray(0, Math.min(this.count, this.kept.length))); }
}

/** Stick radii, places of joints, paths, grid and labels: what the drawing needs once. */
function parts(scene, characters) {
  const bones = [], spots = [], stretches = [], times = [];
  const most = Math.max(8, Math.floor(30000 / characters.length));  // of pieces of a character's path
  for (const character of characters) {
    const {first, parents, frames, roots, size, lengths} = character;
    const children = new Set(parents);
    parents.forEach((parent, joint) => {
      const length = lengths[joint], radius = Math.min(0.019 * size, Math.max(0.0045 * size, 0.1 * length));
      if (parent >= 0) bones.push([first + parent, first + joint, 1.15 * radius, 0.75 * radius, length]);
      const longest = Math.max(length, ...parents.map((above, below) => above === joint ? lengths[below] : 0));
      const ball = Math.min(0.024 * size, Math.max(0.006 * size, 0.13 * longest));
      // A joint alone is its own bone, and throws its own shadow.
      if (parent < 0 && !children.has(joint)) bones.push([first + joint, first + joint, ball, ball, size]);
      else spots.push([first + joint, first + joint, ball, ball]);
    });
    const step = Math.max(1, Math.ceil((frames - 1) / most));
    for (let frame = 0; frame + 1 < frames; frame += step) {
      const next = Math.min(frame + step, frames - 1);
      stretches.push(roots[3 * frame], roots[3 * frame + 2], roots[3 * next], roots[3 * next + 2]);
      times.push(frame * character.frameTime, character.seconds, character.wasGiven(frame, 0));
    }
  }
  bones.sort((one, other) => other[4] - one[4]);
  const all = [...bones, ...spots];
  return {
    joints: characters.reduce((sum, character) => sum + character.joints, 0),
    bones: {
      ends: Uint32Array.from(all.flatMap((bone) => bone.slice(0, 2))),
      radii: Float32Array.from(all.flatMap((bone) => bone.slice(2, 4))),
      lengths: Float32Array.from(bones, (bone) => bone[4]),
    },
    paths: {stretches: Float32Array.from(stretches), times: Float32Array.from(times)},
    grid: grid(scene),
    labels: characters.map(({label, first, above, size}) => ({text: label, root: first, above: above + 0.08 * size})),
    ground: scene.ground, size: scene.size,
  };
}

/** Lines at round distances, in pieces that can fade; every fifth is stronger. */
function grid({low, high, size}) {
  const middle = [(low[0] + high[0]) / 2, (low[2] + high[2]) / 2];
  const radius = Math.hypot(high[0] - low[0], high[2] - low[2]) / 2 + 3 * size;
  const least = Math.max(size / 2, radius / 25), power = 10 ** Math.floor(Math.log10(least));
  const spacing = power * [1, 2, 5, 10].find((factor) => factor * power >= least);
  const points = [], pieces = 16;
  for (const [along, across] of [[0, 1], [1, 0]]) {
    const last = Math.floor((middle[across] + radius) / spacing);
    for (let line = Math.ceil((middle[across] - radius) / spacing); line <= last; line++) {
      const half = Math.sqrt(Math.max(0, radius ** 2 - (line * spacing - middle[across]) ** 2));  // of a chord
      for (let end = 0; end < 2 * pieces; end++) {
        const point = [0, 0, line % 5 ? 0.5 : 1];
        point[across] = line * spacing;
        point[along] = middle[along] + half * (2 * ((end + 1) >> 1) / pieces - 1);
        points.push(...point);
      }
    }
  }
  return {points: Float32Array.from(points), middle: [...middle, radius]};
}

/** The colours of the theme at hand, from the style sheet. */
function colours() {
  const style = getComputedStyle(document.documentElement), text = {};
  const read = (name) => (text[name] = style.getPropertyValue("--" + name).trim());
  const of = (name) => [1, 3, 5].map((place) => parseInt(read(name).slice(place, place + 2), 16) / 255);
  return {page: of("page"), given: of("given"), generated: of("generated"), grid: of("grid"),
    shade: Number(read("shade")), text: {page: read("page"), ink: read("ink")}};
}

const clock = (seconds) => {
  const minutes = Math.floor(seconds / 60), rest = (seconds - 60 * minutes).toFixed(2);
  return minutes + ":" + rest.padStart(5, "0");
};

class Page {
  constructor() {
    const {characters, ...scene} = JSON.parse(byId("scene").textContent);
    byId("scene").remove();  // its text is as large as the motions
    this.scene = scene;
    let first = 0;
    this.characters = characters.map((data) => {
      const character = new Character(data, scene.skeletons, first);
      first += character.joints;
      return character;
    });
    this.joints = first;
    this.seconds = Math.max(...this.characters.map((character) => character.seconds));
    this.now = 0;
    this.speed = 1;
    this.playing = !motionless;
    this.focus = null;  // the character clicked last
    this.on = {labels: this.characters.length <= 24, paths: this.characters.length <= 12, grid: true, follow: false,
      loop: true, shorter: true};
    this.pointers = new Map();
    this.intervals = new Times();
    this.scripts = new Times();
    this.measuring = false;
    this.finished = null;  // while measuring that: times with the graphics' own
    this.pointed = null;  // where the pointer has come to, until it is looked what is there
    this.camera = new Camera();
    this.canvas = byId("stage");
    this.describe();
    this.drawing = drawing(this.canvas, parts(this.scene, this.characters));
    this.listen();
    this.dress(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    this.resize();
    this.reset();
    requestAnimationFrame((time) => this.frame(time));
  }

  /** What the page says in words; every text from a file goes in as text. */
  describe() {
    const {characters, scene} = this, count = characters.length;
    const kinds = new Set(characters.map(({skeleton}) => skeleton)).size;
    const said = [count === 1 ? "1 character" : count + " characters"];
    if (kinds > 1) said.push(kinds + " skeletons");
    said.push(this.seconds.toFixed(1) + " s");
    if (scene.scaled) said.push("sizes made equal");
    byId("about").textContent = said.join(" · ");
    const some = characters.some(({bits, all}) => bits || all), every = characters.every(({all}) => all);
    for (const [name, there] of [["given", some], ["generated", !every]]) {
      if (!there) continue;
      const item = document.createElement("li"), swatch = document.createElement("i");
      swatch.className = name;
      item.append(swatch, name);
      byId("legend").append(item);
    }
    byId("scrub").max = this.seconds;
    byId("shorter").hidden = characters.every(({seconds}) => Math.abs(seconds - this.seconds) < 1e-6);
    if (some && !every) this.markGiven();
  }

  /** Under the bar of time: when something was given, the more the stronger. */
  markGiven() {
    const masked = this.characters.filter(({bits}) => bits), slots = 200;
    let last = -1;
    const spans = [];
    for (let slot = 0; slot < slots && masked.length; slot++) {
      let given = 0, all = 0;
      for (const character of masked) {
        const frame = Math.round(character.frame(this.seconds * (slot + 0.5) / slots, false));
        for (let joint = 0; joint < character.joints; joint++) given += character.wasGiven(frame, joint);
        all += character.joints;
      }
      const level = Math.ceil(4 * given / all) / 4;
      if (level !== last) spans.push({slot, level});
      last = level;
    }
    spans.forEach(({slot, level}, index) => {
      if (!level) return;
      const span = document.createElement("div"), end = index + 1 < spans.length ? spans[index + 1].slot : slots;
      span.className = "given-span";
      Object.assign(span.style, {
        left: 100 * slot / slots + "%", width: 100 * (end - slot) / slots + "%", opacity: 0.25 + 0.75 * level});
      byId("given-spans").append(span);
    });
  }

  dress(theme) {
    this.theme = theme;
    document.documentElement.dataset.theme = theme;
    this.colours = colours();
    this.stale = true;
  }

  /** Take up the window, with so many pixels of the canvas to one of the window's. */
  resize(ratio = this.drawing.ratios[0]) {
    this.width = Math.max(1, innerWidth);
    this.height = Math.max(1, innerHeight);
    this.drawing.resize(this.width, this.height, ratio);
    this.scripts = new Times();
    this.stale = true;
  }

  /** Fewer pixels where drawing takes too long, and more again where it does not. */
  adapt() {
    const {drawing: {ratio, ratios}, scripts} = this, at = ratios.indexOf(ratio), {median} = scripts.summary;
    if (!this.playing || this.measuring || scripts.count < 60) return;
    if (median > MOST && at + 1 < ratios.length) this.resize(ratios[at + 1]);
    else if (at > 0 && median * (ratios[at - 1] / ratio) ** 2 < MOST / 2) this.resize(ratios[at - 1]);
  }

  reset() {
    const narrow = this.width <= 640;
    const covered = {left: 30, right: 30, top: narrow ? 110 : 96, bottom: narrow ? 170 : 96};
    this.camera.fit(this.characters.flatMap(({corners}) => corners), this.width, this.height, covered);
    const {low, high, size} = this.scene;
    this.extent = Math.hypot(...[0, 1, 2].map((axis) => high[axis] - low[axis])) + 20 * size;
    this.switch("follow", false);
  }

  switch(name, on = !this.on[name]) {
    this.on[name] = on;
    byId(name).setAttribute("aria-pressed", on);
    this.changed = true;
  }

  play(playing = !this.playing) {
    if (playing && this.now >= this.seconds) this.now = 0;
    this.playing = playing;
    this.changed = true;
  }

  seek(seconds) {
    this.now = Math.min(this.seconds, Math.max(0, seconds));
    this.changed = true;
  }

  step(frames) {
    const {frameTime} = this.focus ?? this.characters[0], last = Math.ceil(this.seconds / frameTime - 1e-6);
    this.play(false);
    const frame = Math.round(this.now / frameTime - 1e-6) + frames;
    this.seek(frameTime * (this.on.loop ? (frame + last) % last : Math.min(frame, last - 1)));
  }

  /** The joint nearest to a place in the window, within a few pixels: {character, joint} or null. */
  joint(x, y) {
    const {camera, drawing: {texels}, width, height} = this;
    const place = camera.nearest(texels.subarray(0, 4 * this.joints), x, y, width, height, 14);
    const character = this.characters.find(({first, joints}) => place >= first && place < first + joints);
    return character ? {character, joint: place - character.first} : null;
  }

  /** Keep the middle of the roots, or the root of the character clicked last, where it is in the picture. */
  follow(passed) {
    const {texels} = this.drawing, followed = this.focus ? [this.focus] : this.characters, {target} = this.camera;
    const share = (this.playing ? 1 - Math.exp(-passed / 0.12) : 1) / followed.length;
    let x = 0, y = 0, z = 0;
    for (const {first} of followed) {
      x += texels[4 * first] - target[0];
      y += texels[4 * first + 1] - target[1];
      z += texels[4 * first + 2] - target[2];
    }
    target[0] += share * x;
    target[1] += share * y;
    target[2] += share * z;
  }

  /** One frame of animation at a time in milliseconds. */
  frame(time) {
    requestAnimationFrame((next) => this.frame(next));
    const passed = this.last === undefined ? 0 : time - this.last;
    this.last = time;
    if (passed > 0) this.intervals.add(passed);
    if (this.playing) this.advance(Math.min(passed, 250) / 1000);
    if (this.playing || this.changed || this.stale) this.draw(Math.min(passed, 250) / 1000);
    if (this.pointed) this.point(...this.pointed);
    this.pointed = null;
    if (!(time - this.told < 500)) this.tell(time);
  }

  advance(seconds) {
    this.now += this.speed * seconds;
    if (this.now >= this.seconds) {
      if (this.on.loop) this.now %= this.seconds;
      else [this.now, this.playing] = [this.seconds, false];
    }
  }

  draw(passed) {
    const begun = performance.now(), {drawing, camera} = this;
    if (this.stale) drawing.write(this.colours);
    this.changed = this.stale = false;
    for (const character of this.characters) {
      character.pose(character.frame(this.now, this.on.shorter), drawing.texels);
    }
    if (this.on.follow) this.follow(passed);
    camera.update(this.width / this.height, this.extent);
    drawing.draw(camera, this.colours, this.on, this.now, this.on.shorter);
    const scripted = performance.now();
    this.scripts.add(scripted - begun);
    if (this.finished) {
      drawing.finish();
      this.finished.push(performance.now() - begun);
    }
    this.show();
  }

  /** The controls as things stand. */
  show() {
    const {frameTime, frames} = this.focus ?? this.characters[0];
    byId("scrub").value = this.now;
    byId("time").textContent = clock(this.now) + " / " + clock(this.seconds);
    const frame = Math.floor((this.focus ?? this.characters[0]).frame(this.now, this.on.shorter) + 1e-4);
    byId("frame").textContent = `frame ${frame + 1} / ${frames}`;
    byId("frame").title = `of ${(this.focus ?? this.characters[0]).label}, ${(1 / frameTime).toFixed(1)} a second`;
    if (this.shape !== this.playing) {
      this.shape = this.playing;
      byId("play-shape").setAttribute("d", this.playing ? "M6 4h4v16H6zM14 4h4v16h-4z" : "M7 4l13 8-13 8z");
      byId("play").setAttribute("aria-label", this.playing ? "Pause" : "Play");
    }
  }

  tell(time) {
    this.told = time;
    const {intervals: {summary: frames}, scripts: {summary: scripts}, drawing: {name, canvas}} = this;
    byId("speedometer").textContent = frames.count
      ? `${frames.median.toFixed(1)} ms (95 %: ${frames.p95.toFixed(1)}), script ${scripts.median.toFixed(1)}` : "";
    byId("speedometer").title = `Milliseconds from frame to frame: median and 95 %; of the script. ${canvas.width} × `
      + `${canvas.height} pixels, drawn ${name === "software" ? "in software" : "with " + name}`;
    this.adapt();
  }

  /**
   * Play for so many frames, and for as many again in which the graphics are waited for: a promise of the times from
   * frame to frame and of the script, and of the whole drawing.
   */
  async measure(frames) {
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    this.measuring = true;
    this.play(true);
    await frame();
    this.intervals = new Times();
    this.scripts = new Times();
    while (this.intervals.count < frames) await frame();
    const [intervals, scripts] = [this.intervals.summary, this.scripts.summary];
    this.finished = [];
    while (this.finished.length < frames) await frame();
    const whole = summary(this.finished);
    this.finished = null;
    this.measuring = false;
    return {frames: intervals, script: scripts, draw: whole};
  }
}
