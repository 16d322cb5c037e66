// Mouse, touch and keys; and the page's beginning.
"use strict";

const SWITCHES = ["labels", "paths", "grid", "follow", "loop", "shorter"];
const TURN = 0.006;  // radians a pixel

Page.prototype.listen = function () {
  const {canvas} = this;
  for (const name of SWITCHES) {
    byId(name).addEventListener("click", () => this.switch(name));
    this.switch(name, this.on[name]);
  }
  byId("play").addEventListener("click", () => this.play());
  byId("reset").addEventListener("click", () => this.reset());
  byId("theme").addEventListener("click", () => this.dress(this.theme === "dark" ? "light" : "dark"));
  byId("scrub").addEventListener("input", () => this.seek(Number(byId("scrub").value)));
  byId("speed").addEventListener("change", () => { this.speed = Number(byId("speed").value); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (query) =>
    this.dress(query.matches ? "dark" : "light"));
  addEventListener("resize", () => this.resize());
  addEventListener("keydown", (event) => this.key(event));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    this.camera.zoom(Math.exp(0.0015 * lines * event.deltaY), this.scene.size);
    this.changed = true;
  }, {passive: false});
  canvas.addEventListener("pointerdown", (event) => this.press(event));
  canvas.addEventListener("pointermove", (event) => this.move(event));
  canvas.addEventListener("pointerleave", () => this.unpoint());
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => this.release(event));
  canvas.addEventListener("webglcontextrestored", () => { this.changed = true; });
};

Page.prototype.press = function (event) {
  this.canvas.setPointerCapture(event.pointerId);
  this.canvas.classList.add("held");
  this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
  this.travelled = this.pointers.size > 1 ? Infinity : 0;
  this.unpoint();
};

Page.prototype.move = function (event) {
  const before = this.pointers.get(event.pointerId), now = [event.clientX, event.clientY];
  if (!before) {
    this.pointed = now;
    return;
  }
  const [x, y] = [now[0] - before[0], now[1] - before[1]];
  this.travelled += Math.abs(x) + Math.abs(y);
  if (this.pointers.size === 1) {
    if (event.buttons & 6 || event.shiftKey) this.camera.pan(x, y, this.height);
    else this.camera.orbit(TURN * x, TURN * y);
  } else if (this.pointers.size === 2) {
    const [other] = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    const spread = (place) => Math.max(1, Math.hypot(place[0] - other[0], place[1] - other[1]));
    this.camera.zoom(spread(before) / spread(now), this.scene.size);
    this.camera.pan(x / 2, y / 2, this.height);
  }
  this.pointers.set(event.pointerId, now);
  this.changed = true;
};

Page.prototype.release = function (event) {
  this.pointers.delete(event.pointerId);
  if (!this.pointers.size) this.canvas.classList.remove("held");
  if (event.type === "pointerup" && this.travelled < 5) {  // a click
    this.pursue(this.joint(event.clientX, event.clientY)?.character ?? null);
  }
};

/** Follow a character, or none any more. */
Page.prototype.pursue = function (character) {
  this.focus = character;
  this.switch("follow", Boolean(character));
};

Page.prototype.unpoint = function () {
  this.pointed = null;
  byId("tip").hidden = true;
};

/** Say which joint the pointer is over. */
Page.prototype.point = function (x, y) {
  const tip = byId("tip"), found = this.joint(x, y);
  tip.hidden = !found;
  if (!found) return;
  tip.textContent = found.character.label + " · " + found.character.names[found.joint];
  tip.style.transform = `translate(${Math.min(x + 14, this.width - tip.offsetWidth - 8)}px, ${y + 14}px)`;
};

Page.prototype.key = function (event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
  const keys = {
    " ": () => this.play(), r: () => this.reset(), t: () => byId("theme").click(),
    l: () => this.switch("labels"), p: () => this.switch("paths"), g: () => this.switch("grid"),
    f: () => this.switch("follow"), escape: () => this.pursue(null),
    home: () => this.seek(0), end: () => this.seek(this.seconds),
    arrowleft: () => this.step(event.shiftKey ? -10 : -1), arrowright: () => this.step(event.shiftKey ? 10 : 1),
    ",": () => this.step(-1), ".": () => this.step(1),
  };
  const run = keys[event.key.toLowerCase()];
  if (!run || event.key === " " && event.target.matches("button")) return;
  event.preventDefault();
  run();
};

window.sinmdm = {ready: false, error: null};
try {
  const page = new Page();
  Object.assign(window.sinmdm, {
    ready: true,
    frameTimes: () => page.intervals.summary,
    drawTimes: () => page.scripts.summary,
    measure: (frames) => page.measure(frames),
    seek: (seconds) => { page.play(false); page.seek(seconds); },
    state: () => ({now: page.now, seconds: page.seconds, playing: page.playing, on: {...page.on},
      focus: page.focus?.label ?? null, speed: page.speed, renderer: page.drawing.name,
      pixels: [page.canvas.width, page.canvas.height], yaw: page.camera.yaw, distance: page.camera.distance,
      target: [...page.camera.target],
      frames: page.characters.map((character) => character.frame(page.now, page.on.shorter))}),
    pose: (index) => {  // x, y, z, given of each joint of a character, as drawn last
      const {first, joints} = page.characters[index];
      return [...page.drawing.texels.subarray(4 * first, 4 * (first + joints))];
    },
    place: (x, y, z) => page.camera.place(x, y, z, page.width, page.height),
  });
} catch (error) {
  window.sinmdm.error = String(error);
  byId("trouble").textContent = "This page cannot be shown: " + error.message;
  byId("trouble").hidden = false;
  byId("switches").hidden = true;
  document.querySelector("footer").hidden = true;
}
