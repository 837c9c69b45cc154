// The network: as its U where there is one, else as nested boxes.

const ROW = 38;
const HEAD = 38;
const GAP = 6;
const PITCH = ROW + GAP;
const BETWEEN = 20;

/** The indices of the modules directly in `parent` (undefined for the outermost). */
function childrenOf(model, parent) {
  model.children ??= model.modules.reduce((map, module, index) => {
    map.get(module.parent)?.push(index) ?? map.set(module.parent, [index]);
    return map;
  }, new Map());
  return model.children.get(parent) ?? [];
}

/** The parts of the U, or null if the model has none. */
function anatomyOfU(model) {
  const top = childrenOf(model);
  const of = (kind) => top.filter((index) => model.modules[index].kind === kind);
  const [down, mid, up] = [of("down block"), of("mid block"), of("up block")];
  if (down.length === 0 || up.length === 0) return null;
  const blocks = new Set([...down, ...mid, ...up]);
  const first = new Set(model.skips.map(([from]) => from));
  // Activations and the like have nothing to show.
  const rest = top.filter((index) => !blocks.has(index) && model.modules[index].parameters > 0);
  const named = (index, ...names) => names.includes(model.modules[index].path);
  const before = rest.filter((index) => first.has(index) || named(index, "conv_in"));
  const after = rest.filter((index) => named(index, "conv_norm_out", "conv_out", "out"));
  const beside = rest.filter((index) => !before.includes(index) && !after.includes(index));
  return { down, mid, up, before, after, beside };
}

/** The rows of a block: a layer's resnet and attention side by side, samplers by themselves. */
function rowsOf(model, block) {
  const rows = new Map();
  for (const index of childrenOf(model, block)) {
    const [, list, number] = labelOf(model, index).match(/^(.*)\.(\d+)$/) ?? [];
    const key = list === undefined ? "own" : /sampler/.test(list) ? "sampler" : number;
    rows.get(key)?.push(index) ?? rows.set(key, [index]);
  }
  const order = (key) => (key === "sampler" ? 1e9 : key === "own" ? 1e8 : Number(key));
  return [...rows.entries()].sort(([a], [b]) => order(a) - order(b)).map(([, row]) => row);
}

/** A module's path within the module around it. */
function labelOf(model, index) {
  const { path, parent } = model.modules[index];
  return parent === undefined ? path : path.slice(model.modules[parent].path.length + 1);
}

/** What a box says of its module to those who can't see it. */
function described(view, index) {
  const module = view.model.modules[index];
  const state = view.states[index];
  const said = state.is === "masked"
    ? `${percent(state.masked, state.weights, 1)} of the weights that rules name masked`
    : STATES[state.is];
  return `${module.path}, ${module.kind}, ${size(module.parameters)} parameters, ${said}`;
}

