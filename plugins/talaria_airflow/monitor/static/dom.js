// Elements without strings of HTML: text is always text, whatever a run calls itself.

export const byId = (id) => document.getElementById(id);

/** h("button", {class: "x", "aria-pressed": true, onclick}, child, "text") */
export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

const SVG = "http://www.w3.org/2000/svg";

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--") || name === "width%") setStyle(element, name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Styles go through the object model: a strict content security policy forbids style attributes.
function setStyle(element, name, value) {
  if (name === "width%") element.style.width = `${value}%`;
  else element.style.setProperty(name, value);
}

const shown = new WeakMap();

/** Replace a container's children if what they show has changed; the focus stays where it was. */
export function render(container, facts, build) {
  const text = JSON.stringify(facts);
  if (shown.get(container) === text) return;
  shown.set(container, text);
  const focused = container.contains(document.activeElement) ? document.activeElement.dataset.id : undefined;
  const open = [...container.querySelectorAll("details[open]")].map((element) => element.dataset.id);
  const scrolled = [...container.querySelectorAll("[data-scroll]")].map((element) => element.scrollTop);
  container.replaceChildren(...[build()].flat(2).filter(Boolean));
  for (const id of open) container.querySelector(`details[data-id="${id}"]`)?.setAttribute("open", "");
  container.querySelectorAll("[data-scroll]").forEach((element, index) => (element.scrollTop = scrolled[index] ?? 0));
  if (focused) container.querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

/** Small line drawings over one another: lines = [{x, y, color}] on common scales. */
export function sparkline(lines) {
  const svg = fill(document.createElementNS(SVG, "svg"), { class: "spark", viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" }, []);
  const every = (pick) => lines.flatMap(pick).filter((value) => value !== null);
  const [xs, ys] = [every((line) => line.x), every((line) => line.y)];
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const place = (value, from, to) => (to > from ? (value - from) / (to - from) : 0.5);
  const draw = (points, color, kind) => {
    const path = points.map(([a, b]) => `${(100 * place(a, left, right)).toFixed(2)},${(28 - 26 * place(b, low, high)).toFixed(2)}`);
    if (path.length < 2) return;
    const line = fill(document.createElementNS(SVG, "path"), { class: kind, d: `M${path.join("L")}` }, []);
    if (color) line.style.stroke = color;
    svg.append(line);
  };
  for (const { x, y, color } of lines) {
    const points = y.map((value, index) => [x[index], value]).filter(([, value]) => value !== null);
    const crowded = points.length > CROWDED;
    draw(points, color, crowded ? "faint" : "");
    if (crowded) draw(averaged(points), color, "");
  }
  return svg;
}

const CROWDED = 60;

/** About CROWDED / 2 points that run through the middle of a crowd. */
function averaged(points) {
  const size = Math.ceil((2 * points.length) / CROWDED);
  const groups = Array.from({ length: Math.ceil(points.length / size) }, (_, group) => points.slice(group * size, (group + 1) * size));
  return groups.map((group) => [0, 1].map((part) => group.reduce((sum, point) => sum + point[part], 0) / group.length));
}

/** A link to somewhere else. Airflow shows this page in a sandboxed frame that may not open windows, so there the click
 * is done over in the page around it (same origin, whose code put us there). */
export function linkOut(text, href) {
  if (!/^https?:/.test(href)) return h("span", {}, text);
  const follow = (event) => {
    if (window.parent === window) return;
    event.preventDefault();
    const stand = window.parent.document.createElement("a");
    Object.assign(stand, { href, target: "_blank", rel: "noopener" });
    stand.click();
  };
  return h("a", { href, target: "_blank", rel: "noopener", "data-id": href, onclick: follow }, `${text} ↗`);
}
