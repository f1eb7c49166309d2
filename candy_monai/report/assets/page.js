// Puts the page together.

function navigation(main) {
  const nav = byId("nav"), links = new Map();
  add(nav, [h("div", { class: "wrap nav-row" }, [...main.querySelectorAll(".section")].map((section) => {
    const link = h("a", { href: `#${section.id}` }, section.querySelector("h2").textContent);
    links.set(section, link);
    return link;
  }))]);
  const seen = new Set();
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) seen.add(entry.target); else seen.delete(entry.target);
    const first = [...links.keys()].find((section) => seen.has(section));
    for (const [section, link] of links) {
      if (section === first) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    }
  }, { rootMargin: "-80px 0px -60% 0px" });
  for (const section of links.keys()) observer.observe(section);
}

function runSections(content, views) {
  const viewer = viewerSection(content, views);
  return [
    content.tiles && overviewSection(content), curvesSection(content), content.tables && tablesSection(content, viewer.show, views), viewer.section,
    dataSection(content), planSection(content), settingsSection(content), logSection(content), commandsSection(content),
  ];
}

function comparisonSections(content, views) {
  const viewer = sideBySideSection(content, views);
  return [runsSection(content), differencesSection(content), overlaidSection(content), scoresSection(content, viewer.show, viewer.known), viewer.section];
}

function foldSections(content) {
  return [overviewSection(content), sectionOf("folds", "Folds", dataTable(content.folds, { isSorted: false })), overlaidSection(content), tablesSection(content, () => {}, [])];
}

function start() {
  const content = data("page-data"), main = byId("main"), status = byId("status");
  document.documentElement.classList.add(`kind-${content.kind}`);
  byId("tools").append(themeButton());
  if (content.status) status.classList.add(`is-${content.status.state}`);
  document.body.append(announcer);
  const views = data("page-views") || [];
  add(clear(main), content.kind === "comparison" ? comparisonSections(content, views) : content.kind === "crossval" ? foldSections(content) : runSections(content, views));
  navigation(main);
  document.documentElement.setAttribute("data-drawn", "true");
}

start();
