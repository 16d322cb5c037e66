// Drawing with WebGL 2. All joints of all characters are one texture (a texel a joint: x, y, z, 1 where it was given),
// the only thing uploaded in a frame. Bones, joints and shadows are quads that name their two joints and stay as they
// are: plain vertices, since instances of one quad cost several times as much where graphics are computed in software.
"use strict";

const TEXELS = 512;  // joints in a row of the texture

/** Numbers as GLSL has them: always with a point. */
const glsl = (number) => number.toFixed(4);
const vec3 = (numbers) => `vec3(${numbers.map(glsl)})`;

const VERTEX = `#version 300 es
precision highp float;
`;
const JOINTS = VERTEX + `
uniform highp sampler2D joints;
vec4 joint(uint index) { return texelFetch(joints, ivec2(index % ${TEXELS}u, index / ${TEXELS}u), 0); }
`;
// Which corner of its quad a vertex is: (-1, -1), (1, -1), (-1, 1), (1, 1).
const CORNER = `
vec2 corner_() { return vec2(gl_VertexID & 1, gl_VertexID >> 1 & 1) * 2. - 1.; }
`;
const FRAGMENT = `#version 300 es
precision highp float;
out vec4 colour;
`;

// A bone is a flat quad that faces the eye, on which a rounded stick is shaded; a joint is one from itself to itself.
const BONE_VERTEX = JOINTS + CORNER + `
uniform mat4 view, projection;
uniform float pixel;  // the least radius, for something at distance 1
uniform vec3 given, generated;
in uvec2 ends;
in vec2 radii;
out vec2 at;
flat out vec3 shape, tint;
flat out vec4 axes;
void main() {
  vec2 corner = corner_();
  vec4 a = joint(ends.x), b = joint(ends.y);
  vec3 p = (view * vec4(a.xyz, 1.)).xyz, q = (view * vec4(b.xyz, 1.)).xyz;
  vec3 eye = -normalize(p + q);
  vec3 along = (q - p) - dot(q - p, eye) * eye;
  float length_ = length(along), least = pixel * -.5 * (p.z + q.z);
  vec3 x = length_ > 1e-6 * least ? along / length_ : normalize(cross(vec3(0., 1., 0.), eye));
  vec3 y = cross(eye, x);
  vec2 r = max(radii, least);
  float wide = max(r.x, r.y) + least;
  vec3 place = (corner.x < 0. ? p : q) + corner.x * wide * x + corner.y * wide * y;
  at = vec2(corner.x < 0. ? -wide : length_ + wide, corner.y * wide);
  shape = vec3(length_, r);
  axes = vec4(x.xy, y.xy);
  tint = mix(generated, given, b.w) * (ends.x == ends.y ? ${glsl(JOINT)} : 1.);
  gl_Position = projection * vec4(place, 1.);
}`;
const BONE_FRAGMENT = FRAGMENT + `
in vec2 at;
flat in vec3 shape, tint;
flat in vec4 axes;
void main() {
  float part = shape.x > 0. ? clamp(at.x / shape.x, 0., 1.) : 0.;
  float radius = mix(shape.y, shape.z, part);
  vec2 off = vec2(at.x - part * shape.x, at.y) / radius;
  float away = length(off), cover = clamp((1. - away) / fwidth(away) + .5, 0., 1.);
  if (cover == 0.) discard;
  float towards = sqrt(max(0., 1. - away * away));
  vec3 normal = vec3(axes.xy * off.x + axes.zw * off.y, towards);
  float light = ${glsl(LIGHT.ambient)} + ${glsl(LIGHT.lamp)} * dot(normal, ${vec3(LIGHT.from)})
    + ${glsl(LIGHT.eye)} * towards;
  float shine = pow(max(dot(normal, ${vec3(LIGHT.mirrored)}), 0.), 24.);
  colour = vec4(tint * light + ${glsl(LIGHT.shine)} * shine, cover);
}`;

