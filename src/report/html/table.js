// Tables that sort, and show their first rows until more are asked for.

const SHOWN = 40;

/**
 * A table. A column has a `name`, `value(row)` to sort by, and may have `show(row)` for its cell, and a `kind`: "number"
 * or "long". `search(row)` is the text that the filter looks in; without it there is no filter.
 */
function sortableTable({ caption, columns, rows, search }) {
  const state = { column: null, descending: false, all: false, filter: "" };
  const body = element("tbody");
  const more = element("div", { class: "more" });
  const heads = columns.map((column, index) => element("th", { class: column.kind === "number" ? "number" : null, scope: "col" },
    element("button", { type: "button", click: () => sort(index) }, column.name)));

  function sort(index) {
    // Numbers begin with the largest.
    const first = columns[index].kind === "number";
    state.descending = state.column === index ? !state.descending : first;
    state.column = index;
    fill();
  }

  function ordered() {
    const wanted = state.filter.toLowerCase();
    const found = wanted ? rows.filter((row) => search(row).toLowerCase().includes(wanted)) : [...rows];
    if (state.column === null) return found;
    const { value } = columns[state.column];
    const sign = state.descending ? -1 : 1;
    const missing = (v) => v === null || v === undefined;
    return found.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      // Missing values come last in either order.
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      return sign * (typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true }));
    });
  }

  function fill() {
    heads.forEach((head, index) => {
      if (index !== state.column) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
    });
    const found = ordered();
    const shown = state.all ? found : found.slice(0, SHOWN);
    body.replaceChildren(...shown.map((row) => element("tr", {}, columns.map(cell(row)))));
    more.replaceChildren(...(shown.length < found.length ? [element("button", {
      type: "button", class: "link", click: () => {
        state.all = true;
        fill();
      },
    }, `Show all ${count(found.length)} rows`)] : []));
  }

  const cell = (row) => (column) => {
    const shown = column.show ? column.show(row) : column.value(row);
    return element("td", { class: column.kind ?? null }, shown ?? "–");
  };

  fill();
  return element("div", {},
    search ? element("div", { class: "tools" }, element("label", {}, "Filter", element("input", {
      type: "search", spellcheck: "false", autocomplete: "off",
      input: (event) => {
        state.filter = event.target.value;
        fill();
      },
    }))) : null,
    element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
      element("table", { "aria-label": caption }, element("thead", {}, element("tr", {}, heads)), body)),
    more);
}
