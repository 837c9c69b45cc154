// Details of a module, shown when its box is chosen.

/** Fills `panel` with what there is to know of module `index`; `undefined` says what can be done. */
function showDetails(panel, view, index, select) {
  const { model, states, report } = view;
  if (index === undefined) {
    panel.replaceChildren(
      element("h3", {}, "Details"),
      element("p", { class: "soft" }, "Choose a box to see what it is made of and what was done to it."));
    return;
  }
  const module = model.modules[index];
  const state = states[index];
  const pairs = [
    ["Kind", module.kind],
    ["Parameters", `${count(module.parameters)} (${percent(module.parameters, model.parameters, 1)})`],
    ["MACs", module.macs === undefined ? null : `${count(module.macs)} (${percent(module.macs, model.macs, 1)})`],
    ["Input", module.input],
    ["Output", module.output],
    ["Nodes", count(module.nodes)],
    ["Operators", module.operators.map(([name, n]) => model.operators[name] + (n > 1 ? ` ×${n}` : "")).join(", ")],
    ["Skips", skipsOf(model, index, select)],
    ["Bypass", bypassOf(module, state)],
  ];
  panel.replaceChildren();
  filled(panel, {}, [
    crumbs(model, index, select),
    element("h3", { id: "chosen" }, element("span", { class: "path" }, module.path)),
    done(view, state, module),
    element("dl", { class: "pairs" }, pairs.filter(([, value]) => value !== null && value !== undefined && value !== "")
      .map(([name, value]) => [element("dt", {}, name), element("dd", { "data-value": name }, value)])),
    innerOf(view, index, select),
  ]);
}

function link(text, click) {
  return element("button", { type: "button", class: "link path", click }, text);
}

/** The modules around a module, the outermost first. */
function crumbs(model, index, select) {
  const around = [];
  for (let at = model.modules[index].parent; at !== undefined; at = model.modules[at].parent) around.unshift(at);
  return element("nav", { class: "crumbs", "aria-label": "Modules around it" },
    around.map((at) => [link(labelOf(model, at), () => select(at)), element("span", { class: "soft", "aria-hidden": "true" }, "›")]));
}

/** What was done to it, by which rule. */
function done(view, state, module) {
  const { report } = view;
  const said = [];
  if (state.bypass !== undefined) {
    const bypass = view.changes[state.bypass];
    said.push(["Bypassed: whatever read its output reads ", via(bypass.how[1]), " instead (",
      element("span", { class: "path" }, bypass.module), ", ", planLine(bypass.line), ")."]);
    if (bypass.note) said.push([`It is ${bypass.note}.`]);
  }
  if (state.change !== undefined && state.bypass === undefined) {
    const { done, how, line, note } = view.changes[state.change];
    said.push([`It computes something else: ${done}, ${how[0]} ${how[1]} (`, planLine(line), ")."]);
    if (note) said.push([`It is ${note}.`]);
  }
  for (const index of state.bypass === undefined ? state.lora ?? [] : []) {
    const { file, scale, line, per_tensor: tensors } = report.lora[index];
    const change = tensors.find((tensor) => tensor.module === module.path)?.change;
    const large = typeof change === "number" ? `. What is added has ${percent(change, 1)} of its norm` : "";
    said.push(["A LoRA is merged into its weight: ", element("span", { class: "path" }, file), `, scale ${scale} (`, planLine(line), `)${large}.`]);
  }
  if (state.masked && state.bypass === undefined) {
    const rules = state.rules.map((rule) => report.prune[rule]).sort((a, b) => a.line - b.line);
    said.push([`${count(state.masked)} of the ${count(state.weights)} weights that prune rules name are masked `
      + `(${percent(state.masked, state.weights)}):`]);
    for (const rule of rules) {
      const threshold = rule.threshold === null ? "" : `, threshold ${magnitude(rule.threshold)}`;
      const scale = rule.scale === undefined ? "" : `, multiplied by ${rule.scale}`;
      said.push([element("span", { class: "path" }, rule.selector), " (", planLine(rule.line), `)${threshold}${scale}`]);
    }
  }
  if (state.bypassed_inside && state.bypass === undefined) said.push([`${plural(state.bypassed_inside, "module")} in it bypassed.`]);
  if (state.changed_inside && state.bypass === undefined) said.push([`${plural(state.changed_inside, "module")} in it changed.`]);
  if (state.is === "shared") said.push(["Computed once, for the dense and the pruned branch."]);
  if (state.is === "twice") said.push(["Computed in each branch, at least in part: what it reads differs between them."]);
  if (state.is === "added") said.push(["Only the second model has it."]);
  if (state.is === "removed") said.push(["Only the first model has it."]);
  if (state.is === "changed" && !report) said.push([`${plural(state.differences, "difference")} in it; the table below has them.`]);
  if (state.is === "same") said.push(["The same in both models."]);
  if (state.is === "untouched" && report) said.push(["Untouched."]);
  return said.length === 0 ? null
    : element("div", { class: `done is-${state.is}`, id: "done" }, said.map((parts) => element("p", {}, parts)));
}

function via(name) {
  return { shortcut: "its residual skip", input: "its input", backbone: "the hidden operand of its Concat" }[name] ?? name;
}

/** A link to a line of the plan. */
function planLine(line, text = `plan line ${line}`) {
  return element("button", { type: "button", class: "link", "aria-label": `plan line ${line}`, click: () => showLine(line) }, text);
}

function showLine(line) {
  const item = document.getElementById(`plan-${line}`);
  document.querySelectorAll(".lines .marked").forEach((other) => other.classList.remove("marked"));
  item?.classList.add("marked");
  item?.scrollIntoView({ block: "center" });
}

function bypassOf(module, state) {
  if (module.bypassable === undefined || state.bypass !== undefined) return null;
  if (module.bypassable) return module.reason ? `possible: ${module.reason}` : "possible";
  return `not possible: ${module.reason}`;
}

function skipsOf(model, index, select) {
  const ends = model.skips.flatMap(([from, to]) =>
    from === index ? [["to ", to]] : to === index ? [["from ", from]] : []);
  return ends.length === 0 ? null : ends.map(([word, end], i) =>
    [i > 0 ? ", " : "", word, link(model.modules[end].path, () => select(end))]);
}

/** The modules in it. */
function innerOf(view, index, select) {
  const { model, states } = view;
  const inner = childrenOf(model, index);
  if (inner.length === 0) return null;
  return [
    element("h3", { class: "inner-title" }, "In it"),
    element("ul", { class: "inner" }, inner.map((child) => element("li", {},
      link(labelOf(model, child), () => select(child)),
      element("span", {}, [tag(states[child]), size(model.modules[child].parameters)].filter(Boolean).join(" · "))))),
  ];
}