// The same bones, thrown onto the ground by a light from above; the darker of two shadows stays, they do not add up.
const SHADOW_VERTEX = JOINTS + CORNER + `
uniform mat4 view, projection;
uniform float ground, size;
in uvec2 ends;
in vec2 radii;
out vec2 at;
flat out vec4 shape;
void main() {
  vec2 corner = corner_();
  vec3 a = joint(ends.x).xyz, b = joint(ends.y).xyz;
  vec2 heights = max(vec2(a.y, b.y) - ground, 0.);
  vec2 away = vec2(${glsl(SHADOW.x)}, ${glsl(SHADOW.z)}), p = a.xz + heights.x * away, q = b.xz + heights.y * away;
  float length_ = distance(p, q), high = min(heights.x, heights.y);
  vec2 x = length_ > 0. ? (q - p) / length_ : vec2(1., 0.), y = vec2(-x.y, x.x);
  float wide = ${glsl(SHADOW.wider)} * max(radii.x, radii.y) + ${glsl(SHADOW.edge)} * size
    + ${glsl(SHADOW.blur)} * high;
  vec2 place = (corner.x < 0. ? p : q) + corner.x * wide * x + corner.y * wide * y;
  at = vec2(corner.x < 0. ? -wide : length_ + wide, corner.y * wide);
  shape = vec4(length_, wide, exp(${glsl(-SHADOW.paler)} * high / size), 0.);
  gl_Position = projection * view * vec4(place.x, ground, place.y, 1.);
}`;
const SHADOW_FRAGMENT = FRAGMENT + `
uniform vec3 page;
uniform float shade;
in vec2 at;
flat in vec4 shape;
void main() {
  float away = length(vec2(at.x - clamp(at.x, 0., shape.x), at.y)) / shape.y;
  if (away >= 1.) discard;
  float soft = 1. - away;
  colour = vec4(page * (1. - shade * shape.z * soft * (2. - soft)), 1.);
}`;

const GRID_VERTEX = VERTEX + `
uniform mat4 view, projection;
uniform float ground;
uniform vec3 middle;  // x and z of the grid's, and its radius
in vec3 point;  // x, z, strength
out float strength;
void main() {
  float away = distance(point.xy, middle.xy) / middle.z;
  strength = point.z * (1. - smoothstep(${glsl(FADE)}, 1., away));
  gl_Position = projection * view * vec4(point.x, ground, point.y, 1.);
}`;
const GRID_FRAGMENT = FRAGMENT + `
uniform vec3 grid;
in float strength;
void main() { colour = vec4(grid, strength); }`;

const PATH_VERTEX = VERTEX + CORNER + `
uniform mat4 view, projection;
uniform float ground, now, looping, width;
uniform vec3 given, generated;
in vec4 stretch;  // x, z where it begins and where it ends
in vec3 when;  // its time, how long its character lasts, whether it was given
flat out vec4 tint;
void main() {
  vec2 corner = corner_();
  float own = now <= when.y ? now : looping > 0. ? mod(now, when.y) : when.y;
  vec2 x = stretch.zw - stretch.xy;
  x = length(x) > 0. ? normalize(x) : vec2(1., 0.);
  vec2 place = (corner.x < 0. ? stretch.xy : stretch.zw) + width * corner.y * vec2(-x.y, x.x);
  tint = vec4(mix(generated, given, when.z), when.x <= own ? ${glsl(PATH.past)} : ${glsl(PATH.future)});
  gl_Position = projection * view * vec4(place.x, ground, place.y, 1.);
}`;
const PATH_FRAGMENT = FRAGMENT + `
flat in vec4 tint;
void main() { colour = tint; }`;

const LABEL_VERTEX = JOINTS + CORNER + `
uniform mat4 view, projection;
uniform vec2 screen, atlas;  // pixels
in uint root;
in float above;
in vec4 box;  // left, top, width, height in the atlas
out vec2 at;
void main() {
  vec2 corner = corner_();
  vec4 place = projection * view * vec4(joint(root).xyz + vec3(0., above, 0.), 1.);
  vec2 middle = floor((place.xy / place.w * .5 + .5) * screen - vec2(.5 * box.z, 0.)) + vec2(0., 4.);
  vec2 unit = .5 * corner + .5;
  gl_Position = vec4(((middle + unit * box.zw) / screen * 2. - 1.) * place.w, 0., place.w);
  at = (box.xy + vec2(unit.x, 1. - unit.y) * box.zw) / atlas;
}`;
const LABEL_FRAGMENT = FRAGMENT + `
uniform sampler2D text;
in vec2 at;
void main() { colour = texture(text, at); }`;

/** A program, with its uniforms' places by name. */
function compiled(gl, vertex, fragment, attributes) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  attributes.forEach((name, place) => gl.bindAttribLocation(program, place, name));
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
    const logs = gl.getAttachedShaders(program).map((shader) => gl.getShaderInfoLog(shader));
    throw new Error("a shader was refused: " + [gl.getProgramInfoLog(program), ...logs].join(" "));
  }
  const uniforms = {};
  const count = gl.getProgramParameter(program, gl.ACTIVE_UNIFORMS) || 0;
  for (let index = 0; index < count; index++) {
    const {name} = gl.getActiveUniform(program, index);
    uniforms[name] = gl.getUniformLocation(program, name);
  }
  return {program, uniforms};
}

