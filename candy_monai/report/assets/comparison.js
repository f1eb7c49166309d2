// The sections of a page that compares runs.

function runsSection(content) {
  return sectionOf("overview", "Runs", dataTable(content.overview, { isSorted: false }),
    h("div", { class: "row" }, h("p", { class: "note" }, `Written ${new Date(content.written * 1000).toLocaleString()}.`)));
}

function differencesSection(content) {
  const names = content.runs.map((run) => run.name);
  const groups = content.differences.filter((group) => group.rows.length);
  const same = content.differences.filter((group) => !group.rows.length).map((group) => group.title);
  return sectionOf("differences", "What differs", h("div", { class: "stack" },
    groups.map((group) => h("div", { class: "card" }, h("h3", {}, group.title), plainTable(group.title, ["entry", ...names], group.rows, "matrix")))),
    same.length > 0 && h("p", { class: "note after" }, `The same in all: ${same.join(", ")}.`));
}

function overlaidSection(content) {
  if (!content.figures.length) return null;
  const each = content.runs.map(modesOf);
  const modes = { epoch: (x) => x };
  for (const name of ["time", "step"]) if (each.every((one) => one[name])) modes[name] = (x) => x;
  const axis = new Axis(modes);
  for (const figure of content.figures) for (const one of figure.series) one.of = each[one.run];
  return sectionOf("curves", "Curves", axisControl(axis, modes), chartGrid(content.figures, axis, null));
}

function scoresSection(content, show, known) {
  return sectionOf("cases", "Scores", h("ul", { class: "findings notes" }, content.notes.map((note) => h("li", {}, note))),
    content.tables.length
      ? h("div", { class: "stack" }, content.tables.map((table) => dataTable(table, table.title === "Cases" ? { onView: show, canView: (cell) => known.has(cell) } : { isSorted: table.title !== "Scores" })))
      : h("p", { class: "note" }, "No case has a score in all of these runs."));
}

function sideBySideSection(content, views) {
  const cases = [...new Set(views.flat().map((one) => one.id))];
  const holders = (id) => views.filter((own) => own.some((one) => one.id === id)).length;
  cases.sort((a, b) => holders(b) - holders(a) || a.localeCompare(b, undefined, { numeric: true }));
  if (!cases.length) return { section: sectionOf("viewer", "Images", h("p", { class: "note" }, "None of the runs' pages keeps images.")), show: () => {}, known: new Set() };
  const look = new Look(), side = h("div", { class: "side" });
  const viewers = content.runs.map((run) => new Viewer(look, run.name));
  const open = async (id) => {
    Object.assign(look, { at: null, window: null, hidden: new Set() });
    const found = views.map((own) => own.find((one) => one.id === id) || null);
    await Promise.all(viewers.map((viewer, index) => viewer.show(found[index])));
    const first = viewers.find((viewer) => viewer.one);
    add(clear(side), [viewerControls(look, first, content.channels || [])]);
  };
  const picker = choice("Case", cases.map((id) => [id, `${id} (${holders(id)} of ${views.length} runs)`]), cases[0], open);
  const section = sectionOf("viewer", "Images", h("div", { class: "row" }, picker, content.view_note && h("span", { class: "note" }, content.view_note)),
    help("viewer-help", VIEWER_HELP), h("div", { class: "card view-grid under" }, h("div", { class: "beside" }, viewers.map((viewer) => viewer.element)), side));
  open(cases[0]);
  const show = (id) => {
    if (!cases.includes(id)) return;
    picker.list.value = id;
    open(id);
    section.scrollIntoView({ block: "start" });
    picker.list.focus({ preventScroll: true });
  };
  return { section, show, known: new Set(cases) };
}
