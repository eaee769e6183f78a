// The parts of the page around the chart, each made from facts alone.

import { h, linkOut, render, sparkline } from "./dom.js";
import { age, clock, compact, count, duration, fixed, percent } from "./format.js";
import { METRICS } from "./metrics.js";

const short = (key) => key.slice(0, 8);
export const title = (card) => card.name ?? short(card.key);

const pill = (card) => h("span", { class: `pill ${card.state}` }, card.state);
const share = (card) => (card.total_steps ? Math.min(100, (100 * card.step) / card.total_steps) : 0);

/** The list of runs. `colors`: key -> CSS colour of the chosen ones. */
export function drawRuns(container, { cards, more, colors, now }, { open, toggle }) {
  render(container, [cards, more, colors, Math.floor(now / 60)], () => [
    cards.map((card) => drawCard(card, colors, now, { open, toggle })),
    more > 0 && h("p", { class: "muted" }, `${count(more)} older ones: talaria runs`),
  ]);
}

function drawCard(card, colors, now, { open, toggle }) {
  const chosen = card.key in colors;
  const facts = card.state === "done" || !card.total_steps ? `${count(card.step)} steps` : `${count(card.step)} of ${count(card.total_steps)}`;
  const loss = card.heldout_loss === null ? `loss ${fixed(3)(card.loss)}` : `held-out ${fixed(3)(card.heldout_loss)}`;
  return h("div", { class: `card ${card.state} ${chosen ? "chosen" : ""}`, "--mark": colors[card.key] },
    h("button", { class: "open", type: "button", "data-id": `open-${card.key}`, "aria-current": chosen, onclick: () => open(card.key) },
      h("span", { class: "row" }, h("span", { class: "title" }, title(card)), pill(card)),
      sparkline([{ x: card.spark.map((_, index) => index), y: card.spark }]),
      h("span", { class: "row sub" }, h("span", { class: "number" }, `${facts} · ${loss}`)),
      h("span", { class: "row sub" }, h("span", {}, h("code", {}, short(card.key)), ` · ${age(card.active, now)}`))),
    h("button", {
      class: "add", type: "button", "data-id": `add-${card.key}`, "aria-pressed": String(chosen), title: "Compare",
      "aria-label": `Compare ${title(card)} ${short(card.key)}`, onclick: () => toggle(card.key),
    }, chosen ? "✓" : "+"));
}

