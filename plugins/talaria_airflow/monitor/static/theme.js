// Light or dark as Airflow has it, with Airflow's own colours.

const OURS = { "--bg": "bg", "--bg-muted": "bg-muted", "--edge": "border-emphasized", "--fg": "fg", "--fg-muted": "fg-muted" };
const host = window.parent.document.documentElement;
const embedded = host !== document.documentElement;
const system = matchMedia("(prefers-color-scheme: dark)");

// On a page of its own it follows what Airflow's switch wrote last (next-themes: light, dark or system).
function isDark() {
  if (embedded) return host.classList.contains("dark");
  const chosen = localStorage.getItem("theme");
  return chosen === "dark" || (chosen !== "light" && system.matches);
}

function apply() {
  const root = document.documentElement;
  root.classList.toggle("dark", isDark());
  if (!embedded) return;
  const theirs = getComputedStyle(host);
  for (const [ours, name] of Object.entries(OURS)) {
    const value = theirs.getPropertyValue(`--chakra-colors-${name}`).trim();
    if (value) root.style.setProperty(ours, value);
  }
}

/** Follow the theme; `changed` is called after each change. */
export function followTheme(changed) {
  const update = () => {
    apply();
    changed();
  };
  apply();
  new MutationObserver(update).observe(host, { attributes: true, attributeFilter: ["class"] });
  system.addEventListener("change", update);
  addEventListener("storage", update);
}

export const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
