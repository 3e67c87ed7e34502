// Draws the charts from the numbers in the page, again when the width changes, and makes the copy buttons work.
"use strict";

const charts = JSON.parse(document.getElementById("charts").textContent);
const UNITS = [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]];
const NARROW = 640;
const PAPER = 680;
const colour = (name) => `var(--${name})`;
const unitOf = (nbytes) => UNITS.find(([, unit]) => 10 * nbytes >= unit) ?? ["B", 1];
const gib = (nbytes) => {
  const [name, unit] = unitOf(nbytes);
  return `${(nbytes / unit).toFixed(unit > 1 ? 2 : 0)} ${name}`;
};

// A weight's axis: its blocks above, with the cuts of equal parts through them; below, what each part holds.
function drawGrid(grid, width) {
  const blocks = grid.blocks.map(([x1, x2, split], index) => ({x1, x2, split, index}));
  let from = 0;
  const shares = grid.shares.map(([start, stop, padding], index) => (
    {start, stop, padding, index, x1: from, x2: (from += stop - start), x3: (from += padding)}
  ));
  const every = Math.ceil((26 * shares.length) / width);
  const rows = [{y: 2.7, words: grid.title}, ...(shares.length ? [{y: 1.15, words: grid.placed}] : [])];
  return Plot.plot({
    width, height: shares.length ? 134 : 84, marginLeft: 4, marginRight: 4, marginTop: 4, marginBottom: 26,
    x: {domain: [0, Math.max(grid.size, ...shares.map((share) => share.x3))], label: null,
        ticks: width >= NARROW ? 8 : 4, tickFormat: "d"},
    y: {axis: null, domain: [shares.length ? 0 : 1.5, 2.9]},
    marks: [
      Plot.rect(blocks, {
        x1: "x1", x2: "x2", y1: 1.65, y2: 2.4, inset: 0.5,
        fill: (d) => colour(d.split ? "breaks" : "other"), fillOpacity: (d) => (d.split ? 0.9 : 0.45),
        title: (d) => `block ${d.index}: elements ${d.x1} to ${d.x2 - 1}${d.split ? ", cut inside" : ""}`,
      }),
      Plot.ruleX(grid.cuts, {
        x: (d) => d[0], y1: 1.55, y2: 2.5, stroke: (d) => (d[1] ? colour("breaks") : "var(--ink)"), strokeWidth: 1.5,
        title: (d) => `cut at ${d[0]}${d[1] ? ", inside a block" : ""}`,
      }),
      Plot.rect(shares.filter((d) => d.x2 > d.x1), {
        x1: "x1", x2: "x2", y1: 0.1, y2: 0.85, inset: 0.5, fill: colour(grid.kind),
        title: (d) => `${grid.holder} ${d.index}: elements ${d.start} to ${d.stop - 1}`,
      }),
      Plot.rect(shares.filter((d) => d.x3 > d.x2), {
        x1: "x2", x2: "x3", y1: 0.1, y2: 0.85, inset: 0.5, fill: colour("padding"),
        title: (d) => `${grid.holder} ${d.index}: ${d.padding} elements of zeros`,
      }),
      Plot.text(shares.filter((d) => d.index % every === 0 && shares.length > 1), {
        x: (d) => (d.x1 + d.x3) / 2, y: 0.47, text: (d) => String(d.index), className: "inside", fontSize: 11,
      }),
      Plot.text(rows, {x: 0, y: "y", text: "words", textAnchor: "start", fontSize: 12}),
    ],
  });
}

