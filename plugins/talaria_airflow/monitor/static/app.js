// The page's state, and the loop that keeps it fresh: every few seconds it asks for what is new, and for nothing while hidden.

import { ask, Gone } from "./api.js";
import { makeChart } from "./chart.js";
import { drawControls, legendOf, linesOf, marksOf, SPANS } from "./curve_view.js";
import { extend, received } from "./curves.js";
import { byId } from "./dom.js";
import { AXES, HELDOUT, metric } from "./metrics.js";
import { drawScope, drawPulse } from "./page_status.js";
import { followTheme } from "./theme.js";
import * as views from "./views.js";

const LIVE_MS = 2500;
const LIST_MS = 10_000;
const REGISTRY_MS = 30_000;
const MOST_MS = 30_000;
const COLORS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6"];

const scope = new URLSearchParams(location.search);
const hash = new URLSearchParams(location.hash.slice(1));

const state = {
  cards: null,
  chosen: (hash.get("runs") ?? "").split(",").filter(Boolean),
  focus: metric(hash.get("metric")).name,
  axis: hash.get("axis") in AXES ? hash.get("axis") : "step",
  span: hash.has("smooth") ? Number(hash.get("smooth")) : "auto",
  log: hash.has("log"),
  fit: hash.has("fit"),
  zoom: null,
  hover: null,
  now: 0,
  trouble: null,
};
const runs = new Map(); // key -> {history, view, cursor, curves, closer, registry}

const chart = makeChart(byId("plot"), {
  onHover: (x) => {
    state.hover = x;
    drawLegend();
  },
  onZoom: (from, to) => choose({ zoom: from === null ? null : [from, to] }),
});

// --- what to ask for

const viewOf = (key) => ({ focus: state.focus, axis: state.axis, smooth: spanOf(key) });
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
const cardOf = (key) => state.cards.find((card) => card.key === key);

/** Steps to average over: chosen, or few beside the run's length, so that the average does not trail. */
function spanOf(key) {
  if (state.span !== "auto") return state.span;
  return SPANS.findLast((span) => span <= cardOf(key).step / 150) ?? 0;
}

async function askList() {
  const query = scope.has("run_id") ? { dag_id: scope.get("dag_id"), run_id: scope.get("run_id") } : {};
  const { now, runs: cards, more } = await ask("runs", query);
  Object.assign(state, { now, cards, more, listed: Date.now() });
  state.chosen = state.chosen.filter(cardOf).slice(0, COLORS.length);
  if (!state.chosen.length && cards.length) state.chosen = [cards[0].key];
}

async function askRun(key) {
  const run = runs.get(key) ?? { curves: {}, cursor: "" };
  runs.set(key, run);
  const view = viewOf(key);
  const card = cardOf(key);
  const live = card.state === "running" || card.state === "starting";
  if (live || !same(view, run.view) || run.history?.state !== card.state) {
    const since = same(view, run.view) ? run.cursor : "";
    const [history, piece] = await Promise.all([ask(`runs/${key}`), ask(`runs/${key}/curves`, { ...view, since })]);
    run.history = history;
    state.now = history.now;
    for (const name of Object.keys(card)) card[name] = history[name];
    if (same(view, viewOf(key))) take(run, view, piece); // else something else was chosen meanwhile: the next round asks for that
  }
  if (state.zoom && !run.closer) {
    const [start, stop] = state.zoom;
    const { curves } = await ask(`runs/${key}/curves`, { ...view, name: [view.focus, HELDOUT], start, stop });
    run.closer = Object.fromEntries(Object.entries(curves).map(([name, piece]) => [name, received(piece)]));
  }
}

function take(run, view, { cursor, whole, curves }) {
  const known = whole ? {} : run.curves;
  const join = (name, piece) => (known[name] && name !== HELDOUT ? extend(known[name], piece) : piece);
  run.curves = Object.fromEntries(Object.entries(curves).map(([name, piece]) => [name, join(name, received(piece))]));
  Object.assign(run, { view, cursor });
}

