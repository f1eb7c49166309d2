// The slice viewer: three planes of a case, window and level, reference, prediction and where they disagree.

async function inflated(text) {
  const packed = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function decodeImage(text, width) {
  const values = await inflated(text); // differences along each row
  for (let row = 0; row < values.length; row += width) {
    for (let i = row + 1; i < row + width; i++) values[i] = values[i] + values[i - 1];
  }
  return values;
}

async function decodeIds(text, count) {
  if (text === null) return null;
  const bytes = await inflated(text);
  if (bytes.length === count) return bytes;
  const view = new DataView(bytes.buffer);
  return Uint16Array.from({ length: count }, (_, i) => view.getUint16(2 * i, true));
}

const decoded = new Map();
function decodedCase(one) {
  if (!decoded.has(one)) {
    const [nx, ny, nz] = one.size, count = nx * ny * nz;
    decoded.set(one, Promise.all([
      Promise.all(one.image.map((text) => decodeImage(text, nx))), decodeIds(one.label, count), decodeIds(one.prediction, count),
    ]).then(([channels, label, prediction]) => ({ channels, label, prediction })));
  }
  return decoded.get(one);
}

const PLANES = [
  { name: "axial", normal: 2, right: 0, down: 1, sides: ["R", "L", "A", "P"] },
  { name: "coronal", normal: 1, right: 0, down: 2, sides: ["R", "L", "S", "I"] },
  { name: "sagittal", normal: 0, right: 1, down: 2, sides: ["A", "P", "S", "I"] },
];
const MISSED = [255, 45, 120], EXTRA = [255, 214, 0];

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

// What is shown of a case; two viewers side by side share one.
class Look {
  constructor() {
    Object.assign(this, { label: true, prediction: true, disagreement: false, opacity: 0.35, channel: 0, window: null, at: null, hidden: new Set() });
    this.viewers = [];
  }

  set(change) {
    Object.assign(this, change);
    for (const viewer of this.viewers) viewer.draw();
  }
}

class Viewer {
  constructor(look, heading = "") {
    this.look = look;
    this.one = null;
    this.heading = heading;
    this.grid = h("div", { class: "planes" });
    this.caption = h("p", { class: "view-caption" });
    this.element = h("div", { class: "viewer" }, heading && h("h3", {}, heading), this.caption, this.grid);
    this.scratch = document.createElement("canvas");
    look.viewers.push(this);
    new ResizeObserver(() => this.draw()).observe(this.grid);
  }

  async show(one) {
    this.one = one;
    this.arrays = null;
    this.planes = [];
    if (!one) {
      this.caption.textContent = "This run's page keeps no images of this case.";
      clear(this.grid);
      return;
    }
    const known = one.score === null ? "" : ` · score ${number(one.score)}`;
    const place = one.rank === 1 ? "worst" : one.rank === one.of ? "best" : `place ${one.of - one.rank + 1}`;
    const rank = one.rank && one.of > 1 ? ` · ${place} of ${one.of}` : "";
    this.caption.textContent = `${one.id}${known}${rank}${one.epoch ? ` · epoch ${one.epoch}` : ""}`;
    this.build();
    try {
      const arrays = await decodedCase(one);
      if (this.one !== one) return;
      this.arrays = arrays;
    } catch (error) {
      this.caption.textContent = `The images cannot be unpacked here (${error && error.message}): a browser of 2023 or later can.`;
      return;
    }
    if (!this.look.at) this.look.at = this.telling();
    this.element.setAttribute("data-ready", one.id);
    this.look.set({});
  }

  build() {
    const { one } = this;
    clear(this.grid);
    const flat = one.size[2] === 1;
    this.grid.classList.toggle("flat", flat);
    const [x, y, z] = one.size.map((length, axis) => length * one.spacing[axis]);
    this.grid.classList.toggle("tall", z / x + z / y > 1.75 * y / x); // coronal above sagittal would leave a gap below axial
    this.planes = (flat ? PLANES.slice(0, 1) : PLANES).map((plane) => {
      const canvas = h("canvas", { "aria-hidden": "true" });
      const count = one.size[plane.normal];
      const frame = h("div", {
        class: "plane", tabindex: "0", role: "slider", "aria-label": `${this.heading ? `${this.heading}: ` : ""}${plane.name} slice`,
        "aria-valuemin": "1", "aria-valuemax": String(one.whole[plane.normal]), "aria-describedby": "viewer-help",
      }, canvas, one.oriented && plane.sides.map((side, i) => h("span", { class: `side side-${i}`, "aria-hidden": "true" }, side)));
      const range = count > 1 && slider(flat ? "slice" : plane.name, { min: 0, max: count - 1, value: 0 }, (value) => this.go(plane.normal, value));
      const text = h("span", { class: "plane-number" });
      const built = { ...plane, canvas, frame, range, text };
      this.listen(built);
      this.grid.append(h("div", { class: `plane-cell ${plane.name}` }, frame, h("div", { class: "plane-foot" }, range, text)));
      return built;
    });
  }

  // The slices with most of the reference, each class having the same weight; without one the middle.
  telling() {
    const { one, arrays } = this, ids = arrays.label || arrays.prediction;
    if (!ids) return one.size.map((length) => length >> 1);
    const best = (of) => {
      const counts = one.size.map((length) => new Map());
      let i = 0;
      for (let z = 0; z < one.size[2]; z++) for (let y = 0; y < one.size[1]; y++) for (let x = 0; x < one.size[0]; x++, i++) {
        const id = of[i];
        if (!id) continue;
        [x, y, z].forEach((place, axis) => {
          if (!counts[axis].has(id)) counts[axis].set(id, new Uint32Array(one.size[axis]));
          counts[axis].get(id)[place]++;
        });
      }
      return counts.map((byClass, axis) => {
        const votes = new Float64Array(one.size[axis]);
        for (const counted of byClass.values()) { const most = Math.max(...counted); counted.forEach((value, place) => { votes[place] += value / most; }); }
        let place = -1;
        votes.forEach((value, index) => { if (value > 0 && (place < 0 || value > votes[place])) place = index; });
        return place;
      });
    };
    let found = best(ids);
    if (found[0] < 0 && arrays.prediction) found = best(arrays.prediction);
    return found.map((place, axis) => (place < 0 ? one.size[axis] >> 1 : place));
  }

  // The slices with most voxels on which reference and prediction disagree.
  worstPlace() {
    const { one, arrays } = this, { label, prediction } = arrays;
    if (!label || !prediction) return null;
    const counts = one.size.map((length) => new Uint32Array(length));
    let i = 0, any = false;
    for (let z = 0; z < one.size[2]; z++) for (let y = 0; y < one.size[1]; y++) for (let x = 0; x < one.size[0]; x++, i++) {
      if (label[i] === prediction[i]) continue;
      any = true;
      counts[0][x]++; counts[1][y]++; counts[2][z]++;
    }
    return any ? counts.map((counted) => counted.reduce((best, value, place) => (value > counted[best] ? place : best), 0)) : null;
  }

  go(axis, place) {
    const at = [...this.look.at];
    at[axis] = clamp(Math.round(place), 0, this.one.size[axis] - 1);
    this.look.set({ at });
  }

  slice(plane, values) {
    const { size } = this.one, [nx, ny] = size, place = clamp(this.look.at[plane.normal], 0, size[plane.normal] - 1);
    const width = size[plane.right], height = size[plane.down], steps = [1, nx, nx * ny];
    const start = place * steps[plane.normal], along = steps[plane.right], down = steps[plane.down];
    const found = new values.constructor(width * height);
    for (let row = 0, i = 0; row < height; row++) for (let column = 0, from = start + row * down; column < width; column++, from += along) found[i++] = values[from];
    return { values: found, width, height };
  }

  draw() {
    if (!this.arrays || !this.look.at) return;
    this.grid.classList.toggle("flat", this.one.size[2] === 1);
    for (const plane of this.planes) this.drawPlane(plane);
  }

  drawPlane(plane) {
    const { one, arrays, look } = this;
    const sizeMm = [plane.right, plane.down].map((axis) => one.size[axis] * one.spacing[axis]);
    const room = plane.frame.clientWidth;
    if (!room) return;
    const most = this.heading ? 360 : Math.max(220, Math.min(window.innerHeight * 0.68, 620));
    const scale = Math.min(room / sizeMm[0], most / sizeMm[1]);
    const ratio = window.devicePixelRatio || 1;
    const width = Math.max(1, Math.round(sizeMm[0] * scale)), height = Math.max(1, Math.round(sizeMm[1] * scale));
    const { canvas } = plane;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    const first = this.slice(plane, arrays.channels[0]);
    const pixels = new ImageData(first.width, first.height);
    this.paintImage(plane, pixels);
    this.put(context, pixels, true);
    const label = arrays.label && this.slice(plane, arrays.label).values;
    const prediction = arrays.prediction && this.slice(plane, arrays.prediction).values;
    const overlay = new ImageData(first.width, first.height);
    if (this.paintIds(overlay, label, prediction)) this.put(context, overlay, false);
    if (look.label && label) this.outline(context, label, first.width, first.height);
    const place = clamp(look.at[plane.normal], 0, one.size[plane.normal] - 1);
    const shown = one.first[plane.normal] + place * one.factors[plane.normal] + 1;
    plane.text.textContent = one.whole[plane.normal] === 1 ? "" : `${one.size[2] === 1 ? "" : plane.name} ${shown} / ${one.whole[plane.normal]}`;
    plane.frame.setAttribute("aria-valuenow", String(shown));
    plane.frame.setAttribute("aria-valuetext", `slice ${shown} of ${one.whole[plane.normal]}${this.inWords(label, prediction)}`);
    if (plane.range) plane.range.input.value = place;
  }

  inWords(label, prediction) {
    const ids = new Set([...(label || []), ...(prediction || [])]);
    const names = this.one.classes.filter((found) => ids.has(found.id)).map((found) => found.name);
    return names.length ? `: ${names.slice(0, 8).join(", ")}` : "";
  }

  put(context, pixels, smooth) {
    this.scratch.width = pixels.width;
    this.scratch.height = pixels.height;
    this.scratch.getContext("2d").putImageData(pixels, 0, 0);
    context.imageSmoothingEnabled = smooth;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.scratch, 0, 0, context.canvas.width, context.canvas.height);
  }

  window() {
    const channel = clamp(this.look.channel, 0, this.one.image.length - 1);
    return (this.look.window && this.look.window[channel]) || this.one.windows[channel];
  }

  paintImage(plane, pixels) {
    const { one, arrays, look } = this, [low, high] = this.window();
    const channel = clamp(look.channel, 0, one.image.length - 1), [least, most] = one.limits[one.rgb ? 0 : channel];
    const table = new Uint8ClampedArray(256);
    for (let value = 0; value < 256; value++) {
      const intensity = least + (most - least) * value / 255;
      table[value] = high > low ? Math.round(255 * (intensity - low) / (high - low)) : 128;
    }
    const parts = (one.rgb ? [0, 1, 2] : [channel, channel, channel]).map((index) => this.slice(plane, arrays.channels[index]).values);
    for (let i = 0, j = 0; i < parts[0].length; i++, j += 4) {
      pixels.data[j] = table[parts[0][i]];
      pixels.data[j + 1] = table[parts[1][i]];
      pixels.data[j + 2] = table[parts[2][i]];
      pixels.data[j + 3] = 255;
    }
  }

  colors() {
    if (this.colorsOf !== this.one) {
      this.colorsOf = this.one;
      this.table = new Map(this.one.classes.map((found) => [found.id, rgb(found.color)]));
    }
    return this.table;
  }

  paintIds(overlay, label, prediction) {
    const { look } = this, colors = this.colors(), alpha = Math.round(255 * look.opacity);
    let any = false;
    const put = (i, color, opacity) => { any = true; overlay.data.set(color, 4 * i); overlay.data[4 * i + 3] = opacity; };
    for (let i = 0; i < overlay.width * overlay.height; i++) {
      const truth = label ? label[i] : 0, found = prediction ? prediction[i] : 0;
      if (look.disagreement && label && prediction && truth !== found) {
        const hidden = look.hidden.has(truth || found) && look.hidden.has(found || truth);
        if (!hidden) { put(i, truth ? MISSED : EXTRA, Math.max(alpha, 150)); continue; }
      }
      if (look.prediction && found && colors.has(found) && !look.hidden.has(found)) put(i, colors.get(found), alpha);
    }
    return any;
  }

  // Lines along the borders of the reference's classes.
  outline(context, label, width, height) {
    const { look } = this, colors = this.colors();
    const sx = context.canvas.width / width, sy = context.canvas.height / height;
    const paths = new Map();
    const line = (id, x0, y0, x1, y1) => {
      if (!id || look.hidden.has(id) || !colors.has(id)) return;
      if (!paths.has(id)) paths.set(id, new Path2D());
      paths.get(id).moveTo(x0 * sx, y0 * sy);
      paths.get(id).lineTo(x1 * sx, y1 * sy);
    };
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
      const id = label[y * width + x];
      const left = x ? label[y * width + x - 1] : 0, up = y ? label[(y - 1) * width + x] : 0;
      if (id !== left) line(id || left, x, y, x, y + 1);
      if (id !== up) line(id || up, x, y, x + 1, y);
    }
    const ratio = window.devicePixelRatio || 1;
    const thin = Math.min(sx, sy) < 1.5 * ratio;
    for (const [id, path] of paths) {
      if (!thin) { context.strokeStyle = "rgba(0,0,0,.55)"; context.lineWidth = 3 * ratio; context.stroke(path); }
      context.strokeStyle = `rgb(${colors.get(id).join(",")})`;
      context.lineWidth = (thin ? 0.9 : 1.5) * ratio;
      context.stroke(path);
    }
  }

  listen(plane) {
    const { frame, canvas } = plane;
    let last = null;
    const move = (event) => {
      const box = canvas.getBoundingClientRect(), at = [...this.look.at];
      at[plane.right] = clamp(Math.floor((event.clientX - box.left) / box.width * this.one.size[plane.right]), 0, this.one.size[plane.right] - 1);
      at[plane.down] = clamp(Math.floor((event.clientY - box.top) / box.height * this.one.size[plane.down]), 0, this.one.size[plane.down] - 1);
      this.look.set({ at });
    };
    frame.addEventListener("contextmenu", (event) => event.preventDefault());
    frame.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "touch" || !this.arrays) return;
      last = { x: event.clientX, y: event.clientY, window: event.shiftKey || event.button === 2 };
      frame.setPointerCapture(event.pointerId);
      if (!last.window) move(event);
    });
    frame.addEventListener("pointermove", (event) => {
      if (!last) return;
      if (last.window) this.adjust((event.clientX - last.x) / 200, (event.clientY - last.y) / 200);
      else move(event);
      Object.assign(last, { x: event.clientX, y: event.clientY });
    });
    for (const end of ["pointerup", "pointercancel"]) frame.addEventListener(end, () => { last = null; });
    frame.addEventListener("wheel", (event) => {
      if (document.activeElement !== frame || event.ctrlKey) return; // so that the page still scrolls
      event.preventDefault();
      this.go(plane.normal, this.look.at[plane.normal] + Math.sign(event.deltaY));
    }, { passive: false });
    frame.addEventListener("keydown", (event) => this.key(event, plane));
  }

  // Widens and moves the window by shares of the intensities' range.
  adjust(wider, up) {
    const channel = clamp(this.look.channel, 0, this.one.image.length - 1), [least, most] = this.one.limits[channel];
    const [low, high] = this.window(), range = most - least;
    const width = clamp(high - low + wider * range, range / 200, 4 * range), level = clamp((low + high) / 2 + up * range, least - range, most + range);
    const given = [...(this.look.window || this.one.windows)];
    given[channel] = [level - width / 2, level + width / 2];
    this.look.set({ window: given });
    if (this.look.changed) this.look.changed();
  }

  key(event, plane) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.arrays) return;
    const here = this.look.at[plane.normal], count = this.one.size[plane.normal];
    const places = { ArrowUp: here + 1, ArrowRight: here + 1, ArrowDown: here - 1, ArrowLeft: here - 1, PageUp: here + 10, PageDown: here - 10, Home: 0, End: count - 1 };
    const toggles = { r: "label", p: "prediction", d: "disagreement" };
    if (event.key in places) this.go(plane.normal, places[event.key]);
    else if (event.key in toggles) { this.look.set({ [toggles[event.key]]: !this.look[toggles[event.key]] }); if (this.look.changed) this.look.changed(); }
    else if (event.key === "w" || event.key === "W") this.adjust(event.key === "w" ? 0.05 : -0.05, 0);
    else if (event.key === "l" || event.key === "L") this.adjust(0, event.key === "l" ? 0.05 : -0.05);
    else return;
    event.preventDefault();
  }
}

