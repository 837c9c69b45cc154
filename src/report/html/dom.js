// Elements, numbers, and what the states are called.

const DATA = JSON.parse(document.getElementById("data").textContent);

/** An element with attributes and children; functions among the attributes are listeners (`click`). */
function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

/** A number with its thousands apart. */
function count(n) {
  return n.toLocaleString("en-US");
}

/** A number in three digits and a unit: 12.8 M. */
function short(n) {
  const units = ["", " k", " M", " G", " T", " P"];
  let unit = 0;
  while (n >= 999.5 && unit + 1 < units.length) {
    n /= 1000;
    unit += 1;
  }
  return unit === 0 ? String(n) : n.toPrecision(3) + units[unit];
}

/** A number of parameters, whose thousands of millions are called billions. */
function size(n) {
  return short(n).replace("G", "B");
}

function bytes(n) {
  return short(n) + (n >= 1000 ? "B" : " B");
}

/** Text with what stands between `backticks` as code. */
function marked(text) {
  return text.split("`").map((part, index) => (index % 2 ? element("code", {}, part) : part));
}

function percent(part, whole, digits = 2) {
  return whole ? (100 * part / whole).toFixed(digits) + "\u00a0%" : "–";
}

/** A magnitude as the command line prints it: 1.234568e-2. */
function magnitude(value) {
  return value === null || value === undefined ? "–" : value.toExponential(6);
}

function plural(n, noun) {
  return `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
}

/** What a state is called in the legend. */
const STATES = {
  untouched: "untouched",
  masked: "weights masked, with their share of those that rules name",
  bypassed: "bypassed",
  partly: "untouched, but for a module in it",
  shared: "computed once for both branches",
  twice: "computed in each branch",
  added: "added",
  removed: "removed",
  changed: "changed",
  same: "the same",
};

/** What a state is called on a box. */
function tag(state) {
  switch (state.is) {
    case "masked": return percent(state.masked, state.weights, 1);
    case "bypassed": return "bypassed";
    case "partly": return state.bypassed_inside ? `${state.bypassed_inside} bypassed` : `${state.changed_inside} changed`;
    case "shared": return "shared";
    case "twice": return "twice";
    case "added": return "+ added";
    case "removed": return "− removed";
    case "changed": return "~ changed";
    default: return "";
  }
}

/** A container whose contents are drawn for its width, and again when that changes. */
function responsive(draw) {
  const place = element("div");
  let drawn = 0;
  const redraw = () => {
    const width = Math.floor(place.clientWidth);
    if (width > 0 && width !== drawn) {
      drawn = width;
      place.replaceChildren(draw(width));
    }
  };
  new ResizeObserver(() => requestAnimationFrame(redraw)).observe(place);
  return place;
}

/** Text cut off where it would be wider than `width` pixels in a font of `size` pixels. */
function fit(text, width, size) {
  const context = fit.context ??= document.createElement("canvas").getContext("2d");
  context.font = `600 ${size}px ${getComputedStyle(document.body).fontFamily}`;
  if (context.measureText(text).width <= width) return text;
  let length = text.length;
  while (length > 1 && context.measureText(text.slice(0, length) + "…").width > width) length -= 1;
  return text.slice(0, length) + "…";
}

function textWidth(text, size) {
  fit("", 1, size);
  return fit.context.measureText(text).width;
}
