// The page: header, network, tables, plan.

const KINDS = { compile: "What the plan did", inspect: "What a plan can name", diff: "What is different" };
let current = 0;

function baseName(path) {
  return path.split(/[\\/]/).pop() || path;
}

/** Draws everything for the view `index`. */
function show(index, chosen) {
  current = index;
  const data = DATA.views[index];
  const view = { ...data, model: DATA.models[data.model] };
  const network = networkSection(view);
  const select = network.select;
  document.getElementById("page").replaceChildren(...[
    header(view),
    network.section,
    DATA.diff ? differencesSection(view, select) : null,
    view.report ? rulesSection(view) : null,
    view.report ? weightsSection(view, select) : null,
    view.report ? mergedSection(view, select) : null,
    modulesSection(view, select),
    view.report ? filesSection(view) : null,
    DATA.plan ? planSection() : null,
    element("footer", {}, `${DATA.tool} · ${view.model.name}`),
  ].filter(Boolean));
  if (chosen !== undefined) document.querySelectorAll(".choice")[chosen]?.focus();
}

function header(view) {
  const { model } = view;
  const title = DATA.kind === "diff" ? DATA.models.map((m) => baseName(m.name)).join(" → ") : baseName(model.name);
  const names = DATA.models.map((m) => m.name).join(" → ");
  const about = `${names}: opset ${model.opset ?? "unknown"}, ${model.layout} names`
    + (model.wrapper ? `, without the prefix ${model.wrapper}` : "");
  const several = DATA.views.length > 1;
  return element("header", {},
    element("p", { class: "eyebrow" }, KINDS[DATA.kind]),
    element("h1", {}, title),
    element("p", { class: "soft" }, about),
    several ? element("div", { class: "choices", role: "group", "aria-label": DATA.diff ? "Model" : "Emitted graph" },
      DATA.views.map((other, index) => element("button", {
        type: "button", class: "choice", "aria-pressed": String(index === current), click: () => show(index, index),
      }, DATA.diff ? `${["First", "Second"][index]}: ${baseName(other.name)}` : other.name))) : null,
    element("dl", { class: "figures" }, figures(view).map(([name, value, small]) =>
      element("div", {}, element("dt", {}, name), element("dd", { "data-figure": name }, value, small ? element("small", {}, small) : null)))));
}

/** The numbers on top: name, value, what is said below it. */
function figures({ model, report, changes }) {
  const change = (before, after, format) => [format(after), before === after ? "unchanged" : `${format(before)} before (${signed(before, after)})`];
  if (DATA.diff) {
    const [a, b] = DATA.models;
    const [before, after] = DATA.diff.nodes;
    return [
      ["Differences", count(DATA.diff.all), DATA.diff.all === 0 ? "the models are the same" : null],
      ["Nodes", count(after), before === after ? "in both" : `${count(before)} in the first`],
      ["In both", count(DATA.diff.matched), "nodes, changed or not"],
      ["Parameters", size(b.parameters), a.parameters === b.parameters ? "in both" : `${size(a.parameters)} in the first`],
    ];
  }
  if (!report) {
    return [
      ["Parameters", size(model.parameters), count(model.parameters)],
      ["Nodes", count(model.nodes)],
      ["Modules", count(model.modules.length), `${count(model.modules.filter((m) => m.bypassable).length)} can be bypassed`],
      ...(model.macs === undefined ? [] : [["MACs", short(model.macs), `at ${model.at}`]]),
    ];
  }
  const { graph } = report;
  const [masked, weights] = ["zeros", "weights"].map((key) => report.prune.reduce((sum, rule) => sum + rule[key], 0));
  const all = [
    ["Parameters", ...change(graph.parameters_before, graph.parameters_after, size)],
    ["Nodes", ...change(graph.nodes_before, graph.nodes_after, count)],
  ];
  if (graph.macs_before !== undefined) all.push(["MACs", ...change(graph.macs_before, graph.macs_after, short)]);
  for (const [name, gone] of [["Bypassed", true], ["Changed", false]]) {
    const modules = changes.filter((entry) => entry.gone === gone);
    if (modules.length > 0) all.push([name, plural(modules.length, "module")]);
  }
  for (const { file, scale, tensors } of report.lora) all.push(["LoRA", plural(tensors, "weight"), `${file}, scale ${scale}`]);
  if (weights > 0) all.push(["Masked", percent(masked, weights), `${count(masked)} of ${count(weights)} weights`]);
  if (report.fused) {
    const { fused } = report;
    all.push(["Shared", percent(fused.nodes_shared, fused.nodes_dense, 1), `${count(fused.nodes_shared)} of ${count(fused.nodes_dense)} nodes serve both branches`]);
    if (fused.expected_time !== undefined) {
      all.push(["Expected time", percent(fused.expected_time, 1, 1), "of two runs, from their MACs"]);
    }
  }
  if (report.weights.files.length > 0) {
    all.push(["Written", bytes(report.weights.bytes_written), `${bytes(report.weights.bytes_shared)} used from other files`]);
  }
  return all;
}

function signed(before, after) {
  const change = 100 * (after - before) / before;
  const size = Math.abs(change);
  return `${change < 0 ? "−" : "+"}${size < 0.1 ? size.toPrecision(1) : size.toFixed(1)}\u00a0%`;
}

