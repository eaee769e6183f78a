// Numbers, times and ages for people.

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const missing = "–";
const known = (value) => typeof value === "number" && Number.isFinite(value);

export const count = (value) => (known(value) ? grouped.format(value) : missing);
export const fixed = (digits) => (value) => (known(value) ? value.toFixed(digits) : missing);
export const plain = (value) => (known(value) ? String(Number(value.toPrecision(4))) : missing);
export const percent = (value) => (known(value) ? `${(100 * value).toFixed(1)} %` : missing);
export const scientific = (value) => (known(value) ? value.toExponential(2) : missing);
export const gibibytes = (value) => (known(value) ? `${(value / 2 ** 30).toFixed(1)} GiB` : missing);
export const milliseconds = (value) => (known(value) ? `${(1000 * value).toFixed(value < 0.01 ? 1 : 0)} ms` : missing);

export function compact(value) {
  if (!known(value)) return missing;
  for (const [size, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size) return `${(value / size).toPrecision(3)} ${unit}`;
  }
  return String(Number(value.toPrecision(3)));
}

export function duration(seconds) {
  if (!known(seconds)) return missing;
  const whole = Math.max(0, Math.round(seconds));
  const [days, hours, minutes] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  if (minutes >= 10) return `${minutes} min`;
  return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

export const age = (then, now) => (known(then) ? `${duration(now - then)} ago` : missing);

export function clock(time) {
  if (!known(time)) return missing;
  const date = new Date(1000 * time);
  const sameDay = date.toDateString() === new Date().toDateString();
  return date.toLocaleString("en-GB", sameDay ? { hour: "2-digit", minute: "2-digit", second: "2-digit" } : { day: "2-digit", month: "short", hour: "2-digit", minute: "2-digit" });
}