/** Drawing with WebGL 2. Throws: an Error where there is none. */
class WebGLDrawing extends Drawing {
  constructor(canvas, parts) {
    super(canvas, parts, TEXELS * Math.ceil(parts.joints / TEXELS));
    this.name = "WebGL";
    // Where graphics are computed in software, edges are blended instead of sampled several times, for half the price.
    const wanted = {alpha: false, antialias: true, powerPreference: "high-performance"};
    this.gl = canvas.getContext("webgl2", {...wanted, failIfMajorPerformanceCaveat: true});
    this.sampled = Boolean(this.gl);
    this.gl ??= canvas.getContext("webgl2", {...wanted, antialias: false});
    if (!this.gl) throw new Error("there is no WebGL 2");
    this.ratios = [this.sampled ? Math.min(devicePixelRatio || 1, 2) : 1];
    this.rows = this.texels.length / 4 / TEXELS;
    if (this.rows > this.gl.getParameter(this.gl.MAX_TEXTURE_SIZE)) throw new Error("there are too many joints");
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => this.build());
    this.build();
  }

  /** All that lies in the graphics memory; called again where that was lost. */
  build() {
    const {gl, parts} = this;
    this.indices = gl.createBuffer();
    const quads = Math.max(parts.bones.ends.length / 2, parts.paths.times.length / 3, parts.labels.length);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.indices);
    const corners = [0, 1, 2, 2, 1, 3], indices = new Uint32Array(6 * quads);
    for (let at = 0; at < indices.length; at++) indices[at] = 4 * Math.floor(at / 6) + corners[at % 6];
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, indices, gl.STATIC_DRAW);
    const bones = [["ends", parts.bones.ends, 2], ["radii", parts.bones.radii, 2]];
    this.bones = this.quads(BONE_VERTEX, BONE_FRAGMENT, bones);
    this.shadows = this.quads(SHADOW_VERTEX, SHADOW_FRAGMENT, bones);
    this.paths = this.quads(
      PATH_VERTEX, PATH_FRAGMENT, [["stretch", parts.paths.stretches, 4], ["when", parts.paths.times, 3]]);
    this.grid = compiled(gl, GRID_VERTEX, GRID_FRAGMENT, ["point"]);
    this.grid.vertices = gl.createVertexArray();
    gl.bindVertexArray(this.grid.vertices);
    this.attribute(0, parts.grid.points, 3);
    this.joints = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.joints);
    gl.texStorage2D(gl.TEXTURE_2D, 1, gl.RGBA32F, TEXELS, this.rows);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    this.labels = compiled(gl, LABEL_VERTEX, LABEL_FRAGMENT, ["root", "above", "box"]);
    this.labels.text = gl.createTexture();
    if (this.colours) this.write(this.colours);
  }

  /** Numbers as a program's attribute: the buffer that they are in. */
  attribute(place, array, size) {
    const {gl} = this, buffer = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, array, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(place);
    if (array instanceof Uint32Array) gl.vertexAttribIPointer(place, size, gl.UNSIGNED_INT, 0, 0);
    else gl.vertexAttribPointer(place, size, gl.FLOAT, false, 0, 0);
    return buffer;
  }

  /** A program over quads, with arrays of numbers for each quad: [name, array, how many of one quad]. */
  quads(vertex, fragment, arrays) {
    const made = compiled(this.gl, vertex, fragment, arrays.map(([name]) => name));
    this.fill(made, arrays);
    return made;
  }

  /** Give a program its quads, instead of those that it had. */
  fill(made, arrays) {
    const {gl} = this;
    made.buffers?.forEach((buffer) => gl.deleteBuffer(buffer));
    gl.deleteVertexArray(made.vertices ?? null);
    made.vertices = gl.createVertexArray();
    gl.bindVertexArray(made.vertices);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.indices);
    made.buffers = arrays.map(([, array, size], place) => {
      const each = new array.constructor(4 * array.length);  // the same four times, for the corners
      for (let at = 0; at < each.length; at++) each[at] = array[size * Math.floor(at / (4 * size)) + at % size];
      return this.attribute(place, each, size);
    });
    made.count = arrays[0][1].length / arrays[0][2];
  }

  /** Write the labels into a texture, in these colours; those that it has no room for are not shown. */
  write(colours) {
    const {gl, labels} = this;
    this.colours = colours;
    const {canvas, boxes} = this.lettered(colours, Math.min(gl.getParameter(gl.MAX_TEXTURE_SIZE), 4096));
    const shown = this.parts.labels.slice(0, boxes.length);
    this.fill(labels, [
      ["root", Uint32Array.from(shown, ({root}) => root), 1],
      ["above", Float32Array.from(shown, ({above}) => above), 1], ["box", new Float32Array(boxes.flat()), 4]]);
    labels.atlas = [canvas.width, canvas.height];
    gl.bindTexture(gl.TEXTURE_2D, labels.text);
    gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, true);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, canvas);
    gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
  }

  use(made, camera) {
    const {gl} = this;
    gl.useProgram(made.program);
    gl.bindVertexArray(made.vertices);
    gl.uniformMatrix4fv(made.uniforms.view, false, camera.view);
    gl.uniformMatrix4fv(made.uniforms.projection, false, camera.projection);
    return made.uniforms;
  }

  draw(camera, colours, shown, now, looping) {
    const {gl, parts, canvas} = this, quads = (count) => gl.drawElements(gl.TRIANGLES, 6 * count, gl.UNSIGNED_INT, 0);
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(...colours.page, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.bindTexture(gl.TEXTURE_2D, this.joints);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, TEXELS, this.rows, gl.RGBA, gl.FLOAT, this.texels);

    // What lies on the ground needs no depth: the eye is above it, and so is everything else.
    gl.disable(gl.DEPTH_TEST);
    gl.enable(gl.BLEND);
    gl.blendEquation(gl.FUNC_ADD);
    gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
    if (shown.grid) {
      const to = this.use(this.grid, camera);
      gl.uniform1f(to.ground, parts.ground);
      gl.uniform3fv(to.middle, parts.grid.middle);
      gl.uniform3fv(to.grid, colours.grid);
      gl.drawArrays(gl.LINES, 0, parts.grid.points.length / 3);
    }
    if (shown.paths) {
      const to = this.use(this.paths, camera);
      gl.uniform1f(to.ground, parts.ground);
      gl.uniform1f(to.now, now);
      gl.uniform1f(to.looping, looping ? 1 : 0);
      gl.uniform1f(to.width, PATH.width * parts.size);
      gl.uniform3fv(to.given, colours.given);
      gl.uniform3fv(to.generated, colours.generated);
      quads(this.paths.count);
    }
    const visible = this.visible(camera);
    let to = this.use(this.shadows, camera);
    gl.uniform1f(to.ground, parts.ground);
    gl.uniform1f(to.size, parts.size);
    gl.uniform3fv(to.page, colours.page);
    gl.uniform1f(to.shade, colours.shade);
    gl.blendEquation(gl.MIN);
    quads(visible.shadows);
    gl.blendEquation(gl.FUNC_ADD);

    gl.enable(gl.DEPTH_TEST);
    if (this.sampled) {
      gl.disable(gl.BLEND);
      gl.enable(gl.SAMPLE_ALPHA_TO_COVERAGE);
    }
    to = this.use(this.bones, camera);
    gl.uniform1f(to.pixel, 2 * LEAST * Math.tan(FIELD / 2) / canvas.height * this.ratio);
    gl.uniform3fv(to.given, colours.given);
    gl.uniform3fv(to.generated, colours.generated);
    quads(visible.bones);
    gl.disable(gl.SAMPLE_ALPHA_TO_COVERAGE);

    if (shown.labels) {
      to = this.use(this.labels, camera);
      gl.disable(gl.DEPTH_TEST);
      gl.enable(gl.BLEND);
      gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
      gl.uniform2f(to.screen, canvas.width, canvas.height);
      gl.uniform2f(to.atlas, ...this.labels.atlas);
      gl.uniform1i(to.joints, 0);
      gl.uniform1i(to.text, 1);
      gl.activeTexture(gl.TEXTURE1);
      gl.bindTexture(gl.TEXTURE_2D, this.labels.text);
      gl.activeTexture(gl.TEXTURE0);
      quads(this.labels.count);
    }
  }

  /** Wait until the graphics are done: reading a pixel does, where finish() alone may not. */
  finish() {
    this.gl.finish();
    this.gl.readPixels(0, 0, 1, 1, this.gl.RGBA, this.gl.UNSIGNED_BYTE, new Uint8Array(4));
  }
}
