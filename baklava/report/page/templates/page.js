"use strict";
// Draws what the page's JSON describes: figures with their controls, and the table of all cells.
const data = JSON.parse(document.getElementById("data").textContent);

// Only buttons that work on this page alone: Plotly has others that send data to its own service.
const SETTINGS = {
  responsive: true,
  displaylogo: false,
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
};

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function distinct(values) {
  return [...new Set(values)];
}

// A menu or a slider over values that may change; `current` keeps its value where that is still offered.
function control(name, slider, changed) {
  let values = [];
  const output = element("output");
  const input = slider
    ? element("input", { type: "range", min: 0, step: 1, ariaLabel: name })
    : element("select", { ariaLabel: name });
  input.addEventListener(slider ? "input" : "change", changed);
  return {
    node: element("label", {}, name, input, ...(slider ? [output] : [])),
    current(offered) {
      const before = slider ? values[input.value] : input.value;
      if (offered.join("\n") !== values.join("\n")) {
        values = offered;
        const place = Math.max(0, offered.indexOf(before));
        if (slider) {
          input.max = offered.length - 1;
          input.value = before === undefined ? offered.length - 1 : place;
        } else {
          input.replaceChildren(...offered.map((value) => element("option", { textContent: value, value })));
          input.value = offered[place];
        }
      }
      const now = slider ? values[input.value] : input.value;
      output.textContent = now;
      return now;
    },
  };
}

function drawView(view) {
  const section = document.getElementById(view.id);
  const figure = document.getElementById(view.id + "-figure");
  const note = section.querySelector(".note");
  const controls = view.controls.map(({ name, slider }) => control(name, slider, draw));
  section.querySelector(".controls").append(...controls.map((one) => one.node));
  function draw() {
    let left = view.frames;
    controls.forEach((one, i) => {
      const value = one.current(distinct(left.map((frame) => frame.at[i])));
      left = left.filter((frame) => frame.at[i] === value);
    });
    note.textContent = left[0].note;
    note.hidden = !view.frames.some((frame) => frame.note);
    Plotly.react(figure, left[0].data, left[0].layout, SETTINGS);
  }
  draw();
}

const cells = data.rows.map((row) => Object.fromEntries(data.columns.map((name, i) => [name, row[i]])));
const digits = (value, n = 3) => (value === null ? "" : value.toFixed(n));
const signed = (value) => (value > 0 ? "+" : "") + digits(value);
const interval = (low, high) => element("small", { textContent: `[${low}, ${high}]` });
const difference = (name) => (cell) =>
  cell[name] === null ? [] : [signed(cell[name]), interval(signed(cell[name + "_low"]), signed(cell[name + "_high"]))];

// Columns of the table: heading, the value that it is sorted by, and how it is shown.
const columns = [
  ...["model", "task", "allocator", "eviction"].map((key) => ({ name: key, key })),
  { name: "r", key: "ratio", text: (cell) => String(cell.ratio) },
  { name: "score", key: "score", text: (cell) => [digits(cell.score), interval(digits(cell.ci_low), digits(cell.ci_high))] },
  { name: "to full cache", key: "delta_full", text: difference("delta_full") },
  { name: "to uniform", key: "delta_uniform", text: difference("delta_uniform") },
  { name: "kept", key: "kept_fraction", text: (cell) => digits(100 * cell.kept_fraction, 1) + "%" },
  { name: `KV ${data.unit.name}`, key: "kv_bytes", text: (cell) => digits(cell.kv_bytes / data.unit.bytes, 2) },
  { name: "samples", key: "n", text: (cell) => String(cell.n) + (cell.n_failed ? ` (${cell.n_failed} failed)` : "") },
];

// Gaps come last, whatever the direction.
function compare(a, b, descending) {
  if (a === b) return 0;
  if (a === null || b === null) return a === null ? 1 : -1;
  return a < b === descending ? 1 : -1;
}

function drawCells() {
  const section = document.getElementById("cells");
  const body = section.querySelector("tbody");
  const count = element("span");
  const filters = ["model", "task", "allocator", "eviction", "ratio"].map((key) => {
    const offered = distinct(cells.map((cell) => String(cell[key])));
    const one = control(key === "ratio" ? "r" : key, false, draw);
    return { key, one, offered: ["all", ...offered] };
  });
  let sorted = { key: null, descending: false };
  const headings = columns.map((column) => {
    const heading = element("th", { textContent: column.name, className: column.text ? "number" : "" });
    heading.addEventListener("click", () => {
      sorted = { key: column.key, descending: sorted.key === column.key && !sorted.descending };
      draw();
    });
    return heading;
  });
  function shown() {
    let left = cells;
    for (const { key, one, offered } of filters) {
      const value = one.current(offered);
      if (value !== "all") left = left.filter((cell) => String(cell[key]) === value);
    }
    if (sorted.key === null) return left;
    return [...left].sort((a, b) => compare(a[sorted.key], b[sorted.key], sorted.descending));
  }
  function draw() {
    const left = shown();
    count.textContent = `${left.length} of ${cells.length} cells`;
    headings.forEach((heading, i) => {
      const here = columns[i].key === sorted.key;
      heading.ariaSort = here ? (sorted.descending ? "descending" : "ascending") : "none";
    });
    body.replaceChildren(
      ...left.map((cell) =>
        element("tr", {}, ...columns.map(({ key, text }) =>
          element("td", { className: text ? "number" : "" }, ...[text ? text(cell) : cell[key]].flat()))),
      ),
    );
  }
  section.querySelector("thead").append(element("tr", {}, ...headings));
  section.querySelector(".controls").append(...filters.map(({ one }) => one.node), count);
  draw();
}

data.views.forEach(drawView);
drawCells();
