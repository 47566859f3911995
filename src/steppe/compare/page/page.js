"use strict";

const charts = JSON.parse(document.getElementById("charts").textContent);
const dark = matchMedia("screen and (prefers-color-scheme: dark)");
const hidden = new Set();

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// What the section's switches ask of this chart.
function variants(chart, section) {
  const switches = section.querySelectorAll("input:checked");
  return [...switches].map((input) => chart.variants[input.value]).filter(Boolean);
}

function traces(chart, chosen) {
  const ink = colour("--ink");
  const inked = (_, value) => (value === "currentColor" ? ink : value);
  return JSON.parse(JSON.stringify(chart.traces), inked).map((trace, number) => {
    const x = chosen.flatMap((variant) => (variant.x ? [variant.x[number]] : []));
    return { x: x[0], ...trace, ...(x.length && { x: x[0] }), visible: !hidden.has(trace.meta), showlegend: false };
  });
}

// From the first sixth of the epochs on: the climb before it would flatten what differs later.
function lateRange(shown) {
  const values = shown.filter((trace) => trace.visible).flatMap((trace) => {
    const there_and_back = trace.fill === "toself";
    const epochs = there_and_back ? trace.y.length / 2 : trace.y.length;
    const skipped = Math.min(Math.ceil(epochs / 6), epochs - 1);
    return trace.y.slice(skipped, there_and_back ? -skipped || undefined : undefined);
  }).filter((value) => value !== null);
  if (!values.length) return {};
  const low = Math.min(...values);
  const high = Math.max(...values);
  const margin = (high - low) * 0.06 || 1;
  return { range: [low - margin, high + margin] };
}

function axes(chart, chosen, shown) {
  const base = {
    gridcolor: colour("--rule"),
    linecolor: colour("--rule"),
    zerolinecolor: colour("--muted"),
    zeroline: false,
    automargin: true,
    // On a touch screen a finger on a chart scrolls the page.
    fixedrange: matchMedia("(pointer: coarse)").matches,
  };
  const names = Object.keys(chart.layout);
  return Object.fromEntries(names.map((name) => {
    const changes = chosen.map((variant) => variant[name] ?? {});
    const late = chart.late && name === "yaxis" ? lateRange(shown) : {};
    return [name, Object.assign({ ...base }, chart.layout[name], late, ...changes)];
  }));
}

function draw(chart) {
  const element = document.getElementById(chart.name);
  const chosen = variants(chart, element.closest("section"));
  const shown = traces(chart, chosen);
  const layout = {
    ...axes(chart, chosen, shown),
    font: { family: "system-ui, sans-serif", size: 12, color: colour("--ink") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 8, r: 12, t: 12, b: 8 },
    hovermode: "closest",
    hoverlabel: { bgcolor: colour("--paper"), font: { color: colour("--ink") } },
    // A zoom outlives hiding and showing, but not another axis.
    uirevision: JSON.stringify(chosen.map(({ x, ...axis }) => axis)),
  };
  const buttons = ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"];
  const options = { displaylogo: false, responsive: true, modeBarButtonsToRemove: buttons };
  return Plotly.react(element, shown, layout, options);
}

function drawAll() {
  charts.forEach(draw);
}

function show(names, visible) {
  for (const name of names) visible ? hidden.delete(name) : hidden.add(name);
  for (const key of document.querySelectorAll("button[data-optimizer]")) {
    key.setAttribute("aria-pressed", String(!hidden.has(key.dataset.optimizer)));
  }
  drawAll();
}

function sort(heading) {
  const column = [...heading.parentElement.children].indexOf(heading);
  const order = heading.ariaSort === "ascending" ? "descending" : "ascending";
  const sign = order === "ascending" ? 1 : -1;
  const number = heading.classList.contains("number");
  const key = (row) => row.children[column].dataset.key;
  const difference = (a, b) => (number ? a - b : a.localeCompare(b));
  const compare = (one, other) => {
    const [a, b] = [key(one), key(other)];
    // What has no value stays last, whichever way.
    if (!a || !b) return Number(!a) - Number(!b);
    return sign * difference(a, b);
  };
  for (const each of heading.parentElement.children) each.ariaSort = each === heading ? order : "none";
  const body = heading.closest("table").tBodies[0];
  body.append(...[...body.rows].sort(compare));
}

for (const heading of document.querySelectorAll("th[aria-sort]")) {
  heading.querySelector("button").addEventListener("click", () => sort(heading));
}
const keys = [...document.querySelectorAll("button[data-optimizer]")];
const names = keys.map((key) => key.dataset.optimizer);
for (const key of keys) {
  key.addEventListener("click", () => show([key.dataset.optimizer], hidden.has(key.dataset.optimizer)));
}
document.getElementById("all")?.addEventListener("click", () => show(names, true));
document.getElementById("none")?.addEventListener("click", () => show(names, false));
for (const input of document.querySelectorAll("input[type=radio]")) input.addEventListener("change", drawAll);

const study = document.getElementById("study").textContent;
document.getElementById("download").href = URL.createObjectURL(new Blob([study], { type: "application/json" }));

drawAll();
dark.addEventListener("change", drawAll);
for (const event of ["beforeprint", "afterprint"]) {
  addEventListener(event, () => charts.forEach((chart) => Plotly.Plots.resize(chart.name)));
}
