// What the run sends once a second, put on the page.

import { Charts } from "./charts.js";
import { drawChain, duration, element, number, percent } from "./chain.js";
import { showEvents } from "./display.js";
import { showQuality } from "./quality.js";

const REASONS = { full: "#2a9d8f", idle: "#457b9d", deadline: "#e76f51", max_wait: "#e9c46a", drain: "#8d99a8", alone: "#9b5de5" };
const STALE_MS = 5000;

const at = (id) => document.getElementById(id);
const charts = new Charts();
let heard = 0;

function sum(counts) {
  return Object.values(counts ?? {}).reduce((a, b) => a + b, 0);
}

function verdict(lines) {
  const marks = { good: "✔ ", warn: "▲ ", bad: "✖ ", "": "" };
  at("verdict").replaceChildren(...lines.map(([kind, text]) => element("span", kind, marks[kind] + text)));
}

function tiles(state) {
  const late = state.latency;
  const shown = [
    [number(state.rates.done) + "/s", "events written"],
    [duration(late["0.5"]), "latency p50"],
    [duration(late["0.99"]), "latency p99"],
    [percent(state.dead), "dead time"],
    [number(state.totals.in_flight), "events in flight"],
    [number(state.totals.fed), "events fed"],
  ];
  at("tiles").replaceChildren(...shown.map(([value, name]) => {
    const tile = element("div", "tile");
    tile.append(element("b", "", value), element("span", "", name));
    return tile;
  }));
}

function row(name, value, className = "") {
  const made = element("tr", className);
  made.append(element("th", "", name), element("td", "", number(value)));
  return made;
}

function ledger(totals) {
  const { fed, scored, dropped, in_flight: inFlight, dead_s: _, error, ...others } = totals;
  const rows = [row("fed", fed, "sum"), row("scored", scored), row("errors", error)];
  for (const [name, n] of Object.entries(others)) if (typeof n === "number") rows.push(row(name, n));
  for (const [why, n] of Object.entries(dropped)) if (n) rows.push(row(`dropped: ${why}`, n));
  rows.push(row("in flight", inFlight));
  at("ledger").replaceChildren(...rows);
}

function batches(queues) {
  const head = element("tr");
  for (const title of ["", "objects/s", "in a batch", "waiting", "busy"]) head.append(element("th", "", title));
  head.append(element("th", "", "closed"));
  const seen = new Set();
  const rows = Object.entries(queues).map(([name, one]) => {
    const made = element("tr");
    made.append(element("th", "", name));
    for (const text of [number(one.items), number(one.mean), number(one.waiting), percent(one.seconds)]) made.append(element("td", "", text));
    const bar = element("div", "reasons");
    const total = sum(one.closed);
    for (const [reason, n] of Object.entries(one.closed)) {
      if (!n) continue;
      seen.add(reason);
      const part = element("i");
      part.style.cssText = `width:${(100 * n) / total}%;background:${REASONS[reason] ?? "#999"}`;
      part.title = `${reason}: ${number(n)}/s`;
      bar.append(part);
    }
    const cell = element("td");
    cell.append(bar);
    made.append(cell);
    return made;
  });
  at("batches").replaceChildren(head, ...rows);
  at("reasons").replaceChildren(...[...seen].map((reason) => {
    const made = element("span");
    const box = element("i");
    box.style.background = REASONS[reason] ?? "#999";
    made.append(box, reason);
    return made;
  }));
}

function paths(menu) {
  const names = Object.keys(menu ?? {});
  at("menu").hidden = !names.length;
  if (!names.length) return;
  const steps = Object.keys(menu[names[0]]);
  const head = element("tr");
  for (const title of ["", ...steps.map((step) => step + "/s"), "accepted in all", ""]) head.append(element("th", "", title));
  const most = Math.max(...names.map((name) => menu[name].accepted?.rate ?? 0), 1e-9);
  at("paths").replaceChildren(head, ...names.map((name) => {
    const made = element("tr");
    made.append(element("th", "", name));
    for (const step of steps) made.append(element("td", "", number(menu[name][step].rate)));
    made.append(element("td", "", number(menu[name].accepted?.total ?? 0)));
    const cell = element("td");
    const bar = element("div", "bar");
    const filled = element("i");
    filled.style.width = `${(100 * (menu[name].accepted?.rate ?? 0)) / most}%`;
    bar.append(filled);
    cell.append(bar);
    made.append(cell);
    return made;
  }));
}

function failures(lines, output) {
  at("errors").hidden = !lines?.length;
  if (at("errors").hidden) return;
  const marked = getSelection();
  if (!marked.isCollapsed && at("failures").contains(marked.anchorNode)) return; // a command is just being copied
  at("errors-note").textContent = `the last ${lines.length}, each with the command that tries it again; all of them: streamer errors ${output}`;
  at("failures").replaceChildren(...lines.toReversed().map((one) => {
    const item = element("li");
    const again = element("code", "", one.again);
    again.title = "a click marks it";
    item.append(element("b", "", `run ${one.run}, ls ${one.luminosityBlock}, event ${one.event}`),
      element("span", "quiet", `  entry ${one.sourceEntry} of ${one.source}`),
      element("div", "", `${one.stage}: ${one.reason}`), again);
    return item;
  }));
}

function said(lines) {
  const made = lines.toReversed().map(({ at: when, level, text }) => {
    const item = element("li", level === "WARNING" ? "" : "bad");
    item.append(element("time", "", new Date(when * 1000).toLocaleTimeString()), text);
    return item;
  });
  at("said").replaceChildren(...(made.length ? made : [element("li", "quiet", "none")]));
}

function show(state) {
  heard = Date.now();
  document.body.dataset.state = state.state;
  at("state").textContent = state.state;
  const { run } = state;
  at("run").textContent = `${run.output}  ·  ${duration(Date.now() / 1000 - run.begun)}  ·  pid ${run.pid}  ·  ${run.version}`;
  said(state.said);
  failures(state.failures, run.output);
  if (!state.stages) return;
  verdict(state.verdict);
  tiles(state);
  drawChain(at("chain"), state.stages);
  ledger(state.totals);
  batches(state.batches);
  paths(state.paths);
  showQuality(state.quality, state.window);
  showEvents(state.events);
}

function lost(text) {
  document.body.dataset.state = "lost";
  at("state").textContent = text;
}

async function start() {
  const { rows } = await (await fetch("history")).json();
  charts.add(rows);
  let newest = rows.length ? rows.at(-1)[0] : 0;
  const source = new EventSource("events");
  source.onmessage = ({ data }) => {
    const state = JSON.parse(data);
    show(state);
    if (!state.stages || state.at <= newest) return;
    newest = state.at;
    const late = state.latency;
    charts.add([[state.at, state.rates.fed, state.rates.done, ...["0.5", "0.95", "0.99"].map((q) => late[q] ?? null), state.dead, state.totals.in_flight]]);
  };
  source.addEventListener("over", () => {
    source.close();
    heard = Infinity;
    document.body.dataset.state = "over";
    at("state").textContent = "over";
  });
  source.onerror = () => lost("no answer");
  setInterval(() => Date.now() - heard > STALE_MS && lost("no answer"), 1000);
}

start().catch(() => lost("no answer"));