/** The network with its legend and details; `select` chooses a module. */
function networkSection(view) {
  const { model } = view;
  const panel = element("div", { class: "details", id: "details", role: "region", "aria-label": "Details", "aria-live": "polite" });
  const u = anatomyOfU(model);
  const mark = (index) => {
    for (const box of section.querySelectorAll("[data-module]")) {
      box.setAttribute("aria-pressed", String(Number(box.dataset.module) === index));
    }
    for (const skip of section.querySelectorAll(".skip[data-ends]")) {
      skip.classList.toggle("on", skip.dataset.ends.split(" ").includes(String(index)));
    }
  };
  let selected;
  const select = (index, from) => {
    selected = index;
    mark(index);
    showDetails(panel, view, index, select);
    panel.scrollTop = 0;
    // Out of sight, as on a narrow screen or from a table, it would look as if nothing happened.
    const { top, bottom } = panel.getBoundingClientRect();
    if (from === "table" || top > innerHeight - 120 || bottom < 60) panel.scrollIntoView({ block: "nearest" });
  };
  let drawing;
  if (model.modules.length === 0) {
    drawing = element("p", { class: "soft" }, "Nothing in this model tells its modules: its names say nothing, and it has no metadata.");
  } else if (u) {
    drawing = responsive((width) => {
      requestAnimationFrame(() => mark(selected));
      return drawU(view, u, width, select);
    });
  } else {
    drawing = drawNested(view, select);
  }
  const section = element("section", { "aria-labelledby": "network" },
    element("h2", { id: "network" }, "The network"),
    element("div", { class: "card network" }, element("div", { class: "drawing" }, legend(view, u), drawing), panel));
  showDetails(panel, view, undefined, select);
  return { section, select: (index) => select(index, "table") };
}

/** The states that occur, each as a small box beside its name. */
function legend(view, u) {
  const order = Object.keys(STATES).filter((name) => name !== "partly" && view.states.some((state) => state.is === name));
  const box = (name) => svg("svg", { width: 22, height: 16, "aria-hidden": "true", class: `part is-${name}` },
    svg("rect", { class: "box", x: 1, y: 1, width: 20, height: 14, rx: 3 }),
    ["bypassed", "removed"].includes(name) ? svg("rect", { class: "hatched", x: 1, y: 1, width: 20, height: 14, rx: 3 }) : null,
    name === "masked" ? svg("rect", { class: "filled", x: 4, y: 10, width: 7, height: 3 }) : null);
  const skip = () => svg("svg", { width: 26, height: 16, "aria-hidden": "true" }, svg("path", { class: "skip", d: "M1 8H24", "marker-end": "url(#arrow)" }));
  const items = view.report || DATA.diff ? order.map((name) => element("li", {}, box(name), STATES[name])) : [];
  if (u && view.model.skips.length > 0) items.push(element("li", {}, skip(), "skip connection"));
  return items.length > 0 ? element("ul", { class: "legend", "aria-label": "Legend" }, items) : null;
}

function pathCell(view, path, select) {
  const index = view.byPath?.get(path)
    ?? (view.byPath ??= new Map(view.model.modules.map((module, at) => [module.path, at]))).get(path);
  return index === undefined ? element("span", { class: "path" }, path || "the graph") : link(path, () => select(index));
}

function modulesSection(view, select) {
  const { model, states } = view;
  const columns = [
    { name: "Module", kind: "long", value: (i) => model.modules[i].path, show: (i) => pathCell(view, model.modules[i].path, select) },
    { name: "Kind", value: (i) => model.modules[i].kind },
    ...(view.report || DATA.diff ? [{ name: "State", value: (i) => STATES[states[i].is], show: (i) => tag(states[i]) + (states[i].is === "masked" ? " masked" : "") || STATES[states[i].is] }] : []),
    { name: "Parameters", kind: "number", value: (i) => model.modules[i].parameters, show: (i) => count(model.modules[i].parameters) },
    { name: "Share", kind: "number", value: (i) => model.modules[i].parameters, show: (i) => percent(model.modules[i].parameters, model.parameters) },
    ...(model.macs === undefined ? [] : [{ name: "MACs", kind: "number", value: (i) => model.modules[i].macs, show: (i) => count(model.modules[i].macs) }]),
    { name: "Nodes", kind: "number", value: (i) => model.modules[i].nodes, show: (i) => count(model.modules[i].nodes) },
    { name: "Output", value: (i) => model.modules[i].output },
    ...(DATA.kind === "inspect" ? [{ name: "Bypass", value: (i) => model.modules[i].bypassable, show: (i) => ({ true: "yes", false: "no" })[model.modules[i].bypassable] ?? "" }] : []),
  ];
  return tableSection("Modules", null, {
    caption: "Modules", columns, rows: model.modules.map((_, index) => index), search: (i) => `${model.modules[i].path} ${model.modules[i].kind} ${STATES[states[i].is]}`,
  });
}

function tableSection(title, lead, table) {
  return element("section", {}, element("h2", {}, title), lead ? element("p", { class: "lead" }, lead) : null, sortableTable(table));
}
