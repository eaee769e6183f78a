// Curves as they arrive: pieces are joined, and thinned again when they grow long, with every spike kept.

const MOST_POINTS = 2400;

/** Join a piece to what is there. Both are {step, x, y}; the piece begins after the end of the other. */
export function extend(curve, piece) {
  const joined = { step: curve.step.concat(piece.step), x: curve.x.concat(piece.x), y: curve.y.concat(piece.y) };
  return joined.y.length > MOST_POINTS ? pick(joined, thin(joined.y, MOST_POINTS / 4)) : joined;
}

/** A curve as the server sends it, with x in full. */
export const received = ({ step, x, y }) => ({ step, x: x ?? step, y });

/** Indices of the lowest and the highest value in each of `buckets` stretches, and of both ends (columns.py has its twin). */
export function thin(values, buckets) {
  const kept = new Set([0, values.length - 1]);
  for (let bucket = 0; bucket < buckets; bucket++) {
    const [start, stop] = [bucket, bucket + 1].map((edge) => Math.floor((edge * values.length) / buckets));
    let [low, high] = [start, start];
    for (let index = start; index < stop; index++) {
      if (values[index] < values[low]) low = index;
      if (values[index] > values[high]) high = index;
    }
    kept.add(low).add(high);
  }
  return [...kept].sort((a, b) => a - b);
}

const pick = (curve, indices) =>
  Object.fromEntries(Object.entries(curve).map(([name, values]) => [name, indices.map((index) => values[index])]));

/** Index of the last element <= value, -1 if there is none. `sorted` ascends. */
export function atOrBefore(sorted, value) {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}
