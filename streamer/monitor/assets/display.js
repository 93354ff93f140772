// The last events, and what is to be seen of one: the detector's frame with its objects, and the crops the networks saw.

import { element } from "./chain.js";

const COLOURS = { ECAL: [255, 176, 59], HCAL: [88, 164, 255], TrackPt: [110, 231, 152], others: [214, 140, 255] };
const MARKS = { Photon: "#ffb03b", Jet: "#58a4ff", FatJet: "#ff6b8b" };
const MOST = 8; // of the last events, so many are offered

const at = (id) => document.getElementById(id);
const colour = (channel) => COLOURS[channel] ?? COLOURS.others;

const short = (name) => name.replace("Score", "");
const told = (scores) => Object.entries(scores).map(([name, score]) => `${short(name)} ${score.toFixed(3)}`).join(", ");

function best(event) {
  const all = event.objects.flatMap((one) => Object.entries(one.scores).map(([name, score]) => [score, name, one]));
  all.push(...Object.entries(event.scores).map(([name, score]) => [score, name, null]));
  return all.sort((a, b) => b[0] - a[0])[0];
}

export function showEvents(events) {
  if (!events?.length) return;
  at("displays").hidden = false;
  const known = new Set([...at("events").children].map((one) => one.dataset.number));
  const shown = events.slice(-MOST).toReversed();
  if (shown.every((one) => known.has(String(one.number)))) return;
  at("events").replaceChildren(...shown.map((event) => {
    const button = element("button");
    button.dataset.number = event.number;
    const [score, name, thing] = best(event);
    button.append(element("b", "", `${short(name)} ${score.toFixed(3)}`),
      element("span", "small", thing ? `${thing.kind}, ${thing.pt.toFixed(0)} GeV` : "whole event"),
      element("div", "small", `run ${event.run}, ls ${event.luminosityBlock}, event ${event.event}`));
    button.onclick = () => open(event);
    return button;
  }));
}

async function open(event) {
  at("display-title").textContent = "drawing…";
  for (const id of ["display-channels", "crops", "objects"]) at(id).replaceChildren();
  const canvas = at("frame");
  canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  if (!at("display").open) at("display").showModal();
  const answer = await fetch(`display/${event.number}`);
  if (!answer.ok) {
    at("display-title").textContent = await answer.text();
    return;
  }
  const seen = await answer.json();
  at("display-title").textContent = `run ${event.run}, lumisection ${event.luminosityBlock}, event ${event.event}`;
  at("display-title").append(element("small", "", seen.title));
  const pixels = paint(seen);
  drawFrame(canvas, seen, pixels);
  at("display-channels").replaceChildren(...seen.channels.map(({ name, unit, index }) => {
    const made = element("span");
    const box = element("i");
    box.style.background = `rgb(${colour(name).join()})`;
    made.append(box, `${name} [${unit || "1"}], ${index.length} pixels`);
    return made;
  }));
  const counted = {};
  const objects = seen.objects.map((one) => {
    const place = counted[one.kind] ?? 0;
    counted[one.kind] = place + 1;
    const same = event.objects.filter((other) => other.kind === one.kind);
    return { ...one, scores: same[place]?.scores ?? {} };
  });
  at("crops").replaceChildren(...objects.filter((one) => one.seed && one.crop && Object.keys(one.scores).length).map((one) => crop(one, seen, pixels)));
  table(objects);
}

// One colour a pixel: each channel's, by the logarithm of what it holds against its largest, the brighter the more.
function paint({ rows, columns, channels }) {
  const made = new ImageData(columns, rows);
  made.data.forEach((_, i) => { if (i % 4 === 3) made.data[i] = 255; });
  for (const { name, index, value } of channels) {
    const most = Math.log1p(value.reduce((a, b) => Math.max(a, Math.abs(b)), 0));
    const tint = colour(name);
    index.forEach((place, k) => {
      const share = most ? 0.25 + 0.75 * (Math.log1p(Math.abs(value[k])) / most) : 1;
      for (let c = 0; c < 3; c++) made.data[4 * place + c] = Math.min(255, made.data[4 * place + c] + tint[c] * share);
    });
  }
  return made;
}

function source(pixels) {
  const small = new OffscreenCanvas(pixels.width, pixels.height);
  small.getContext("2d").putImageData(pixels, 0, 0);
  return small;
}

function drawFrame(canvas, { rows, columns, objects }, pixels) {
  const pen = canvas.getContext("2d");
  const scale = canvas.width / columns;
  pen.imageSmoothingEnabled = false;
  pen.drawImage(source(pixels), 0, 0, columns * scale, rows * scale);
  pen.font = "26px system-ui";
  for (const { kind, pt, seed, crop } of objects) {
    if (!seed) continue;
    const side = crop || (kind === "Photon" ? 32 : 128);
    const [row, column] = seed.map((place) => place - (side / 2 - 1));
    pen.strokeStyle = pen.fillStyle = MARKS[kind] ?? "#fff";
    pen.lineWidth = 3;
    for (const turn of [-columns, 0, columns]) { // phi goes round
      pen.strokeRect((column + turn) * scale, row * scale, side * scale, side * scale);
      const below = kind === "FatJet"; // often there is a jet in the same place
      pen.fillText(`${kind} ${pt.toFixed(0)} GeV`, (column + turn) * scale + 6, (below ? row + side : row) * scale + (below ? 28 : -8));
    }
  }
}

function crop({ kind, pt, seed, crop: side, scores }, { columns }, pixels) {
  const made = element("figure");
  const canvas = element("canvas");
  canvas.width = canvas.height = side;
  const pen = canvas.getContext("2d");
  const small = source(pixels);
  const [row, column] = seed.map((place) => place - (side / 2 - 1));
  for (const turn of [-columns, 0, columns]) pen.drawImage(small, turn - column, -row);
  made.append(canvas, element("figcaption", "", `${kind} ${pt.toFixed(0)} GeV`), element("figcaption", "", told(scores)));
  return made;
}

function table(objects) {
  const head = element("tr");
  for (const title of ["", "pt [GeV]", "eta", "phi", "scores"]) head.append(element("th", "", title));
  at("objects").replaceChildren(head, ...objects.map(({ kind, pt, eta, phi, scores }) => {
    const made = element("tr");
    made.append(element("th", "", kind));
    for (const value of [pt, eta, phi]) made.append(element("td", "", value.toFixed(2)));
    made.append(element("td", "", told(scores) || "–"));
    return made;
  }));
}
