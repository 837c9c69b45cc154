// The magnitudes of a prune rule's weights, with its threshold.

const HEIGHT = 150;

/** The histogram of a rule, or null if there is nothing to draw. */
function magnitudeHistogram(rule) {
  const { edges, counts } = rule.magnitudes ?? {};
  if (!counts || counts.length === 0) return null;
  const { lines, said } = thresholdsOf(rule);
  // A long tail of a few tiny weights would leave little room for the others.
  const total = counts.reduce((sum, n) => sum + n, 0);
  let [first, tail] = [0, 0];
  while (first + 1 < counts.length && tail + counts[first] < total * 0.002
    && !(lines.length > 0 && lines[0] < edges[first + 1])) {
    tail += counts[first];
    first += 1;
  }
  const label = `Magnitudes of ${plural(rule.weights, "weight")} from ${edges[0].toExponential(1)} to `
    + `${edges.at(-1).toExponential(1)}. ${said}`;
  return responsive((width) => drawHistogram(edges.slice(first), counts.slice(first), lines, label, said, width));
}

/** Where the threshold is, or the least and the greatest of several; and that in words. */
function thresholdsOf(rule) {
  const masked = `${count(rule.zeros)} of ${count(rule.weights)} masked`;
  if (rule.threshold !== null) return { lines: [rule.threshold], said: `threshold ${rule.threshold.toPrecision(4)}, ${masked}` };
  const own = rule.per_tensor.map((tensor) => tensor.threshold).filter((t) => typeof t === "number");
  if (own.length === 0) return { lines: [], said: masked };
  const lines = [Math.min(...own), Math.max(...own)];
  return { lines, said: `thresholds ${lines.map((t) => t.toPrecision(3)).join(" to ")}, ${masked}` };
}

function drawHistogram(edges, counts, lines, label, said, width) {
  const [top, bottom] = [24, 22];
  const base = HEIGHT - bottom;
  const log = (value) => Math.log10(value);
  const [low, high] = [log(edges[0]), log(edges.at(-1))];
  const x = (value) => Math.max(0, Math.min(width, (log(value) - low) / (high - low) * width));
  // Bins differ in width on this axis, so their areas tell the counts, not their heights.
  const density = counts.map((n, i) => n / (log(edges[i + 1]) - log(edges[i])));
  const most = Math.max(...density);
  let d = `M0 ${base}`;
  density.forEach((value, i) => {
    const y = base - (base - top) * value / most;
    d += `V${y.toFixed(1)}H${x(edges[i + 1]).toFixed(1)}`;
  });
  d += `V${base}Z`;
  const parts = [];
  const split = lines.length > 0 && lines[0] > 0 ? x(lines[0]) : 0;
  const clip = `clip-${magnitudeHistogram.next = (magnitudeHistogram.next ?? 0) + 1}`;
  parts.push(svg("defs", {},
    svg("clipPath", { id: `${clip}-l` }, svg("rect", { x: 0, y: 0, width: split, height: HEIGHT })),
    svg("clipPath", { id: `${clip}-r` }, svg("rect", { x: split, y: 0, width: Math.max(0, width - split), height: HEIGHT }))));
  parts.push(svg("path", { class: "left", d, "clip-path": `url(#${clip}-l)` }),
    svg("path", { class: "right", d, "clip-path": `url(#${clip}-r)` }));
  if (lines.length > 1) {
    parts.push(svg("rect", { class: "threshold-band", x: split, y: top, width: Math.max(1, x(lines[1]) - split), height: base - top }));
  }
  parts.push(svg("line", { class: "axis", x1: 0, x2: width, y1: base + 0.5, y2: base + 0.5 }));
  let free = -1;
  for (let power = Math.ceil(low); power <= Math.floor(high); power += 1) {
    const at = (power - low) / (high - low) * width;
    const text = power < -3 || power > 3 ? `1e${power}` : String(Number(`1e${power}`));
    if (at - 16 < free || at > width - 40 || at < 12) continue;
    free = at + 30;
    parts.push(svg("line", { class: "axis", x1: at, x2: at, y1: base, y2: base + 4 }),
      svg("text", { class: "tick", x: at, y: HEIGHT - 5, "text-anchor": "middle" }, text));
  }
  parts.push(svg("text", { class: "tick", x: width, y: HEIGHT - 5, "text-anchor": "end" }, "|w|"));
  if (split > 0) {
    parts.push(svg("line", { class: "threshold", x1: split, x2: split, y1: 18, y2: base }));
  }
  const room = textWidth(said, 12);
  const start = Math.max(0, Math.min(split - room / 2, width - room - 4));
  parts.push(svg("text", { class: "threshold-label", x: start, y: 12 }, fit(said, width, 12)));
  return svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": label }, parts);
}
