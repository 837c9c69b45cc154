// The sections below the network: rules, weights, differences, files, plan.

/** Every rule in one list: the modules that a line changes together, LoRAs, and the prune rules. */
function rulesOf({ report, changes }) {
  const lines = new Map();
  for (const change of changes) lines.get(change.line)?.push(change) ?? lines.set(change.line, [change]);
  const sum = (list, key) => list.reduce((total, entry) => total + (entry[key] ?? 0), 0);
  const rows = [...lines].map(([line, list]) => ({
    line, rule: list[0].rule, of: list.map((change) => change.module).join(", "), items: list.length, noun: "module",
    nodes: sum(list, "nodes"), parameters: sum(list, "parameters"),
  }));
  const pruned = report.prune.map((rule) => ({
    line: rule.line, rule: rule.scale === undefined ? "prune" : `prune, × ${rule.scale}`, of: rule.selector, items: rule.tensors, noun: "weight tensor",
    n: rule.weights, k: rule.k, threshold: rule.threshold, masked: rule.zeros,
  }));
  const merged = report.lora.map((rule) => ({
    line: rule.line, rule: `lora, × ${rule.scale}`, of: rule.file, items: rule.tensors, noun: "weight tensor", n: rule.weights,
  }));
  return [...rows, ...merged, ...pruned].sort((a, b) => a.line - b.line);
}

function rulesSection(view) {
  const { report } = view;
  const rules = rulesOf(view);
  if (rules.length === 0) return element("section", {}, element("h2", {}, "Rules"), element("p", { class: "soft" }, "The plan changes nothing."));
  const some = (key) => rules.some((rule) => typeof rule[key] === "number");
  const number = (name, key, show = count) => (some(key)
    ? [{ name, kind: "number", value: (r) => r[key], show: (r) => (typeof r[key] === "number" ? show(r[key]) : "–") }] : []);
  const share = (rule) => (rule.n && rule.masked !== undefined ? rule.masked / rule.n : null);
  const columns = [
    { name: "Line", kind: "number", value: (r) => r.line, show: (r) => planLine(r.line, r.line) },
    { name: "Rule", value: (r) => r.rule },
    { name: "Selects", kind: "long", value: (r) => r.of, show: (r) => element("span", { class: "path" }, r.of) },
    { name: "Items", kind: "number", value: (r) => r.items, show: (r) => plural(r.items, r.noun) },
    ...number("n", "n"),
    ...number("k", "k"),
    ...number("Threshold", "threshold", magnitude),
    ...number("Masked", "masked"),
    ...(some("masked") ? [{ name: "Share", kind: "number", value: share, show: (r) => (share(r) === null ? "–" : percent(r.masked, r.n)) }] : []),
    ...(report.fused ? [] : [...number("Nodes gone", "nodes"), ...number("Parameters gone", "parameters")]),
  ];
  const section = tableSection("Rules", null, { caption: "Rules", columns, rows: rules });
  const histograms = report.prune.toSorted((a, b) => a.line - b.line).map(ruleCard).filter(Boolean);
  if (histograms.length > 0) {
    section.append(element("div", { class: "rules" }, histograms));
  }
  return section;
}

function ruleCard(rule) {
  const histogram = magnitudeHistogram(rule);
  if (!histogram) return null;
  const out = [[rule.magnitudes.zeros, "zero"], [rule.magnitudes.not_finite, "not finite"]].filter(([n]) => n > 0);
  return element("div", { class: "card rule" },
    element("h3", {}, element("span", { class: "path" }, rule.selector)),
    element("p", { class: "soft" }, `Magnitudes of ${plural(rule.weights, "weight")}, area by count`
      + (out.length > 0 ? `; ${out.map(([n, what]) => `${count(n)} ${what}`).join(", ")} left out` : ""), ", ", planLine(rule.line)),
    histogram);
}