/** Name, state, links and progress of the run in front. */
export function drawHead(container, run, registry, now) {
  const seconds = Math.round(now);
  render(container, [run, registry, run.state === "running" ? seconds : 0], () => [
    h("div", { class: "line" }, h("h2", {}, title(run)), pill(run), h("code", {}, short(run.key)), h("span", { class: "links" }, links(run, registry))),
    h("div", { class: `bar ${run.state}`, role: "progressbar", "aria-label": "Progress", "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(share(run)) },
      h("i", { "width%": share(run) })),
    h("div", { class: "facts number" }, headFacts(run, now).map((fact) => h("span", {}, fact))),
    alert(run),
  ]);
}

function links(run, registry) {
  const { dag_id, run_id } = run.dag_run ?? {};
  const found = [];
  if (dag_id && run_id) found.push(linkOut("DAG run", new URL(`../dags/${encodeURIComponent(dag_id)}/runs/${encodeURIComponent(run_id)}`, document.baseURI).href));
  const there = registry?.run_url ?? run.mlflow_url;
  if (there) found.push(linkOut("MLflow run", there));
  const version = registry?.versions.find((one) => one.aliases.length) ?? registry?.versions[0];
  if (version?.url) found.push(linkOut(`${version.name} v${version.version}`, version.url));
  return found;
}

function headFacts(run, now) {
  const bold = (text) => h("b", {}, text);
  const facts = [["step ", bold(count(run.step)), run.total_steps ? ` of ${count(run.total_steps)}` : "", run.total_steps ? ` · ${Math.floor(share(run))} %` : ""]];
  if (run.epoch !== null) facts.push(["epoch ", bold(run.epoch.toFixed(2))]);
  if (run.eta_seconds !== null) facts.push([bold(duration(run.eta_seconds)), " left"]);
  else if (run.started) facts.push(["took ", bold(duration(run.active - run.started))]);
  if (run.world_size) facts.push([bold(run.world_size === 1 ? "1 rank" : `${run.world_size} ranks`), run.state === "running" ? `, last sign ${age(run.active, now)}` : ""]);
  if (run.restarts.length) facts.push([bold(run.restarts.length === 1 ? "1 restart" : `${run.restarts.length} restarts`)]);
  if (run.checkpoints.count) facts.push([bold(count(run.checkpoints.count)), ` checkpoints, last at step ${count(run.checkpoints.last_step)}`]);
  return facts.map((parts) => parts.flat());
}

function alert(run) {
  if (run.state === "unreadable") return box("lost", "Unreadable", run.reason);
  if (run.state === "lost") return box("lost", "Lost", "it claims to run, but nothing has been written for longer than it would let itself hang. A retry continues from the last checkpoint.");
  if (run.quiet_seconds !== null) return box("preempted", "Quiet", `no sign of life for ${duration(run.quiet_seconds)}.`);
  if (run.state === "failed") return box("failed", "Failed", run.reason ?? "no reason was recorded.");
  if (run.state === "preempted") return box("preempted", "Stopped early", `${run.reason ?? "on a signal"}. A retry continues from the last checkpoint.`);
  return null;
}

const box = (kind, word, text) => h("p", { class: `alert ${kind}` }, h("b", {}, `${word}: `), text);

/** A tile a metric: its latest value and a small curve of each chosen run; a press shows it in the chart. */
export function drawTiles(container, { latest, curves, colors, chosen }, pick) {
  const facts = METRICS.map(({ name }) => [latest[name], Object.keys(curves).map((key) => curves[key][name]?.y.length)]);
  render(container, [facts, colors, chosen, Object.values(curves).map((all) => all.loss?.step.at(-1))], () =>
    METRICS.map(({ name, label, show }) =>
      h("button", { class: "tile", type: "button", "data-id": `tile-${name}`, "data-metric": name, "aria-pressed": String(name === chosen), onclick: () => pick(name) },
        h("div", { class: "label" }, label),
        h("div", { class: "value number" }, show(latest[name])),
        tileCurve(Object.entries(curves).filter(([, all]) => all[name]?.y.length).map(([key, all]) => ({ ...all[name], color: colors[key] }))))));
}

// The run in front is drawn last, over the others.
const tileCurve = (lines) => (lines.length ? sparkline(lines.reverse()) : h("div", { class: "label" }, "not measured"));

/** What happened, latest first. */
export function drawEvents(container, events) {
  render(container, events, () => [
    h("h3", {}, "Events"),
    events.length === 0 ? h("p", { class: "muted" }, "Nothing yet.") : h("ol", { "data-scroll": "", tabindex: 0, "aria-label": "Events, latest first" }, events.toReversed().map((event) =>
      h("li", { class: event.kind },
        h("span", { class: "muted number" }, clock(event.time)),
        h("span", { class: `kind ${event.kind}` }, String(event.kind ?? "").replace("_", " ")),
        h("span", {}, String(event.message ?? ""))))),
  ]);
}

const version = ({ name, version: number, url, aliases }) =>
  h("span", {}, url ? linkOut(`${name} v${number}`, url) : `${name} v${number}`, aliases.map((alias) => h("span", { class: "chip" }, alias)));

/** Totals, why it restarted, what the registry says, and the settings. */
export function drawFacts(container, run, registry) {
  render(container, [run.tokens, run.cost, run.best_heldout, run.restarts, run.skipped_lines, registry, run.settings], () => {
    const pairs = [["Tokens", `${compact(run.tokens)}`]];
    if (run.best_heldout) pairs.push(["Best held-out loss", `${run.best_heldout.loss.toFixed(4)} at step ${count(run.best_heldout.step)}`]);
    if (run.cost.gpu_hours) pairs.push(["GPU-hours", run.cost.gpu_hours.toFixed(2)]);
    if (run.cost.energy_kwh !== null) pairs.push(["Energy", `${run.cost.energy_kwh.toFixed(2)} kWh`]);
    if (run.started) pairs.push(["Started", clock(run.started)]);
    for (const one of run.restarts) pairs.push(["Restarted", `at step ${count(one.step)}, ${clock(one.time)}: ${one.why}`]);
    if (run.skipped_lines) pairs.push(["Broken lines", `${count(run.skipped_lines)} passed over in the logs`]);
    if (registry?.versions.length) pairs.push(["Versions", registry.versions.map(version)]);
    if (registry?.answers) pairs.push(["Answers", linkOut("base and tuned model, side by side", new URL(registry.answers, document.baseURI).href)]);
    for (const [name, text] of registry?.decision ?? []) pairs.push([name, text]);
    if (registry?.problem) pairs.push(["MLflow", registry.problem]);
    return [
      h("h3", {}, "Facts"),
      h("dl", {}, pairs.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      h("details", { "data-id": "settings" }, h("summary", {}, "Settings"), h("div", { class: "scroll", tabindex: 0 }, settingsTable(run.settings))),
    ];
  });
}

const settingsTable = (settings) =>
  h("table", {}, h("tbody", {}, Object.entries(settings).map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, written(value))))));