/** The U, drawn `width` pixels wide. `select` is called with the index of a module. */
function drawU(view, parts, width, select) {
  const { model } = view;
  const wide = width >= 560;
  const stages = Math.max(parts.down.length, parts.up.length);
  const step = wide ? Math.min(22, 132 / stages) : Math.min(5, 20 / stages);
  const middle = wide ? Math.max(90, width * 0.13) : 30;
  const column = Math.min(320, (width - middle) / 2 - (wide ? step * (stages - 1) * 0.6 : 0));
  const inset = wide ? (stages - 1) * step * 0.6 : 0;
  const edge = Math.max(0, (width - 2 * column - middle - 2 * inset) / 2);
  const [blocks, wires] = [svg("g"), svg("g")];
  const [places, groups] = [new Map(), new Map()];

  const box = (index, x, y, w, h, head) => {
    places.set(index, { x, y, w, h });
    return drawBox(view, index, { x, y, w, h }, head, select);
  };
  const drawLine = (group, line, x, y, w) => {
    const each = (w - GAP * (line.length - 1)) / line.length;
    line.forEach((index, i) => group.append(box(index, x + i * (each + GAP), y, each, ROW)));
  };
  const drawLines = (group, lines, x, y, w) => {
    lines.forEach((line, i) => drawLine(group, line, x, y + i * PITCH, w));
    return lines.length * PITCH;
  };
  /** A block with its lines from `y` on; returns where it ends. */
  const block = (index, x, y, w, lines) => {
    const group = svg("g", { class: "block", role: "group", "aria-label": model.modules[index].path });
    const h = heightOf(lines);
    group.append(svg("rect", { x, y, width: w, height: h, rx: 8 }), box(index, x + 2, y + 2, w - 4, HEAD - 4, "head"));
    drawLines(group, lines, x + 8, y + HEAD, w - 16);
    places.set(index, { x, y, w, h });
    groups.set(index, group);
    return y + h;
  };
  const vertical = (from, to, towards) => {
    const x = (a) => a.x + a.w / 2;
    const [y1, y2] = towards === "down" ? [from.y + from.h, to.y - 1] : [from.y, to.y + to.h + 1];
    const bend = (y1 + y2) / 2;
    const d = Math.abs(x(from) - x(to)) < 1
      ? `M${x(from)} ${y1}V${y2}`
      : `M${x(from)} ${y1}C${x(from)} ${bend} ${x(to)} ${bend} ${x(to)} ${y2}`;
    wires.append(svg("path", { class: "wire", d, "marker-end": "url(#arrow)" }));
  };

  let y = 0;
  if (parts.beside.length > 0) y += drawLines(blocks, broken(parts.beside, width - 2 * edge, 140), edge, y, width - 2 * edge) + 18;
  const first = drawLines(blocks, broken(parts.before, column), edge, y, column);
  const last = drawLines(blocks, broken(parts.after, column, 110).toReversed(), width - edge - column, y, column);
  y += Math.max(first, last) + (first || last ? 12 : 0);
  // The way up fills its column; the way down keeps beside what it skips to.
  const indent = (stage) => edge + stage * step;
  let right = y;
  parts.up.toReversed().forEach((index, stage) => {
    const lines = rowsOf(model, index).toReversed().flatMap((row) => broken(row, column - 16).toReversed());
    right = block(index, width - indent(stage) - column, right, column, lines) + BETWEEN;
  });
  let left = y;
  parts.down.forEach((index, stage) => {
    const lines = rowsOf(model, index).flatMap((row) => broken(row, column - 16));
    const wanted = model.skips.flatMap(([from, to]) => {
      const line = lines.findIndex((line) => line.includes(from));
      return line < 0 || !places.has(to) ? [] : [places.get(to).y - HEAD - line * PITCH];
    });
    left = block(index, indent(stage), Math.max(left, Math.min(...wanted.slice(0, 1), right)), column, lines) + BETWEEN;
  });
  y = Math.max(left, right);
  if (parts.mid.length > 0) {
    const w = Math.min(width, wide ? column * 1.5 : width);
    // The bottom of the U runs from left to right.
    for (const mid of parts.mid) y = block(mid, (width - w) / 2, y, w, broken(rowsOf(model, mid).flat(), w - 16)) + 8;
  }
  // For the keyboard, in the order of the data flow.
  blocks.append(...[...parts.down, ...parts.mid, ...parts.up].map((index) => groups.get(index)));
  const at = (index) => places.get(index);
  const chain = [...parts.before.slice(-1), ...parts.down];
  chain.slice(1).forEach((index, i) => vertical(at(chain[i]), at(index), "down"));
  const bottom = at(parts.mid[0]) ?? null;
  const rise = [...parts.up, ...parts.after.slice(0, 1)];
  if (bottom) {
    vertical(at(parts.down.at(-1)), { ...bottom, w: bottom.w * 0.3 }, "down");
    vertical({ ...bottom, x: bottom.x + bottom.w * 0.7, w: bottom.w * 0.3 }, at(rise[0]), "up");
  }
  rise.slice(1).forEach((index, i) => vertical(at(rise[i]), at(index), "up"));
  for (const [from, to] of model.skips) {
    const [a, b] = [at(from), at(to)];
    if (!a || !b) continue;
    const [x1, y1, x2, y2] = [a.x + a.w, a.y + a.h / 2, b.x - 1, b.y + b.h / 2];
    const bend = Math.max(12, (x2 - x1) / 2);
    const d = `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
    wires.append(svg("path", { class: "skip", d, "data-ends": `${from} ${to}`, "marker-end": "url(#arrow)" }));
  }
  return svg("svg", { width, height: y, viewBox: `0 0 ${width} ${y}`, role: "group", "aria-label": "The network as a U" },
    definitions(), wires, blocks);
}

/** Boxes in as many lines as they need, about as many in each. */
function broken(indices, width, least = 70) {
  const most = Math.max(1, Math.floor((width + GAP) / (least + GAP)));
  const fitting = Math.ceil(indices.length / Math.ceil(indices.length / most));
  const lines = [];
  for (let at = 0; at < indices.length; at += fitting) lines.push(indices.slice(at, at + fitting));
  return lines;
}

function heightOf(lines) {
  return Math.max(HEAD, HEAD + lines.length * PITCH + 2);
}

function definitions() {
  return svg("defs", {},
    svg("pattern", { id: "hatch", width: 8, height: 8, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      svg("line", { class: "hatch-line", x1: 0, y1: 0, x2: 0, y2: 8 })),
    svg("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7,
      orient: "auto-start-reverse", markerUnits: "userSpaceOnUse" },
      svg("path", { class: "arrow", d: "M0 0L8 4L0 8z" })));
}

/** A module's box: its name, its size, and what became of it. */
function drawBox(view, index, { x, y, w, h }, head, select) {
  const module = view.model.modules[index];
  const state = view.states[index];
  const said = head && state.is === "masked" ? `${tag(state)} masked` : tag(state);
  const label = labelOf(view.model, index);
  const named = /^\d+$/.test(label) ? `${label} ${module.kind}` : label;
  const inner = w - 14;
    const more = [size(module.parameters)];
  if (head && module.macs !== undefined) more.push(`${short(module.macs)} MACs`);
  const output = head && view.model.at ? outputOf(view.model, index) : null;
  if (output) more.push(output.replaceAll(", ", "×").replace(/[[\]]/g, ""));
  // The state of a block stands beside its name where there is room, else below as everywhere.
  const beside = head && said && textWidth(named, 12) + textWidth(said, 11) + 8 <= inner;
  const room = beside ? inner : inner - (said ? textWidth(said, 11) + 8 : 0);
  while (more.length > 1 && textWidth(more.join(" · "), 11) > room) more.pop();
  const meta = textWidth(more.join(" · "), 11) <= room ? more.join(" · ") : "";
  const lower = head ? 30 : h - 11;
  const group = svg("g", {
    class: `part is-${state.is}${head ? " head" : ""}`, tabindex: 0, role: "button", "aria-pressed": "false",
    "aria-label": described(view, index), "data-module": index,
    click: () => select(index),
    keydown: (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        select(index);
      }
    },
  }, svg("title", {}, described(view, index)), svg("rect", { class: "box", x, y, width: w, height: h, rx: 5 }));
  if (state.is === "bypassed" || state.is === "removed") {
    group.append(svg("rect", { class: "hatched", x, y, width: w, height: h, rx: 5 }));
  }
  group.append(
    svg("text", { class: "name", x: x + 7, y: y + 15 }, fit(named, beside ? inner - textWidth(said, 11) - 8 : inner, 12)),
    svg("text", { class: "meta", x: x + 7, y: y + lower }, meta));
  if (said) group.append(svg("text", { class: "tag", x: x + w - 7, y: y + (beside ? 15 : lower), "text-anchor": "end" }, fit(said, inner, 11)));
  if (state.is === "masked" && !head) {
    const filled = inner * state.masked / state.weights;
    group.append(svg("rect", { class: "track", x: x + 7, y: y + h - 7, width: inner, height: 3, rx: 1.5 }),
      svg("rect", { class: "filled", x: x + 7, y: y + h - 7, width: filled, height: 3, rx: 1.5 }));
  }
  return group;
}

/** The shape of what a block makes; of several outputs, as of a block that skips begin in, the last. */
function outputOf(model, index) {
  const last = rowsOf(model, index).flat().at(-1);
  return model.modules[index].output ?? (last === undefined ? null : model.modules[last].output);
}

/** The modules as boxes in boxes, as many levels as stay readable. */
function drawNested(view, select) {
  const { model } = view;
  const depth = (index) => (model.modules[index].parent === undefined ? 0 : 1 + depth(model.modules[index].parent));
  const depths = model.modules.map((_, index) => depth(index));
  let levels = 1;
  while (levels < 3 && depths.filter((d) => d <= levels).length <= 400) levels += 1;
  const boxes = (indices) => element("div", { class: "nested" }, indices.map((index) => {
    const module = model.modules[index];
    const state = view.states[index];
    const inner = depths[index] + 1 < levels ? childrenOf(model, index) : [];
    return element("div", { class: `box-of is-${state.is}` },
      element("button", {
        type: "button", "data-module": index, "aria-pressed": "false", "aria-label": described(view, index),
        click: () => select(index),
      }, element("b", {}, labelOf(model, index)),
      element("span", {}, [size(module.parameters), module.macs && `${short(module.macs)} MACs`, tag(state)]
        .filter(Boolean).join(" · "))),
      inner.length > 0 ? boxes(inner) : null);
  }));
  return boxes(childrenOf(model));
}
