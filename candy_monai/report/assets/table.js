// Tables that sort by a click on a heading and filter by words, or by conditions such as Dice<0.8.

const MOST_ROWS = 200;

// An infinite distance is a text, since JSON has no number for it, and is compared as one.
const compared = (cell) => (cell === "∞" ? Infinity : cell === "-∞" ? -Infinity : cell);

function dataTable(table, { onView = null, canView = () => false, isSorted = true } = {}) {
  let sorted = null, filter = "", all = false;
  const decimals = table.columns.map((column, index) => {
    const values = table.rows.map((row) => row[index]).filter(isNumber);
    const most = Math.max(0, ...values.map(Math.abs));
    return values.every(Number.isInteger) ? 0 : most < 10 ? 4 : most < 100 ? 2 : 1;
  });
  const ranges = table.columns.map((column, index) => {
    if (!column.is_number || !column.better) return null;
    const values = table.rows.map((row) => row[index]).filter(isNumber);
    return values.length > 1 ? [Math.min(...values), Math.max(...values)] : null;
  });
  const body = h("tbody", {}), count = h("span", { class: "count", role: "status" });
  const headings = table.columns.map((column, index) => {
    const button = h("button", { type: "button", onclick: () => sort(index) }, column.name, h("i", { class: "arrow", "aria-hidden": "true" }));
    return h("th", { scope: "col", class: column.is_number ? "num" : "", "aria-sort": "none" }, button);
  });
  const input = h("input", { type: "search", placeholder: "words, or Dice<0.8", oninput: () => { filter = input.value; draw(); } });
  const more = h("button", { type: "button", class: "quiet", hidden: true, onclick: () => { all = true; draw(); } }, "Show all rows");

  function sort(index) {
    const first = table.columns[index].is_number ? (table.columns[index].better === "lower" ? -1 : 1) : 1; // the worst on top
    sorted = sorted && sorted[0] === index ? [index, -sorted[1]] : [index, first];
    headings.forEach((heading, i) => heading.setAttribute("aria-sort", i !== index ? "none" : sorted[1] > 0 ? "ascending" : "descending"));
    draw();
  }

  function conditions() {
    return filter.trim().split(/\s+(?=\S)/).filter(Boolean).map((word) => {
      const found = /^(.*?)(<=|>=|<|>|=)(-?[\d.]+(?:e-?\d+)?)$/.exec(word);
      const index = found ? table.columns.findIndex((column) => column.name.toLowerCase().includes(found[1].toLowerCase()) && column.is_number) : -1;
      if (index < 0) return (row) => row.some((cell) => String(cell ?? "").toLowerCase().includes(word.toLowerCase()));
      const limit = Number(found[3]);
      const holds = { "<": (v) => v < limit, ">": (v) => v > limit, "<=": (v) => v <= limit, ">=": (v) => v >= limit, "=": (v) => v === limit }[found[2]];
      return (row) => typeof compared(row[index]) === "number" && holds(compared(row[index]));
    });
  }

  function order(a, b) {
    const [index, sign] = sorted, [x, y] = [a[index], b[index]].map(table.columns[index].is_number ? compared : (cell) => cell);
    if (x === null || y === null) return (x === null) - (y === null); // nothing comes last either way
    if (typeof x === "number" && typeof y === "number") return sign * ((x > y) - (x < y));
    return sign * String(x).localeCompare(String(y), undefined, { numeric: true });
  }

  function draw() {
    const wanted = conditions();
    let rows = table.rows.filter((row) => wanted.every((holds) => holds(row)));
    if (sorted) rows = [...rows].sort(order);
    const shown = all ? rows : rows.slice(0, MOST_ROWS);
    more.hidden = shown.length === rows.length;
    count.textContent = rows.length === table.rows.length ? `${rows.length} ${rows.length === 1 ? "row" : "rows"}` : `${rows.length} of ${table.rows.length} rows`;
    add(clear(body), shown.map((row) => h("tr", {}, row.map((cell, index) => {
      if (index === 0) {
        const text = canView(cell) ? h("button", { type: "button", class: "link", title: "Look at this case", onclick: () => onView(cell) }, String(cell)) : String(cell ?? "–");
        return h("th", { scope: "row", class: String(cell ?? "").length > 32 ? "long" : "" }, text);
      }
      const range = ranges[index], attributes = { class: table.columns[index].is_number ? "num" : "" };
      if (range && isNumber(cell) && range[1] > range[0]) {
        const share = (cell - range[0]) / (range[1] - range[0]);
        attributes["--bar-end"] = `${Math.round(100 * (table.columns[index].better === "lower" ? 1 - share : share))}%`;
        attributes.class += " bar";
      }
      return h("td", attributes, isNumber(cell) ? cell.toFixed(decimals[index]) : String(cell ?? "–"));
    }))));
  }

  const ranked = table.columns.findIndex((column) => column.better);
  if (ranked >= 0 && isSorted) sort(ranked); else draw();
  const title = newId("table");
  return h("section", { class: "card" },
    h("div", { class: "card-head" }, h("h3", { id: title }, table.title), count, h("span", { class: "grow" }),
      table.rows.length > 5 && h("label", { class: "field" }, h("span", {}, "Filter"), input)),
    table.note && h("p", { class: "note" }, table.note),
    h("div", { class: "scroll", tabindex: "0", role: "group", "aria-labelledby": title },
      h("table", { class: "data" }, h("thead", {}, h("tr", {}, headings)), body)),
    more);
}

// Names and values.
function factList(rows, className = "") {
  return h("dl", { class: `facts ${className}` }, rows.map(([name, value]) => h("div", {}, h("dt", {}, breakable(name)), h("dd", {}, breakable(value)))));
}

// A text that may be broken within long names, paths and lists: after their signs, and between the words of a class's name.
function breakable(text) {
  return String(text).split(/(?<=[_/,])|(?<=[a-z])(?=[A-Z])/).flatMap((part, index) => (index ? [h("wbr", {}), part] : [part]));
}

// A table that neither sorts nor filters.
function plainTable(label, headings, rows, className = "plain") {
  return h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": label },
    h("table", { class: `data ${className}` }, h("thead", {}, h("tr", {}, headings.map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, index) => index === 0 ? h("th", { scope: "row" }, cell) : h("td", {}, cell)))))));
}
