"use strict";

const charts = JSON.parse(document.getElementById("charts").textContent);
const dark = matchMedia("screen and (prefers-color-scheme: dark)");
// There a finger on a chart is to scroll the page, not to zoom.
const touch = matchMedia("(pointer: coarse)").matches;
const hidden = new Set();
// Named one by one: Plotly's own set has a button that sends the data to a server.
const BUTTONS = [["zoom2d", "pan2d", "resetScale2d", "toImage"]];
const BUTTONS_3D = [["orbitRotation", "zoom3d", "resetCameraDefault3d", "toImage"]];
// The climb before would flatten what differs later.
const CLIMB = 1 / 3;

function place(chart) {
  return document.getElementById(`chart-${chart.name}`);
}

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
  // As a style sheet would: Plotly knows neither word.
  const inked = (_, value) => {
    if (value === "currentColor") return ink;
    return String(value).startsWith("var(") ? colour(value.slice(4, -1)) : value;
  };
  const along = chosen.find((variant) => variant.x)?.x;
  return JSON.parse(JSON.stringify(chart.traces), inked).map((trace, number) => ({
    ...trace,
    x: along ? along[number] : trace.x,
    visible: !hidden.has(trace.meta),
    showlegend: false,
  }));
}

// What the lines and bands reach after the climb; a band runs there and back.
function lateRange(shown) {
  const values = shown.filter((trace) => trace.visible).flatMap((trace) => {
    const band = trace.fill === "toself";
    const epochs = band ? trace.y.length / 2 : trace.y.length;
    const skipped = Math.min(Math.ceil(epochs * CLIMB), epochs - 1);
    return trace.y.slice(skipped, band ? trace.y.length - skipped : epochs);
  }).filter((value) => value !== null);
  if (!values.length) return {};
  const [low, high] = [Math.min(...values), Math.max(...values)];
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
    fixedrange: touch,
  };
  const names = Object.keys(chart.layout).filter((name) => name !== "scene");
  return Object.fromEntries(names.map((name) => {
    const changes = chosen.map((variant) => variant[name] ?? {});
    const late = chart.late && name === "yaxis" ? lateRange(shown) : {};
    return [name, Object.assign({ ...base }, chart.layout[name], late, ...changes)];
  }));
}

// Of a chart in space: its axes in the page's colours, seen from where it was last seen from.
function space(chart, element) {
  if (!chart.layout.scene) return {};
  const scene = { ...chart.layout.scene };
  for (const name of ["xaxis", "yaxis", "zaxis"]) {
    scene[name] = { color: colour("--ink"), gridcolor: colour("--rule"), showbackground: false, ...scene[name] };
  }
  scene.camera = element._fullLayout?.scene?.camera ?? scene.camera;
  return { scene };
}

function draw(chart) {
  const element = place(chart);
  const chosen = variants(chart, element.closest("section"));
  const shown = traces(chart, chosen);
  const layout = {
    ...axes(chart, chosen, shown),
    ...space(chart, element),
    font: { family: "system-ui, sans-serif", size: 12, color: colour("--ink") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 8, r: 12, t: 12, b: 8 },
    hovermode: "closest",
    hoverlabel: { bgcolor: colour("--paper"), font: { color: colour("--ink") } },
    // A zoom outlives hiding and showing, but not another axis.
    uirevision: JSON.stringify(chosen.map(({ x, ...axis }) => axis)),
  };
  Plotly.react(element, shown, layout, {
    responsive: true,
    displaylogo: false,
    displayModeBar: touch ? false : "hover",
    modeBarButtons: chart.layout.scene ? BUTTONS_3D : BUTTONS,
  });
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
  addEventListener(event, () => charts.forEach((chart) => Plotly.Plots.resize(place(chart))));
}