function weightsSection(view, select) {
  const rows = view.report.prune.flatMap((rule) => rule.per_tensor.map((tensor) => ({ ...tensor, rule })));
  if (rows.length === 0) return null;
  const threshold = (r) => r.threshold ?? r.rule.threshold;
  const columns = [
    { name: "Module", kind: "long", value: (r) => r.module, show: (r) => pathCell(view, r.module, select) },
    { name: "Line", kind: "number", value: (r) => r.rule.line, show: (r) => planLine(r.rule.line, r.rule.line) },
    { name: "n", kind: "number", value: (r) => r.weights, show: (r) => count(r.weights) },
    { name: "k", kind: "number", value: (r) => r.k ?? r.rule.k, show: (r) => (r.k !== undefined ? count(r.k) : r.rule.k === null ? "–" : `pool: ${count(r.rule.k)}`) },
    { name: "Threshold", kind: "number", value: threshold, show: (r) => magnitude(threshold(r)) },
    { name: "Masked", kind: "number", value: (r) => r.zeros, show: (r) => count(r.zeros) },
    { name: "Share", kind: "number", value: (r) => r.sparsity, show: (r) => percent(r.zeros, r.weights) },
    ...(rows.some((r) => r.bypassed) ? [{ name: "In the output", value: (r) => (r.bypassed ? "bypassed" : "yes") }] : []),
  ];
  return tableSection("Masked weights", "n counts the weights of a layer. Where layers share a pool, k and the threshold are the pool's.",
    { caption: "Masked weights", columns, rows, search: (r) => r.module });
}

function mergedSection(view, select) {
  const rows = view.report.lora.flatMap((rule) => rule.per_tensor.map((tensor) => ({ ...tensor, rule })));
  if (rows.length === 0) return null;
  const columns = [
    { name: "Module", kind: "long", value: (r) => r.module, show: (r) => pathCell(view, r.module, select) },
    { name: "LoRA", kind: "long", value: (r) => r.rule.file, show: (r) => element("span", { class: "path" }, r.rule.file) },
    { name: "Line", kind: "number", value: (r) => r.rule.line, show: (r) => planLine(r.rule.line, r.rule.line) },
    { name: "n", kind: "number", value: (r) => r.weights, show: (r) => count(r.weights) },
    { name: "Change", kind: "number", value: (r) => r.change, show: (r) => (r.change === null ? "–" : percent(r.change, 1)) },
  ];
  return tableSection("Merged weights", "The change is the Frobenius norm of what is added over that of the weight as it came.",
    { caption: "Merged weights", columns, rows, search: (r) => r.module });
}

function differencesSection(view, select) {
  const { rows, all } = DATA.diff;
  if (all === 0) return element("section", {}, element("h2", {}, "Differences"), element("p", { class: "soft" }, "None: the models compute the same in the same way."));
  const lead = all > rows.length ? `The first ${count(rows.length)} of ${count(all)}.` : null;
  return tableSection("Differences", lead, {
    caption: "Differences", rows, search: (r) => `${r.module} ${r.what} ${r.node ?? ""} ${r.text}`,
    columns: [
      { name: "Module", kind: "long", value: (r) => r.module, show: (r) => pathCell(view, r.module, select) },
      { name: "What", value: (r) => r.what, show: (r) => tag({ is: r.what }) },
      { name: "Difference", kind: "long", value: (r) => r.text, show: (r) => marked(r.text) },
    ],
  });
}

function filesSection({ report }) {
  const notes = [
    ...report.outputs.map((output) => `Wrote ${output.path} (${output.identical ? "identical to the input" : output.emit}, ${count(output.nodes)} nodes).`),
    ...report.weights.files.map((file) => `${file.path}: ${bytes(file.bytes)}.`),
    ...report.outputs.flatMap((output) => (output.reads ?? []).map((file) => `Keep ${file} beside ${output.path}: its changed weights are read from there.`)),
    ...report.weights.shared_with.map((file) => `Keep ${file} beside the output: weights are read from there.`),
    ...report.notes.map((note) => `${note}.`),
  ];
  if (report.outputs.length === 0) notes.unshift("A dry run: nothing was written.");
  return element("section", {}, element("h2", {}, "Files and notes"),
    element("ul", { class: "notes" }, notes.map((note) => element("li", {}, marked(note)))));
}

function planSection() {
  const { name, digest, text } = DATA.plan;
  const lines = text.replace(/\n$/, "").split("\n");
  return element("section", {}, element("h2", {}, "Plan"),
    element("p", { class: "lead" }, element("span", { class: "path" }, name), `, digest ${digest.slice(0, 12)}`),
    text ? element("div", { class: "card" }, element("ol", { class: "lines" }, lines.map((line, index) =>
      element("li", { id: `plan-${index + 1}` }, line)))) : element("p", { class: "soft" }, "Too long to be shown here."));
}

show(0);