function drawRanks(ranks, width) {
  const held = ranks.bars.map((bar) => ranks.kinds.reduce((sum, [kind]) => sum + bar[kind], 0));
  const [name, unit] = unitOf(Math.max(ranks.capacity ?? 0, ...held));
  const parts = ranks.bars.flatMap((bar) => {
    let from = 0;
    return ranks.kinds.map(([kind, words]) => (
      {rank: bar.label, kind, words, nbytes: bar[kind], x1: from / unit, x2: (from += bar[kind]) / unit}
    ));
  });
  return Plot.plot({
    width, height: 46 + 22 * ranks.bars.length, marginLeft: ranks.margin, marginRight: 22, marginTop: 6, marginBottom: 36,
    x: {label: name, labelAnchor: "right", labelOffset: 32, labelArrow: "none", ticks: width >= NARROW ? 10 : 4, grid: true},
    y: {domain: ranks.bars.map((bar) => bar.label), label: null, tickSize: 0, padding: 0.18},
    marks: [
      Plot.barX(parts.filter((part) => part.nbytes > 0), {
        x1: "x1", x2: "x2", y: "rank", fill: (d) => colour(d.kind), insetRight: 0.5,
        title: (d) => `${d.rank}: ${d.words}, ${gib(d.nbytes)}`,
      }),
      ...(ranks.capacity ? [Plot.ruleX([ranks.capacity / unit], {stroke: "var(--ink)", strokeWidth: 1.5,
                                                                title: () => `memory: ${gib(ranks.capacity)}`})] : []),
    ],
  });
}

// Modules one below the other, layers from left to right: the whole model at a glance, also on a phone.
function drawMap(map, width) {
  const height = 38;
  const cells = map.cells.map(([row, column, nbytes, padding]) => ({row, column, nbytes, padding}));
  return Plot.plot({
    width, height: 30 + height * map.columns.length, marginLeft: 2, marginRight: 2, marginTop: 4, marginBottom: 26,
    x: {domain: [0, map.rows.length], axis: null},
    y: {domain: [map.columns.length, 0], axis: null},
    marks: [
      Plot.rect(cells, {
        x1: "row", x2: (d) => d.row + 1, y1: (d) => d.column + 0.5, y2: (d) => d.column + 0.88, insetRight: 0.7,
        fill: (d) => colour(map.columns[d.column].kind),
        title: (d) => `${map.titles[d.row]}, ${map.columns[d.column].title}: ` +
          (map.columns[d.column].kind === "breaks" ? "a rule breaks" : gib(d.nbytes)),
      }),
      Plot.text(map.columns, {
        x: 0, y: (d, index) => index + 0.26, text: "title", textAnchor: "start", fontSize: 12,
        lineWidth: (width - 10) / 12, textOverflow: "ellipsis",
      }),
      Plot.axisX(map.ticks.map(([at]) => at + 0.5), {
        anchor: "bottom", label: null, tickSize: 0, fontSize: 11,
        tickFormat: (at) => Object.fromEntries(map.ticks)[at - 0.5],
      }),
    ],
  });
}

const drawings = {
  grid: (figure, width) => drawGrid(charts.grids[Number(figure.dataset.index)], width),
  ranks: (figure, width) => drawRanks(charts.ranks, width),
  map: (figure, width) => drawMap(charts.map, width),
};

function draw(figure, width) {
  if (width > 0 && figure.dataset.width !== String(width)) {
    figure.dataset.width = String(width);
    figure.replaceChildren(drawings[figure.dataset.chart](figure, width));
  }
}

const figures = [...document.querySelectorAll("[data-chart]")];
const screen = () => figures.forEach((figure) => draw(figure, Math.floor(figure.clientWidth)));
const resized = new ResizeObserver(screen);
figures.forEach((figure) => resized.observe(figure));

// A picture made for a wide screen would be shrunk to paper, and its words with it.
addEventListener("beforeprint", () => {
  resized.disconnect();
  figures.forEach((figure) => draw(figure, PAPER));
});
addEventListener("afterprint", () => figures.forEach((figure) => resized.observe(figure)));

// A page opened as a file may have no clipboard: then the text is selected and copied the old way.
async function copy(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(code);
    return document.execCommand("copy");
  }
}

document.querySelectorAll(".command button").forEach((button) => {
  button.addEventListener("click", async () => {
    const done = await copy(button.parentElement.querySelector("code"));
    button.textContent = done ? "Copied" : "Press Ctrl+C";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
});