const written = (value) => (value === null || value === undefined ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));

/** Runs side by side: results, then the settings in which they differ. */
export function drawComparison(container, runs, colors) {
  container.hidden = runs.length < 2;
  if (container.hidden) return;
  render(container, [runs.map((run) => [run.key, run.step, run.latest, run.best_heldout, run.tokens, run.active]), colors], () => {
    const results = [
      ["Steps", (run) => run.step, count],
      ["Tokens", (run) => run.tokens, compact],
      ["Training loss", (run) => run.loss, fixed(4), "lowest"],
      ["Best held-out loss", (run) => run.best_heldout?.loss, fixed(4), "lowest"],
      ["Tokens/s", (run) => run.latest.tokens_per_second, compact],
      ["MFU", (run) => run.latest.mfu, percent],
      ["Time", (run) => (run.started ? run.active - run.started : null), duration],
    ];
    const names = [...new Set(runs.flatMap((run) => Object.keys(run.settings)))];
    const differ = names.filter((name) => new Set(runs.map((run) => written(run.settings[name]))).size > 1);
    return [
      h("h3", {}, "Side by side"),
      h("div", { class: "scroll", tabindex: 0 }, h("table", {},
        h("thead", {}, h("tr", {}, h("th", { scope: "col" }, ""), runs.map((run) => h("th", { scope: "col" }, swatch(colors[run.key]), `${title(run)} `, h("code", {}, short(run.key)))))),
        h("tbody", {},
          results.map(([label, of, show, best]) => resultRow(label, runs.map(of), show, best)),
          differ.map((name) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, name)), runs.map((run) => h("td", {}, written(run.settings[name])))))))),
    ];
  });
}

function resultRow(label, values, show, best) {
  const numbers = values.filter((value) => typeof value === "number");
  const lowest = best && numbers.length > 1 ? Math.min(...numbers) : null;
  return h("tr", {}, h("th", { scope: "row" }, label), values.map((value) => h("td", { class: value === lowest && lowest !== null ? "best" : undefined }, show(value))));
}

export const swatch = (mark) => h("span", { class: "swatch", "--mark": mark });

/** What the chart shows, with the values under the pointer (`x`) or the latest. */
export function drawLegend(container, { rows, columns, x }) {
  render(container, [rows, columns, x === null], () =>
    h("div", { class: "scroll", tabindex: 0 }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, x === null ? "Latest" : "Under the pointer"), columns.map(({ label, mark }) => h("th", { scope: "col" }, mark && h("span", { class: "dashes", "--mark": mark }), label)))),
      h("tbody", {}, rows.map(({ mark, name, key, values }) =>
        h("tr", {}, h("td", {}, swatch(mark), `${name} `, h("code", {}, short(key))), values.map((value) => h("td", {}, value))))))));
}
