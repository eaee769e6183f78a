// The large chart: one metric of the chosen runs, over steps, tokens or hours.

import { atOrBefore } from "./curves.js";
import { compact, count } from "./format.js";
import { color } from "./theme.js";

const GAP = 8;
const WHOLE = Array.from({ length: 10 }, (_, power) => [1, 2, 5].map((part) => part * 10 ** power)).flat(); // there is no step 2.5

/**
 * A chart in `container`. `onHover(x)` tells the axis value under the pointer, or null; `onZoom(from, to)` a stretch
 * that was dragged over, `onZoom(null)` a double click.
 */
export function makeChart(container, { onHover, onZoom }) {
  let plot = null;
  let shape = "";
  let marks = [];
  let yText = compact;

  /** lines: [{x, y, color, width, dash, points}]; marks: [{x, color}] drawn as upright lines. */
  function show({ lines, marks: upright, axis, format, log, fit }) {
    marks = upright;
    yText = format;
    const data = lines.length ? uPlot.join(lines.map(({ x, y }) => [x, y])) : [[]];
    const wanted = JSON.stringify([lines.map(({ x, y, ...style }) => style), axis, log, fit, document.documentElement.className]);
    if (plot && shape === wanted) {
      plot.setData(data);
      return;
    }
    shape = wanted;
    plot?.destroy();
    plot = new uPlot(options({ lines, axis, log, fit }), data, container);
  }

  const size = () => ({ width: container.clientWidth, height: container.clientHeight });

  function options({ lines, axis, log, fit }) {
    const line = { stroke: color("--fg-muted"), grid: { stroke: color("--border"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif", gap: GAP };
    const xText = axis === "step" ? count : axis === "tokens" ? compact : (value) => `${Number(value.toFixed(2))} h`;
    return {
      ...size(),
      legend: { show: false },
      padding: [8, 26, 0, 0],
      cursor: { drag: { x: true, y: false, setScale: false }, points: { show: false }, y: false },
      scales: { x: { time: false }, y: { distr: log ? 3 : 1, range: (u, low, high) => span(u, low, high, { log, fit }) } },
      axes: [
        { ...line, grid: { show: false }, values: (_, ticks) => ticks.map(xText), space: 80, size: 30, ...(axis === "step" ? { incrs: WHOLE } : {}) },
        { ...line, values: (_, ticks) => ticks.map((tick) => (tick === null ? null : yText(tick))), size: (_, texts) => 2 * GAP + 6.5 * Math.max(3, ...(texts ?? []).map((text) => text?.length ?? 0)) },
      ],
      series: [{}, ...lines.map(({ color: stroke, width, dash, points }) => ({ stroke, width, dash, spanGaps: true, points: { show: points, size: 5, fill: stroke } }))],
      hooks: {
        setCursor: [(u) => onHover(u.cursor.left >= 0 && u.data[0].length ? u.posToVal(u.cursor.left, "x") : null)],
        setSelect: [(u) => u.select.width > 4 && zoom(u)],
        drawClear: [drawMarks],
      },
    };
  }

  function zoom(u) {
    const { left, width } = u.select;
    u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    onZoom(u.posToVal(left, "x"), u.posToVal(left + width, "x"));
  }

  function drawMarks(u) {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.lineWidth = devicePixelRatio;
    for (const { x, color: stroke } of marks) {
      const at = Math.round(u.valToPos(x, "x", true));
      if (at < bbox.left || at > bbox.left + bbox.width) continue;
      ctx.strokeStyle = stroke;
      ctx.beginPath();
      ctx.moveTo(at, bbox.top);
      ctx.lineTo(at, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  }

  container.addEventListener("dblclick", () => onZoom(null));
  new ResizeObserver(() => plot?.setSize(size())).observe(container);
  return { show };
}

/** Range of the y axis: all values, or (fit) the middle 98 % of those drawn, with a margin. */
function span(u, low, high, { log, fit }) {
  if (low === null || high === null) return [0, 1];
  if (fit) {
    const values = u.data.slice(1).flatMap((column) => column.filter((value) => typeof value === "number")).sort((a, b) => a - b);
    if (values.length > 50) [low, high] = [values[Math.floor(0.01 * values.length)], values[Math.ceil(0.99 * values.length) - 1]];
  }
  if (log) return [low > 0 ? low / 1.05 : Math.max(high, 1e-12) / 1e6, Math.max(high, 1e-12) * 1.05];
  const margin = high > low ? 0.06 * (high - low) : Math.abs(high) * 0.1 || 1;
  return [low >= 0 ? Math.max(0, low - margin) : low - margin, high + margin];
}

/** Value of a curve at x: the last point at or before it. */
export function valueAt(curve, x) {
  const index = x === null ? curve.x.length - 1 : atOrBefore(curve.x, x);
  return index < 0 ? undefined : { step: curve.step[index], y: curve.y[index] };
}
