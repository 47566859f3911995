"use strict";

// Turns the surface about its vertical axis, from wherever it has been turned to by hand.
const surface = document.getElementById("chart-surface");
const button = document.getElementById("orbit");
const TURN = 24000; // milliseconds
let running = false;
let last = 0;

function turn(now) {
  if (!running) return;
  const angle = (2 * Math.PI * Math.min(now - last, 100)) / TURN;
  last = now;
  const camera = surface._fullLayout.scene.camera;
  const { x, y, z } = camera.eye;
  const eye = { x: x * Math.cos(angle) - y * Math.sin(angle), y: x * Math.sin(angle) + y * Math.cos(angle), z };
  Plotly.relayout(surface, { "scene.camera": { ...camera, eye } }).then(() => requestAnimationFrame(turn));
}

function toggle() {
  running = !running;
  button.setAttribute("aria-pressed", String(running));
  button.textContent = running ? "❚❚ stop turning" : "▶ turn";
  last = performance.now();
  if (running) requestAnimationFrame(turn);
}

button?.addEventListener("click", toggle);
// A hand on the surface takes over.
surface?.addEventListener("pointerdown", () => running && toggle(), { capture: true });