/** MLflow may be slow or away, so nothing waits for it. */
async function askRegistry(key) {
  const run = runs.get(key);
  if (!run?.history?.mlflow_run_id || Date.now() - (run.asked ?? 0) < REGISTRY_MS) return;
  run.asked = Date.now();
  run.registry = await ask(`runs/${key}/registry`).catch((error) => ({ versions: [], decision: [], problem: error.message }));
  draw();
}

// --- the loop: one round at a time

let turning = false;
let again = false;
let timer;
let wait = LIVE_MS;

async function turn() {
  if (turning) {
    again = true;
    return;
  }
  turning = true;
  clearTimeout(timer);
  try {
    do {
      again = false;
      if (!state.cards || Date.now() - state.listed > LIST_MS) await askList();
      await Promise.all(state.chosen.map(askRun));
    } while (again);
    Object.assign(state, { trouble: null });
    wait = LIVE_MS;
  } catch (error) {
    if (error instanceof Gone) state.listed = 0; // it was pruned, or is being published this moment
    state.trouble = error.message;
    wait = Math.min(MOST_MS, 2 * wait);
  }
  turning = false;
  draw();
  if (state.chosen.length) askRegistry(state.chosen[0]);
  if (!document.hidden) timer = setTimeout(turn, wait);
}

document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : turn()));

// --- what a person chooses

function choose(change) {
  if (["focus", "axis", "zoom", "chosen"].some((name) => name in change)) {
    state.zoom = null;
    for (const run of runs.values()) run.closer = null;
  }
  Object.assign(state, change);
  remember();
  draw();
  turn();
}

const open = (key) => choose({ chosen: [key] });

function toggle(key) {
  const rest = state.chosen.filter((other) => other !== key);
  if (rest.length === state.chosen.length) choose({ chosen: [...rest, key].slice(-COLORS.length) });
  else if (rest.length) choose({ chosen: rest });
}

function remember() {
  const kept = new URLSearchParams({ runs: state.chosen.join(","), metric: state.focus, axis: state.axis });
  if (state.span !== "auto") kept.set("smooth", state.span);
  for (const flag of ["log", "fit"]) if (state[flag]) kept.set(flag, "1");
  history.replaceState(null, "", `#${kept}`);
}

// --- drawing

const colors = () => Object.fromEntries(state.chosen.map((key, index) => [key, COLORS[index]]));
const asCss = (names) => Object.fromEntries(Object.entries(names).map(([key, name]) => [key, `var(${name})`]));
const shown = () => state.chosen.map((key) => ({ key, ...runs.get(key) })).filter((run) => run.history && run.curves[state.focus]);

function draw() {
  drawPulse(byId("pulse"), state);
  if (!state.cards) return;
  drawScope(byId("scope"), byId("empty"), byId("layout"), scope, state);
  const marks = asCss(colors());
  views.drawRuns(byId("runs"), { cards: state.cards, more: state.more, colors: marks, now: state.now }, { open, toggle });
  const [front] = shown();
  if (!front) return;
  views.drawHead(byId("head"), front.history, front.registry, state.now);
  const curves = Object.fromEntries(shown().map((run) => [run.key, run.curves]));
  const latest = { ...front.history.latest, [HELDOUT]: front.history.heldout_loss };
  views.drawTiles(byId("tiles"), { latest, curves, colors: marks, chosen: state.focus }, (focus) => choose({ focus }));
  views.drawEvents(byId("events"), front.history.events);
  views.drawFacts(byId("facts"), front.history, front.registry);
  views.drawComparison(byId("compare"), shown().map((run) => run.history), marks);
  drawControls(byId("controls"), state, choose);
  byId("chart-title").textContent = metric(state.focus).label;
  drawChart();
  drawLegend();
}

function drawChart() {
  const { axis, log, fit, focus } = state;
  chart.show({ lines: linesOf(shown(), focus, colors()), marks: marksOf(shown()), axis, log, fit, format: metric(focus).tick ?? metric(focus).show });
}

function drawLegend() {
  const { focus, hover } = state;
  views.drawLegend(byId("legend"), legendOf(shown(), focus, hover, asCss(colors())));
}

followTheme(draw);
turn();
