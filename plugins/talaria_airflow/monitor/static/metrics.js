// What is measured each step, and how it is written.

import { compact, fixed, gibibytes, milliseconds, percent, plain, scientific } from "./format.js";

export const HELDOUT = "heldout_loss";

export const METRICS = [
  { name: "loss", label: "Training loss", show: fixed(4), tick: plain },
  { name: HELDOUT, label: "Held-out loss", show: fixed(4), tick: plain },
  { name: "grad_norm", label: "Gradient norm", show: fixed(3), tick: plain },
  { name: "lr", label: "Learning rate", show: scientific },
  { name: "tokens_per_second", label: "Tokens/s", show: compact },
  { name: "mfu", label: "MFU", show: percent },
  { name: "data_wait_seconds", label: "Data wait", show: milliseconds },
  { name: "memory_bytes", label: "GPU memory", show: gibibytes },
];

export const metric = (name) => METRICS.find((one) => one.name === name) ?? METRICS[0];

export const AXES = { step: "Steps", tokens: "Tokens", hours: "Hours" };
