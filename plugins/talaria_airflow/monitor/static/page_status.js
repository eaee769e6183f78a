// What the page says about itself: whose runs it shows, whether it is up to date, why it is empty.

import { h, render } from "./dom.js";

export function drawPulse(container, { trouble, cards }) {
  const live = cards?.some((card) => card.state === "running");
  container.textContent = trouble ?? (cards ? (live ? "Live" : "Nothing is running") : "Loading");
  container.className = trouble ? "trouble" : live ? "live" : "";
}

export function drawScope(container, empty, layout, scope, { cards }) {
  const run = scope.get("run_id");
  render(container, [run], () => (run ? [h("span", { class: "muted" }, `of DAG run ${run} `), h("a", { href: "./" }, "all runs")] : []));
  layout.hidden = cards.length === 0;
  layout.className = cards.length === 1 ? "single" : "";
  empty.hidden = cards.length > 0;
  empty.textContent = run ? "This DAG run has not trained anything yet; a training shows here as soon as it starts." : "No training in this store yet. Trigger the DAG, or run `talaria run CONFIG`.";
}
