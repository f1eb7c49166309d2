// Elements, numbers, theme. Every text becomes a text node: nothing that a dataset or a log holds is read as markup.

const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const data = (id) => JSON.parse(byId(id).textContent || "null");

function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

function assign(element, attributes) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  return element;
}

const h = (tag, attributes, ...children) => add(assign(document.createElement(tag), attributes), children);
const s = (tag, attributes, ...children) => add(assign(document.createElementNS(SVG, tag), attributes), children);
const clear = (element) => { element.replaceChildren(); return element; };

let counter = 0;
const newId = (what) => `${what}-${++counter}`;
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

function number(value, digits = 4) {
  if (!isNumber(value)) return value === null || value === undefined ? "–" : String(value);
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return value.toExponential(2).replace("e+", "e");
  if (Number.isInteger(value)) return String(value);
  return value.toFixed(clamp(digits - 1 - Math.floor(Math.log10(size)) + (size < 1 ? -1 : 0), 0, digits));
}

function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds < 1) return `${number(seconds, 2)} s`;
  if (seconds < 90) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = seconds / 60;
  if (minutes < 90) return `${minutes < 10 ? minutes.toFixed(1) : Math.round(minutes)} min`;
  const hours = minutes / 60;
  return hours < 48 ? `${hours.toFixed(1)} h` : `${(hours / 24).toFixed(1)} d`;
}

// What a screen reader is told when something changes without a change of focus.
const announcer = h("div", { class: "hidden", role: "status", "aria-live": "polite" });
let announcing = 0;
function announce(text) {
  clearTimeout(announcing);
  announcing = setTimeout(() => { announcer.textContent = text; }, 200);
}

// Storage may be refused for a file; the choices then last as long as the page.
function remembered(name) {
  try { return sessionStorage.getItem(`candy-${name}`); } catch { return null; }
}
function remember(name, value) {
  try { sessionStorage.setItem(`candy-${name}`, value); } catch { /* lasts as long as the page */ }
}

function checkbox(label, checked, change, more = {}) {
  const box = h("input", { type: "checkbox", checked, onchange: () => change(box.checked) });
  return Object.assign(h("label", { class: `check ${more.class || ""}`, title: more.title }, box, h("span", {}, label)), { box });
}

function choice(label, options, selected, change) {
  const list = h("select", { onchange: () => change(list.value) },
    options.map(([value, text]) => h("option", { value }, text)));
  list.value = selected;
  return Object.assign(h("label", { class: "field" }, h("span", {}, label), list), { list });
}

function slider(label, { min, max, step = 1, value }, change) {
  const input = h("input", { type: "range", min, max, step, oninput: () => change(Number(input.value)) });
  input.value = value;
  return Object.assign(h("label", { class: "field slide" }, h("span", {}, label), input), { input });
}

// Buttons of which one is pressed.
function segments(label, options, selected, change) {
  const name = newId("segment");
  const group = h("fieldset", { class: "segments" }, h("legend", { class: "hidden" }, label));
  for (const [value, text, title] of options) {
    const input = h("input", { type: "radio", name, value, checked: value === selected, onchange: () => change(value) });
    group.append(h("label", { title }, input, h("span", {}, text)));
  }
  return group;
}

function copyButton(text, what) {
  const button = h("button", { type: "button", class: "quiet", "aria-label": `Copy: ${what}` }, "Copy");
  button.addEventListener("click", async () => {
    let done = true;
    try { await navigator.clipboard.writeText(text()); } catch { done = copyBySelection(text()); }
    button.textContent = done ? "Copied" : "Select and copy";
    announce(done ? "Copied" : "Copying is not allowed here; select the text");
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  });
  return button;
}

function copyBySelection(text) {
  const area = h("textarea", { class: "hidden", "aria-hidden": "true", tabindex: "-1" });
  area.value = text;
  document.body.append(area);
  area.select();
  let done = false;
  try { done = document.execCommand("copy"); } catch { done = false; }
  area.remove();
  return done;
}

function themeButton() {
  const order = ["auto", "light", "dark"];
  const button = h("button", { type: "button", class: "quiet" });
  const show = (theme) => {
    if (theme === "auto") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.setAttribute("data-theme", theme);
    button.textContent = { auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark" }[theme];
    button.setAttribute("aria-label", `Colours: ${theme}. Change`);
    remember("theme", theme);
  };
  let theme = order.includes(remembered("theme")) ? remembered("theme") : "auto";
  button.addEventListener("click", () => { theme = order[(order.indexOf(theme) + 1) % 3]; show(theme); });
  show(theme);
  return button;
}
