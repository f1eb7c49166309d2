// The sections of a page. Each takes the document and returns an element, or null where it has nothing to say.

function sectionOf(id, title, ...content) {
  const heading = newId("section");
  return h("section", { id, "aria-labelledby": heading, class: "section" }, h("h2", { id: heading }, title), content);
}

const help = (id, text) => h("details", { class: "note help" }, h("summary", {}, "Mouse and keyboard"), h("p", { id }, text));

function tilesOf(content) {
  return h("div", { class: "tiles" }, content.tiles.map((tile) => h("div", { class: "tile" },
    h("div", { class: "tile-label" }, tile.label),
    h("div", { class: "tile-value" }, tile.value),
    isNumber(tile.share) && h("div", { class: "bar-track", role: "progressbar", "aria-label": tile.label, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(100 * tile.share) },
      h("div", { class: "bar-fill", "--share": `${100 * tile.share}%` })),
    h("div", { class: "tile-detail" }, tile.detail))));
}

function overviewSection(content) {
  const written = new Date(content.written * 1000);
  const age = h("p", { class: "note" });
  const running = content.status.state === "running", status = byId("status"), words = status.textContent;
  const tell = () => {
    const seconds = Math.max(0, Date.now() / 1000 - content.written);
    const ago = running ? `, ${duration(seconds)} ago` : "";
    // A process that is killed writes no last page.
    const stale = running && seconds > content.status.stale_after_s;
    const doubt = stale ? " Epochs of this run were shorter than that: it may have been killed, or this is a copy of its page. The command under “Write this page again” below shows which." : "";
    age.textContent = `Written ${written.toLocaleString()}${ago}.${doubt}`;
    age.classList.toggle("is-doubtful", stale);
    status.classList.toggle("is-stale", stale);
    status.textContent = stale ? "This run was being trained when this page was written" : words;
  };
  tell();
  if (running) setInterval(tell, 5000);
  let follow = null;
  if (running) {
    let timer = 0;
    const reload = (on) => { remember("follow", on ? "1" : ""); clearInterval(timer); if (on) timer = setInterval(() => location.reload(), 20000); };
    follow = checkbox("Reload every 20 seconds", remembered("follow") === "1", reload);
    reload(follow.box.checked);
  }
  const damaged = (content.damaged || []).map((sentence) => h("p", { class: "note damaged is-doubtful" }, sentence));
  return sectionOf("overview", "Overview", damaged, content.note && h("p", { class: "lead" }, content.note), tilesOf(content), h("div", { class: "row" }, age, follow));
}

function modesOf(curves) {
  const modes = { epoch: (x) => x };
  const { seconds, steps_per_epoch: steps } = curves;
  if (seconds && seconds.length) modes.time = (x) => (x <= 0 ? 0 : x <= seconds.length ? seconds[Math.round(x) - 1] : seconds[seconds.length - 1] * x / seconds.length);
  if (steps) modes.step = (x) => x * steps;
  return modes;
}

function axisControl(axis, modes) {
  const texts = { epoch: "epoch", time: "time", step: "step" };
  const options = Object.keys(texts).filter((name) => modes[name]).map((name) => [name, texts[name]]);
  return options.length > 1 && h("div", { class: "row" }, h("span", { class: "note" }, "Over"), segments("Horizontal axis", options, "epoch", (mode) => axis.set({ mode, domain: null })));
}

const CHART_HELP = "Drag to zoom, double-click for the whole run. With the keyboard: arrows move along the curves, plus and minus zoom, 0 shows the whole run.";

function chartGrid(figures, axis, forecast) {
  return [help("chart-help", CHART_HELP),
    h("div", { class: "charts" }, figures.map((figure) => new Chart(figure, axis, figure.key === "val score" ? forecast : null).element))];
}

function curvesSection(content) {
  const { curves } = content;
  if (!curves) return null;
  if (!curves.figures.length) return sectionOf("curves", "Curves", h("p", { class: "note" }, "No epoch has finished yet."));
  const modes = modesOf(curves), axis = new Axis(modes);
  return sectionOf("curves", "Curves", axisControl(axis, modes), chartGrid(curves.figures, axis, curves.forecast));
}

function tablesSection(content, show, views) {
  if (!content.tables.length) return null;
  const known = new Set(views.map((one) => one.id));
  return sectionOf("cases", "Cases and classes", h("div", { class: "stack" }, content.tables.map((table) =>
    dataTable(table, table.title === "Cases" ? { onView: show, canView: (cell) => known.has(cell) } : {}))));
}

const VIEWER_HELP = "Click or drag in a plane to move the others there; scroll in a plane that is selected. Drag with the right button, or with Shift, for window and level. Keys: arrows, Page Up and Page Down for slices, R, P and D for the overlays, W and L (with Shift: less) for window and level.";

