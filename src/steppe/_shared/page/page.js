"use strict";

const charts = JSON.parse(document.getElementById("charts").textContent);
const dark = matchMedia("screen and (prefers-color-scheme: dark)");
// There a finger on a chart is to scroll the page, not to zoom.
const touch = matchMedia("(pointer: coarse)").matches;
const hidden = new Set();
// Named one by one: Plotly's own set has a button that sends the data to a server.
const BUTTONS = [["zoom2d", "pan2d", "resetScale2d", "toImage"]];
const BUTTONS_3D = [["orbitRotation", "zoom3d", "resetCameraDefault3d", "toImage"]];

function place(chart) {
  return document.getElementById(`chart-${chart.name}`);
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// What the section's switches ask of this chart, one by one and all together.
function variants(chart, section) {
  const switches = section.querySelectorAll("input:checked, option:checked");
  const values = [...switches].map((each) => each.value);
  return [...new Set([...values, values.join(" ")])].map((value) => chart.variants[value]).filter(Boolean);
}

// As a style sheet would: Plotly knows neither word.
function inked(value) {
  const ink = colour("--ink");
  return JSON.parse(JSON.stringify(value), (_, each) => {
    if (each === "currentColor") return ink;
    return String(each).startsWith("var(") ? colour(each.slice(4, -1)) : each;
  });
}

function traces(chart, chosen) {
  return chart.traces.map((trace, number) => {
    const changed = Object.assign({}, trace, ...chosen.map((variant) => variant.traces?.[number]));
    return { ...inked(changed), visible: !hidden.has(trace.meta), showlegend: false };
  });
}

function annotations(chosen) {
  const all = chosen.flatMap((variant) => variant.annotations ?? []);
  return inked(all.filter((each) => !hidden.has(each.name)));
}

function axes(chart, chosen) {
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
    return [name, Object.assign({ ...base }, chart.layout[name], ...changes)];
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
    ...axes(chart, chosen),
    ...space(chart, element),
    font: { family: "system-ui, sans-serif", size: 12, color: colour("--ink") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 8, r: 12, t: 12, b: 8 },
    hovermode: "closest",
    hoverlabel: { bgcolor: colour("--paper"), font: { color: colour("--ink") } },
    annotations: annotations(chosen),
    // A zoom outlives hiding and showing, but not another axis.
    uirevision: JSON.stringify(chosen.map(({ traces, annotations, ...axis }) => axis)),
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
for (const input of document.querySelectorAll("input[type=radio], select")) input.addEventListener("change", drawAll);

function addressOf(text, type) {
  return URL.createObjectURL(new Blob([text], { type }));
}

const download = document.getElementById("download");
if (download) download.href = addressOf(document.getElementById("study").textContent, "application/json");

// Tables as files, and for pasting.
const exported = JSON.parse(document.getElementById("exports")?.textContent ?? "{}");
for (const link of document.querySelectorAll("a[data-export]")) {
  link.href = addressOf(exported[link.dataset.table][link.dataset.export], "text/plain");
}
for (const button of document.querySelectorAll("button[data-export]")) {
  button.addEventListener("click", async () => {
    const text = button.textContent;
    const copied = await copy(exported[button.dataset.table][button.dataset.export]);
    button.textContent = copied ? "copied" : "no clipboard";
    setTimeout(() => { button.textContent = text; }, 1500);
  });
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Where a page from a file may not: by hand, from a field of its own.
    const field = document.body.appendChild(document.createElement("textarea"));
    field.value = text;
    field.select();
    const copied = document.execCommand("copy");
    field.remove();
    return copied;
  }
}

drawAll();
dark.addEventListener("change", drawAll);

// Plotly draws in pixels, so before a browser lays out its pages they must be as wide as paper. Its
// own resizing waits for a tenth of a second, and the browser does not.
function fit(printed) {
  document.documentElement.classList.toggle("printed", printed);
  for (const chart of charts) Plotly.relayout(place(chart), { autosize: true });
}

addEventListener("beforeprint", () => fit(true));
addEventListener("afterprint", () => fit(false));
