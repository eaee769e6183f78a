// From runs and choices to what the chart and its legend show.

import { valueAt } from "./chart.js";
import { atOrBefore } from "./curves.js";
import { h, render } from "./dom.js";
import { count } from "./format.js";
import { AXES, HELDOUT, metric } from "./metrics.js";
import { color } from "./theme.js";
import { title } from "./views.js";

export const SPANS = [0, 10, 50, 200, 1000];
const SMOOTH = "smooth";
const FEW = 40;
const HELDOUT_COLOR = "--c2"; // of a run on its own; beside others each keeps one colour

const curvesOf = (run) => run.closer ?? run.curves;

/** Lines of the chart: each run's metric, faint under its moving average where there is one; held-out losses dashed. */
export function linesOf(runs, focus, colors) {
  return runs.flatMap((run) => {
    const curves = curvesOf(run);
    const stroke = color(colors[run.key]);
    const second = runs.length > 1 ? stroke : color(HELDOUT_COLOR);
    const smooth = curves[SMOOTH];
    const faint = smooth ? `color-mix(in srgb, ${stroke} 32%, transparent)` : stroke;
    const dots = (name) => curves[name].y.length < (name === HELDOUT ? FEW : 2);
    const lines = [{ ...curves[focus], color: faint, width: smooth ? 1 : 1.6, points: dots(focus) }];
    if (smooth) lines.push({ ...smooth, color: stroke, width: 2, points: false });
    if (focus === "loss" && curves[HELDOUT]?.y.length) lines.push({ ...curves[HELDOUT], color: second, width: 1.5, dash: [6, 4], points: dots(HELDOUT) });
    return lines.map(({ step, ...line }) => line);
  });
}

/** Upright lines where the first run was restarted. */
export function marksOf([run]) {
  if (!run) return [];
  const { step: steps, x } = run.curves.loss;
  return run.history.restarts
    .map(({ step }) => x[Math.max(0, atOrBefore(steps, step))])
    .filter((at) => at !== undefined)
    .map((at) => ({ x: at, color: color("--warn") }));
}

/** Rows of the legend: values under the pointer, or the latest. */
export function legendOf(runs, focus, x, marks) {
  const { label, show } = metric(focus);
  const smoothed = runs.some((run) => curvesOf(run)[SMOOTH]);
  const heldout = focus === "loss" && runs.some((run) => curvesOf(run)[HELDOUT]?.y.length);
  const rows = runs.map((run) => {
    const curves = curvesOf(run);
    const at = (name) => (curves[name] ? valueAt(curves[name], x) : undefined);
    const point = at(focus);
    const values = [show(point?.y)];
    if (smoothed) values.push(show(at(SMOOTH)?.y));
    if (heldout) values.push(show(at(HELDOUT)?.y));
    return { mark: marks[run.key], name: title(run.history), key: run.key, values: [...values, count(point?.step)] };
  });
  const dashed = { label: "Held-out loss", mark: runs.length > 1 ? "var(--fg-muted)" : `var(${HELDOUT_COLOR})` };
  return { rows, x, columns: [{ label }, smoothed && { label: "Smoothed" }, heldout && dashed, { label: "Step" }].filter(Boolean) };
}

/** Axis, smoothing and scale. */
export function drawControls(container, state, choose) {
  const { axis, span, log, fit, zoom } = state;
  render(container, [axis, span, log, fit, zoom], () => [
    zoom && h("button", { type: "button", class: "reset", "data-id": "reset", onclick: () => choose({ zoom: null }) }, "Whole run"),
    h("span", { class: "segments", role: "group", "aria-label": "Horizontal axis" }, Object.entries(AXES).map(([name, label]) =>
      h("button", { type: "button", "data-id": `axis-${name}`, "aria-pressed": String(axis === name), onclick: () => choose({ axis: name }) }, label))),
    h("label", {}, "Smooth over",
      h("select", { "data-id": "smooth", onchange: (event) => choose({ span: event.target.value === "auto" ? "auto" : Number(event.target.value) }) },
        ["auto", ...SPANS].map((value) => h("option", { value, selected: value === span }, value === 0 ? "nothing" : value === "auto" ? "auto" : `${count(value)} steps`)))),
    checkbox("log", "Log scale", log, choose),
    checkbox("fit", "Cut outliers", fit, choose),
  ]);
}

const checkbox = (name, label, checked, choose) =>
  h("label", {}, h("input", { type: "checkbox", "data-id": name, checked, onchange: (event) => choose({ [name]: event.target.checked }) }), label);