function viewerSection(content, views) {
  const look = new Look(), viewer = new Viewer(look), side = h("div", { class: "side" });
  if (!views.length) {
    return { section: content.kind === "run" ? sectionOf("viewer", "Images", h("p", { class: "note" }, content.tables.length || content.curves.epochs
      ? "This page has no images: it gets them from validations of candy_monai's own trainers whose outputs are label maps. Of a run in another host, or of an earlier version, look for pictures in its folder."
      : "Images come with the first validation.")) : null, show: () => {} };
  }
  const channels = content.channels || [];
  const picker = segments("Case", views.map((one, i) => [String(i), `${one.role}: ${one.id}`, one.score === null ? "" : `score ${number(one.score)}`]), "0", (value) => open(Number(value)));
  const open = (index) => {
    look.at = null; look.window = null; look.hidden = new Set();
    viewer.show(views[index]);
    add(clear(side), [viewerControls(look, viewer, channels)]);
  };
  const section = sectionOf("viewer", "Images", picker, help("viewer-help", VIEWER_HELP), h("div", { class: "card view-grid" }, viewer.element, side));
  open(0);
  const show = (id) => {
    const index = views.findIndex((one) => one.id === id);
    if (index < 0) return;
    picker.querySelectorAll("input")[index].checked = true;
    open(index);
    section.scrollIntoView({ block: "start" });
    section.querySelector(".plane").focus({ preventScroll: true });
  };
  return { section, show };
}

function dataSection(content) {
  const { facts, findings } = content.data || { facts: [], findings: null };
  if (!facts.length && findings === null) return null;
  const found = findings === null ? null : findings.length
    ? h("ul", { class: "findings" }, findings.map((text) => h("li", {}, text)))
    : h("p", { class: "note good" }, "The check of the dataset found nothing unusual.");
  return sectionOf("data", "Data", h("div", { class: "card" }, facts.length > 0 && factList(facts),
    found && [h("h3", {}, "What the check of the dataset found"), found]));
}

function planSection(content) {
  if (!content.plan || !content.plan.length) return null;
  const explained = content.plan.some((choice) => choice.reason);
  const rows = content.plan.map((choice) => explained ? [choice.name, choice.value, choice.reason, h("code", {}, choice.remedy)] : [choice.name, choice.value]);
  return sectionOf("plan", "Plan", h("div", { class: "card" }, plainTable("Plan", explained ? ["entry", "value", "why", "otherwise"] : ["entry", "value"], rows)));
}

function settingsSection(content) {
  if (!content.settings) return null;
  const cards = [h("div", { class: "card" }, h("h3", {}, "Settings"), h("dl", { class: "facts" }, content.settings.map(([name, value, isDefault]) =>
    h("div", { class: isDefault ? "" : "changed" }, h("dt", {}, breakable(name)), h("dd", {}, breakable(value))))), h("p", { class: "note" }, "Those that differ from their defaults are marked."))];
  if (content.parts.length) cards.push(h("div", { class: "card" }, h("h3", {}, "Parts"), factList(content.parts)));
  if (content.environment.length) cards.push(h("div", { class: "card" }, h("h3", {}, "Environment"), factList(content.environment)));
  if (content.budget) {
    cards.push(h("div", { class: "card wide" }, h("h3", {}, "Budget"), factList(content.budget.facts),
      content.budget.candidates.length > 0 && plainTable("What was weighed", ["configuration", "patch", "batch", "seconds a step", "steps", "verdict"],
        content.budget.candidates.map((row) => row.map((cell) => (isNumber(cell) ? number(cell) : String(cell ?? "–")))))));
  }
  return sectionOf("settings", "Settings", h("div", { class: "cards" }, cards));
}

function logSection(content) {
  if (!content.log || !content.log.lines.length) return null;
  const list = h("div", { class: "log scroll", tabindex: "0", role: "group", "aria-label": "Log" });
  const draw = (filter) => {
    const wanted = content.log.lines.filter((line) => line.toLowerCase().includes(filter.toLowerCase()));
    add(clear(list), wanted.map((line) => {
      const found = /^\[([^\]]{19})\] ([\s\S]*)$/.exec(line);
      const said = found ? found[2] : line;  // a metric of an epoch may be called an error
      const kind = /^Epoch \d+: /.test(said) ? "" : /warning/i.test(said) ? "warn" : /error|interrupted/i.test(said) ? "bad" : "";
      return h("div", { class: `log-line ${kind}` }, found ? [h("time", {}, found[1]), h("span", {}, found[2])] : h("span", {}, line));
    }));
  };
  const input = h("input", { type: "search", oninput: () => draw(input.value) });
  draw("");
  setTimeout(() => { list.scrollTop = list.scrollHeight; });
  return sectionOf("log", "Log", h("div", { class: "card" }, h("div", { class: "card-head" },
    h("span", { class: "note" }, content.log.is_cut ? "The last lines of logs.txt." : "All of logs.txt."), h("span", { class: "grow" }), h("label", { class: "field" }, h("span", {}, "Filter"), input)), list));
}

function commandsSection(content) {
  if (!content.commands || !content.commands.length) return null;
  return sectionOf("next", "How to go on", h("div", { class: "card commands" }, content.commands.map(({ title, command }) =>
    h("div", { class: "command" }, h("h3", {}, title), h("div", { class: "command-line" }, h("code", { class: "scroll", tabindex: "0" }, command), copyButton(() => command, title))))));
}
