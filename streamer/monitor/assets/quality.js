// What the data look like: a small histogram for each channel, kind of object and tagger, against the reference.

import { element, number } from "./chain.js";

const NOTABLE = 0.1, LARGE = 0.25; // as in streamer/reference.py
const TITLES = {
  score: ["Scores", "of each tagger"],
  objects: ["Objects", "in an event"],
  energy: ["Energy", "of a channel in an event [GeV]; of tracks, transverse momenta"],
  occupancy: ["Occupancy", "share of a channel's pixels in an event that are not empty"],
};
const WIDE = 10.2; // of a plot [rem]
const HEIGHT = 100;
const SVG = "http://www.w3.org/2000/svg";

const at = (id) => document.getElementById(id);
let last = "";

export function showQuality(all, window) {
  const text = JSON.stringify(all ?? []);
  if (text === last) return;
  last = text;
  at("quality").hidden = !all?.some((one) => sum(one.counts));
  if (at("quality").hidden) return;
  const judged = all.some((one) => one.reference);
  at("quality-note").textContent = judged
    ? `the last ${window} s; the line is the reference, the number how far from it: 0.1 is worth a look, at 0.25 something has changed`
    : `the last ${window} s; of a good run, keep it as a reference: streamer reference -o FILE`;
  const order = Object.keys(TITLES);
  const kinds = [...new Set(all.map((one) => one.quantity))].sort((a, b) => order.indexOf(a) - order.indexOf(b));
  at("quantities").replaceChildren(...kinds.map((kind) => {
    const [title, more] = TITLES[kind] ?? [kind, ""];
    const head = element("h3", "", title + " ");
    head.append(element("small", "", more));
    const plots = element("div", "plots");
    plots.append(...all.filter((one) => one.quantity === kind).map(plot));
    const group = element("div");
    group.style.flex = `1 1 ${WIDE * plots.childElementCount}rem`;
    group.append(head, plots);
    return group;
  }));
}

const sum = (counts) => counts.reduce((a, b) => a + b, 0);
const kind = (drift) => (drift === null ? "quiet" : drift < NOTABLE ? "good" : drift < LARGE ? "warn" : "bad");

function plot(one) {
  const { quantity, value, edges, counts, mean, reference, reference_mean: other, drift, why_not: why } = one;
  const made = element("figure", drift === null || drift < NOTABLE ? "" : kind(drift));
  made.dataset.quantity = quantity;
  made.dataset.value = value;
  const n = sum(counts);
  const told = drift === null ? (reference ? "…" : n ? "" : "–") : drift.toFixed(2);
  const caption = element("figcaption");
  caption.append(element("b", "", value), element("span", kind(drift), told));
  const means = `${number(n)} entries, mean ${short(mean)}` + (reference ? `, reference ${short(other)}` : "");
  made.title = means + (why && reference ? `\n${why}` : "") + (drift === null ? "" : `\ndrift ${drift.toFixed(3)}`);
  const shares = counts.map((count) => (n ? count / n : 0));
  const [first, end] = range(shares, reference);
  const most = Math.max(...shares, ...(reference ?? [0]), 1e-9);
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", `0 0 ${end - first} ${HEIGHT}`);
  drawing.setAttribute("preserveAspectRatio", "none");
  drawing.append(path("now", steps(shares.slice(first, end), most) + "Z"));
  if (reference) drawing.append(path("reference", steps(reference.slice(first, end), most)));
  const ends = element("div", "ends");
  ends.append(element("span", "", low(edges, first)), element("span", "", high(edges, end - 1)));
  made.append(caption, drawing, ends, element("div", "small", n ? `mean ${short(mean)}` : "nothing yet"));
  return made;
}

// From the first to the last bin with content.
function range(...all) {
  const full = all.filter(Boolean).flatMap((shares) => shares.flatMap((share, k) => (share ? [k] : [])));
  return full.length ? [Math.min(...full), Math.max(...full) + 1] : [0, all[0].length];
}

// By the root of the share, so that small ones are seen.
function steps(shares, most) {
  const heights = shares.map((share) => HEIGHT * (1 - Math.sqrt(share / most) * 0.96));
  return `M0 ${HEIGHT}` + heights.map((y, k) => `L${k} ${y.toFixed(1)}L${k + 1} ${y.toFixed(1)}`).join("") + `L${shares.length} ${HEIGHT}`;
}

function path(name, text) {
  const made = document.createElementNS(SVG, "path");
  made.setAttribute("class", name);
  made.setAttribute("d", text);
  return made;
}

const low = (edges, bin) => (bin ? short(edges[bin - 1]) : "≤ " + short(edges[0]));
const high = (edges, bin) => (bin < edges.length ? short(edges[bin]) : "> " + short(edges.at(-1)));

function short(value) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 0.01 || size >= 1e5) return value.toExponential(1).replace(".0e", "e");
  return size < 10 ? String(Number(value.toPrecision(2))) : Math.round(value).toLocaleString("en-US");
}