// The controls of a look, for the case that a viewer shows.
function viewerControls(look, viewer, channelNames) {
  const { one } = viewer, panel = h("div", { class: "controls" });
  const toggles = {
    label: checkbox("Reference, as an outline", look.label, (on) => look.set({ label: on })),
    prediction: checkbox("Prediction, filled", look.prediction, (on) => look.set({ prediction: on })),
    disagreement: checkbox("Disagreement", look.disagreement, (on) => look.set({ disagreement: on })),
  };
  toggles.label.box.disabled = one.label === null;
  toggles.prediction.box.disabled = one.prediction === null;
  toggles.disagreement.box.disabled = one.label === null || one.prediction === null;
  const opacity = slider("Opacity", { min: 0, max: 1, step: 0.05, value: look.opacity }, (value) => look.set({ opacity: value }));
  const channel = () => clamp(look.channel, 0, one.image.length - 1);
  const range = () => one.limits[channel()][1] - one.limits[channel()][0] || 1;
  const level = slider("Level", { min: -0.5, max: 1.5, step: 0.01, value: 0.5 }, () => apply());
  const width = slider("Window", { min: 0.01, max: 2, step: 0.01, value: 1 }, () => apply());
  const apply = () => {
    const [least] = one.limits[channel()], middle = least + Number(level.input.value) * range(), wide = Number(width.input.value) * range();
    const given = [...(look.window || one.windows)];
    given[channel()] = [middle - wide / 2, middle + wide / 2];
    look.set({ window: given });
  };
  look.changed = () => {
    const [low, high] = viewer.window(), [least] = one.limits[channel()];
    level.input.value = ((low + high) / 2 - least) / range();
    width.input.value = (high - low) / range();
    for (const name of Object.keys(toggles)) toggles[name].box.checked = look[name];
  };
  look.changed();
  const reset = h("button", { type: "button", class: "quiet", onclick: () => { look.set({ window: null }); look.changed(); } }, "Reset window");
  const find = h("button", { type: "button", class: "quiet", onclick: () => {
    const at = viewer.arrays && viewer.worstPlace();
    if (at) look.set({ at, disagreement: true });
    else announce("Reference and prediction agree everywhere");
    look.changed();
  } }, "Go to the largest disagreement");
  find.disabled = toggles.disagreement.box.disabled;
  add(panel, [
    h("fieldset", {}, h("legend", {}, "Overlays"), Object.values(toggles), opacity,
      h("p", { class: "key-line" }, h("span", {}, h("i", { class: "swatch missed" }), "missed, or another class"), h("span", {}, h("i", { class: "swatch extra" }), "not in the reference")), find),
    h("fieldset", {}, h("legend", {}, "Image"),
      one.image.length > 1 && !one.rgb && choice("Channel", one.image.map((_, i) => [String(i), channelNames[i] || `channel ${i}`]), String(channel()),
        (value) => { look.set({ channel: Number(value) }); look.changed(); }),
      level, width, reset),
    classList(look, one),
  ]);
  return panel;
}

// The classes of a case, those at the bottom that are found best; a box hides one.
function classList(look, one) {
  if (!one.classes.length) return h("p", { class: "note" }, "Neither the reference nor the prediction holds a class.");
  const sorted = [...one.classes].sort((a, b) => (a.dice ?? -1) - (b.dice ?? -1) || a.id - b.id);
  const remark = { label: "missed", prediction: "not in the reference", both: "" };
  return h("fieldset", { class: "classes" }, h("legend", {}, `Classes (${one.classes.length})`),
    h("div", { class: "class-list" }, sorted.map((found) => {
      const line = checkbox(found.name, !look.hidden.has(found.id), (on) => {
        if (on) look.hidden.delete(found.id); else look.hidden.add(found.id);
        look.set({});
      }, { class: "class" });
      line.prepend(h("i", { class: "swatch", "--c": found.color }));
      return h("div", { class: "class-line" }, line, remark[found.where] && h("em", {}, remark[found.where]),
        h("span", { class: "num" }, one.label === null || one.prediction === null ? "" : number(found.dice)));
    })));
}
