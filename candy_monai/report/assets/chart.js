// Curves: hover, zoom by dragging, logarithmic axis, series that can be hidden. All charts of a page share their x axis.

const HEIGHT = 232;
const MARGIN = { top: 10, right: 14, bottom: 30, left: 52 };

function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((part) => part * power).find((size) => size >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) {
    found.push(Math.abs(value) < step * 1e-9 ? 0 : Number(value.toPrecision(12)));
  }
  return found;
}

// Epochs and steps are whole numbers; a narrow chart of a short run gets closer ones, so that two are shown at least.
function wholeTicks(low, high, count) {
  for (const more of [1, 2, 4]) {
    const found = ticks(low, high, more * count).filter(Number.isInteger);
    if (found.length > 1) return found;
  }
  return [Math.ceil(low)];
}

const TIMES = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
function timeTicks(low, high, count) {
  const step = TIMES.find((size) => size >= (high - low) / count);
  if (!step || high - low < 3) return ticks(low, high, count);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) found.push(value);
  return found;
}

function timeText(seconds) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const at = parts.findIndex(([size]) => seconds >= size);
  if (at < 0) return seconds === 0 ? "0" : `${number(seconds, 2)} s`;
  const [size, unit] = parts[at], whole = Math.floor(seconds / size), rest = seconds - whole * size;
  const next = parts[at + 1];
  return next && Math.round(rest / next[0]) ? `${whole} ${unit} ${Math.round(rest / next[0])} ${next[1]}` : `${whole} ${unit}`;
}

function logTicks(low, high) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high)), found = [];
  const parts = last - first > 3 ? [1] : last - first > 1 ? [1, 3] : [1, 2, 5];
  for (let power = first; power <= last; power++) {
    for (const part of parts) {
      const value = part * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) found.push(Number(value.toPrecision(12)));
    }
  }
  return found.length > 1 ? found : ticks(low, high, 4);
}

// The texts of an axis have as many decimals as its steps need.
function tickText(value, steps, log) {
  const step = steps.length > 1 ? Math.abs(steps[1] - steps[0]) : Math.abs(value);
  if (log || !step || Math.abs(value) >= 1e5) return number(value, 2);
  const decimals = -Math.floor(Math.log10(step) + 1e-9) + (/^25/.test(step.toExponential(1).replace(".", "")) ? 1 : 0);
  if (step >= 1e-4) return value.toFixed(clamp(decimals, 0, 5));
  return value ? value.toExponential(clamp(Math.floor(Math.log10(Math.abs(value)) + 1e-9) + decimals, 0, 5)) : "0";
}

// What the charts of a page have in common: over what they are drawn, and which part of it.
class Axis {
  constructor(modes) {
    this.modes = modes;
    this.mode = "epoch";
    this.domain = null;
    this.charts = [];
    this.extents = new Map();
  }

  add(chart) {
    this.charts.push(chart);
    this.extents.clear();
  }

  // From where to where the curves of all charts go.
  get extent() {
    if (!this.extents.has(this.mode)) {
      const ends = this.charts.map((chart) => chart.ends()).filter(([low, high]) => high >= low);
      this.extents.set(this.mode, [Math.min(...ends.map((end) => end[0])), Math.max(...ends.map((end) => end[1]))]);
    }
    return this.extents.get(this.mode);
  }

  set(change) {
    Object.assign(this, change);
    for (const chart of this.charts) chart.draw();
  }

  text(value) {
    return this.mode === "time" ? duration(value) : number(value, 6);
  }
}

class Chart {
  // figure: title, better, series with x, y, name, color and of, which maps an epoch to the axis's unit; bands.
  constructor(figure, axis, forecast) {
    this.figure = figure;
    this.axis = axis;
    this.forecast = forecast;
    this.log = false;
    this.hidden = new Set();
    this.at = null;
    const title = newId("chart");
    this.svg = s("svg", { class: "plot", "aria-hidden": "true", height: HEIGHT });
    this.tip = h("div", { class: "tip", hidden: true });
    this.area = h("div", {
      class: "plot-area", tabindex: "0", role: "slider", "aria-labelledby": title, "aria-orientation": "horizontal",
      "aria-describedby": "chart-help",
    }, this.svg, this.tip);
    this.reset = h("button", { type: "button", class: "quiet", hidden: true, onclick: () => this.axis.set({ domain: null }) }, "Whole run");
    this.legend = h("div", { class: "legend" });
    const positive = figure.series.some((one) => one.y.length) && figure.series.every((one) => one.y.every((y) => y > 0));
    this.element = h("figure", { class: "card chart", "data-key": figure.key },
      h("figcaption", { class: "chart-head" },
        h("h3", { id: title }, figure.title),
        h("span", { class: "grow" }),
        this.reset,
        positive && checkbox("log", false, (on) => { this.log = on; this.draw(); }, { title: "Logarithmic axis" })),
      this.area, this.legend, figure.note && h("p", { class: "note" }, figure.note));
    this.drawLegend();
    this.listen();
    axis.add(this);
    new ResizeObserver(() => this.draw()).observe(this.area);
  }

  drawLegend() {
    const entries = this.figure.series.length > 1 ? this.figure.series : [];
    add(clear(this.legend), entries.map((one) => {
      const button = h("button", { type: "button", class: `key ${one.color.startsWith("#") ? "" : one.color}`, "--c": one.color, "aria-pressed": "true" },
        h("i", {}), one.name);
      button.addEventListener("click", () => {
        if (!this.hidden.delete(one.name)) this.hidden.add(one.name);
        button.setAttribute("aria-pressed", String(!this.hidden.has(one.name)));
        this.draw();
      });
      return button;
    }));
    add(this.legend, (this.figure.bands || []).map((band, index) => h("span", { class: `key band-${index}` }, h("i", { class: "wide" }), band.name)));
    if (this.forecast) add(this.legend, [h("span", { class: "key forecast" }, h("i", { class: "wide" }), "forecast, 80 %")]);
  }

  place(one, x) {
    const of = (one && one.of) || this.axis.modes;
    return of[this.axis.mode] ? of[this.axis.mode](x) : x;
  }

  get shown() {
    return this.figure.series.filter((one) => !this.hidden.has(one.name));
  }

  ends() {
    let low = Infinity, high = -Infinity;
    for (const one of this.figure.series) {
      for (const x of one.x) {
        const value = this.place(one, x);
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
    return [low, high];
  }

  extent() {
    let [low, high] = this.axis.extent;
    if (this.forecast) high = Math.max(high, this.place(null, this.forecast.to));
    if (!(high >= low)) return [0, 1];
    return high > low ? [low, high] : [low - 0.5, high + 0.5];
  }

  draw() {
    const width = Math.round(this.area.clientWidth);
    if (!width) return;
    const whole = this.extent();
    const [x0, x1] = this.axis.domain || whole;
    this.reset.hidden = !this.axis.domain;
    let low = Infinity, high = -Infinity;
    const grow = (value) => { if (isNumber(value) && !(this.log && value <= 0)) { if (value < low) low = value; if (value > high) high = value; } };
    for (const one of this.shown) {
      one.x.forEach((x, i) => { const at = this.place(one, x); if (at >= x0 && at <= x1) grow(one.y[i]); });
    }
    for (const band of this.figure.bands || []) {
      band.x.forEach((x, i) => { const at = this.place(null, x); if (at >= x0 && at <= x1) { grow(band.low[i]); grow(band.high[i]); } });
    }
    if (this.forecast && x1 >= this.place(null, this.forecast.from)) { grow(this.forecast.low); grow(this.forecast.high); }
    if (!(high >= low)) { low = this.log ? 0.1 : 0; high = 1; }
    if (high === low) { const pad = Math.abs(low) * 0.1 || 0.5; low -= this.log ? low * 0.5 : pad; high += pad; }
    if (!this.log) { const pad = (high - low) * 0.06; low -= pad; high += pad; }
    const f = this.log ? Math.log10 : (value) => value;
    const left = MARGIN.left, right = width - MARGIN.right, top = MARGIN.top, bottom = HEIGHT - MARGIN.bottom;
    const px = (x) => left + (x - x0) / (x1 - x0) * (right - left);
    const py = (y) => bottom - (f(y) - f(low)) / (f(high) - f(low)) * (bottom - top);
    this.scale = { x0, x1, left, right, top, bottom, px, py, whole };
    const svg = clear(this.svg);
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const clip = newId("clip");
    svg.append(s("clipPath", { id: clip }, s("rect", { x: left - 6, y: top - 6, width: Math.max(0, right - left + 12), height: bottom - top + 12 })));
    const steps = this.log ? logTicks(low, high) : ticks(low, high, 5);
    for (const value of steps) {
      svg.append(s("line", { class: "grid", x1: left, x2: right, y1: py(value), y2: py(value) }),
        s("text", { class: "tick", x: left - 8, y: py(value) + 4, "text-anchor": "end" }, tickText(value, steps, this.log)));
    }
    const isTime = this.axis.mode === "time";
    for (const value of (isTime ? timeTicks : wholeTicks)(x0, x1, Math.max(2, width / 110))) {
      svg.append(s("text", { class: "tick", x: clamp(px(value), left + 4, right - 4), y: bottom + 18, "text-anchor": "middle" }, isTime ? timeText(value) : number(value, 6)));
    }
    svg.append(s("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
    const drawn = s("g", { "clip-path": `url(#${clip})` });
    svg.append(drawn);
    (this.figure.bands || []).forEach((band, index) => {
      const up = band.x.map((x, i) => [px(this.place(null, x)), py(Math.max(band.high[i], this.log ? low : -Infinity))]);
      const down = band.x.map((x, i) => [px(this.place(null, x)), py(Math.max(band.low[i], this.log ? low : -Infinity))]).reverse();
      drawn.append(s("polygon", { class: `band band-${index}`, points: [...up, ...down].map((p) => p.map((v) => v.toFixed(1)).join(",")).join(" ") }));
    });
    if (this.forecast) {
      const { from, to, best, score, low: least, high: most } = this.forecast;
      const start = [px(this.place(null, from)), py(best)], end = px(this.place(null, to));
      drawn.append(s("polygon", { class: "band forecast", points: `${start.join(",")} ${end},${py(most)} ${end},${py(least)}` }),
        s("line", { class: "line forecast", x1: start[0], y1: start[1], x2: end, y2: py(score) }));
    }
    for (const one of this.shown) {
      const points = [];
      one.x.forEach((x, i) => { if (isNumber(one.y[i]) && !(this.log && one.y[i] <= 0)) points.push([px(this.place(one, x)), py(one.y[i])]); });
      const css = { class: `line ${one.color.startsWith("#") ? "" : one.color}`, "--c": one.color };
      if (points.length > 1) drawn.append(s("polyline", { ...css, points: points.map((p) => `${p[0].toFixed(1)},${p[1].toFixed(1)}`).join(" ") }));
      if (points.length && points.length <= 24) for (const [x, y] of points) drawn.append(s("circle", { ...css, class: `${css.class} point`, cx: x, cy: y, r: points.length > 1 ? 2.2 : 3.5 }));
    }
    this.drawBest(drawn);
    this.cursor = s("g", { class: "cursor" });
    this.band = s("rect", { class: "selection", y: top, height: bottom - top, width: 0, visibility: "hidden" });
    svg.append(this.band, this.cursor);
    this.area.setAttribute("aria-valuemin", String(x0));
    this.area.setAttribute("aria-valuemax", String(x1));
    this.describe();
    this.moveTo(this.at, false);
  }

  drawBest(drawn) {
    const better = this.figure.better;
    const one = better && this.shown.length < 3 && this.shown[this.shown.length - 1];
    if (!one || one.y.length < 2) return;
    let best = 0;
    one.y.forEach((y, i) => { if (better === "higher" ? y > one.y[best] : y < one.y[best]) best = i; });
    const x = this.scale.px(this.place(one, one.x[best])), y = this.scale.py(one.y[best]);
    if (!isNumber(y)) return;
    drawn.append(s("circle", { class: "best", cx: x, cy: y, r: 4.5 }));
  }

  describe() {
    if (this.at !== null) return;
    const parts = this.figure.series.slice(0, 8).map((one) => one.y.length ? `${one.name} ${number(one.y[one.y.length - 1])}` : "");
    this.area.setAttribute("aria-valuenow", String(this.scale.x1));
    this.area.setAttribute("aria-valuetext", `At the end: ${parts.filter(Boolean).join(", ")}`);
  }

  // The places that the cursor can be at, in the axis's unit.
  stops() {
    const found = new Set();
    for (const one of this.shown) for (const x of one.x) {
      const at = this.place(one, x);
      if (at >= this.scale.x0 && at <= this.scale.x1) found.add(at);
    }
    return [...found].sort((a, b) => a - b);
  }

  moveTo(at, spoken = true) {
    this.at = at;
    clear(this.cursor);
    this.tip.hidden = at === null;
    if (at === null) return;
    const { px, py, top, bottom, left, right } = this.scale;
    const rows = [];
    for (const one of this.shown) {
      let near = -1, distance = Infinity;
      one.x.forEach((x, i) => { const away = Math.abs(this.place(one, x) - at); if (away < distance) { distance = away; near = i; } });
      if (near < 0 || distance > Math.max((this.scale.x1 - this.scale.x0) / 40, 0.5)) continue;
      rows.push([one, one.x[near], one.y[near]]);
    }
    if (!rows.length) { this.tip.hidden = true; return; }
    const x = clamp(px(at), left, right);
    this.cursor.append(s("line", { x1: x, x2: x, y1: top, y2: bottom }));
    for (const [one, place, y] of rows) {
      if (this.log && y <= 0) continue;
      this.cursor.append(s("circle", { class: `line ${one.color.startsWith("#") ? "" : one.color}`, "--c": one.color, cx: px(this.place(one, place)), cy: py(y), r: 4 }));
    }
    const epoch = rows[0][1];
    const heading = this.axis.mode === "epoch" ? `epoch ${number(epoch, 6)}` : `${this.axis.mode === "time" ? "after" : "step"} ${this.axis.text(at)} (epoch ${epoch})`;
    const listed = rows.length > 12 ? rows.slice(0, 12) : rows;
    add(clear(this.tip), [h("b", {}, heading), listed.map(([one, , y]) => h("div", { class: "tip-row" },
      h("i", { class: one.color.startsWith("#") ? "" : one.color, "--c": one.color }), h("span", {}, one.name), h("span", { class: "num" }, number(y))))]);
    const side = x > (left + right) / 2;
    this.tip.style.left = side ? "" : `${x + 12}px`;
    this.tip.style.right = side ? `${this.area.clientWidth - x + 12}px` : "";
    if (spoken) {
      this.area.setAttribute("aria-valuenow", String(at));
      this.area.setAttribute("aria-valuetext", `${heading}: ${listed.map(([one, , y]) => `${one.name} ${number(y)}`).join(", ")}`);
    }
  }

  zoom(from, to) {
    const [low, high] = this.scale.whole;
    const domain = [Math.max(low, Math.min(from, to)), Math.min(high, Math.max(from, to))];
    if (domain[1] - domain[0] < (high - low) / 5000) return;
    this.axis.set({ domain: domain[0] <= low && domain[1] >= high ? null : domain });
    announce(this.axis.domain ? `From ${this.axis.text(domain[0])} to ${this.axis.text(domain[1])}` : "The whole run");
  }

  listen() {
    let start = null;
    const at = (event) => {
      const box = this.area.getBoundingClientRect(), { left, right, x0, x1 } = this.scale;
      return x0 + clamp((event.clientX - box.left - left) / (right - left), 0, 1) * (x1 - x0);
    };
    const nearest = (value) => this.stops().reduce((best, one) => best === null || Math.abs(one - value) < Math.abs(best - value) ? one : best, null);
    this.area.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.target.closest(".tip")) return;
      if (event.pointerType === "mouse") { start = at(event); this.area.setPointerCapture(event.pointerId); }
      this.moveTo(nearest(at(event)));
    });
    this.area.addEventListener("pointermove", (event) => {
      if (!this.scale) return;
      const now = at(event);
      this.moveTo(nearest(now));
      if (start === null) return;
      const [a, b] = [this.scale.px(start), this.scale.px(now)].sort((p, q) => p - q);
      assign(this.band, { x: a, width: b - a, visibility: b - a > 4 ? "visible" : "hidden" });
    });
    this.area.addEventListener("pointerup", (event) => {
      if (start === null) return;
      const from = start, to = at(event);
      start = null;
      this.band.setAttribute("visibility", "hidden");
      if (Math.abs(this.scale.px(to) - this.scale.px(from)) > 4) this.zoom(from, to);
    });
    this.area.addEventListener("pointercancel", () => { start = null; });
    this.area.addEventListener("pointerleave", () => { if (start === null && document.activeElement !== this.area) this.moveTo(null); });
    this.area.addEventListener("blur", () => this.moveTo(null));
    this.area.addEventListener("dblclick", () => this.axis.set({ domain: null }));
    this.area.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const stops = this.stops();
    if (!stops.length) return;
    const here = this.at === null ? stops.length - 1 : Math.max(0, stops.indexOf(this.at));
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -Infinity, End: Infinity };
    if (event.key in steps) {
      const next = this.at === null && Math.abs(steps[event.key]) === 1 ? here : here + steps[event.key];
      this.moveTo(stops[clamp(next, 0, stops.length - 1)]);
    } else if (event.key === "+" || event.key === "=" || event.key === "-") {
      const { x0, x1 } = this.scale, middle = this.at === null ? (x0 + x1) / 2 : this.at;
      const factor = event.key === "-" ? 2 : 0.5;
      this.zoom(middle + (x0 - middle) * factor, middle + (x1 - middle) * factor);
    } else if (event.key === "0") {
      this.axis.set({ domain: null });
    } else if (event.key === "Escape") {
      this.moveTo(null);
    } else return;
    event.preventDefault();
  }
}
