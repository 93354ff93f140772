// The chain as a picture: stages, replicas, hops; and how numbers are written.

export function number(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 1e6) return (value / 1e6).toFixed(2) + " M";
  if (value >= 99.5 || Number.isInteger(value)) return Math.round(value).toLocaleString("en-US");
  return value.toPrecision(2);
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1e-3) return (seconds * 1e6).toFixed(0) + " µs";
  if (seconds < 1) return (seconds * 1e3).toPrecision(seconds < 0.01 ? 2 : 3) + " ms";
  if (seconds < 120) return seconds.toPrecision(3) + " s";
  if (seconds < 7200) return Math.round(seconds / 60) + " min";
  return (seconds / 3600).toFixed(1) + " h";
}

export const percent = (share) => (share * 100).toFixed(share > 0 && share < 0.1 ? 1 : 0) + "\u202f%";

export function element(kind, className = "", text = "") {
  const made = document.createElement(kind);
  if (className) made.className = className;
  if (text !== "") made.textContent = text;
  return made;
}

const isDown = (replica) => ["restarting", "failed"].includes(replica.state);

export function drawChain(place, stages) {
  const parts = [];
  stages.forEach((stage, k) => {
    if (k) parts.push(hop(stages[k - 1], stage));
    parts.push(box(stage));
  });
  place.replaceChildren(...parts);
}

function box(stage) {
  const down = stage.replicas.some(isDown);
  const made = element("div", "stage" + (down ? " down" : stage.bottleneck ? " bottleneck" : ""));
  made.dataset.stage = stage.name;
  if (down || stage.bottleneck) made.append(element("span", "tag", down ? "down" : "bottleneck"));
  made.append(element("h3", "", stage.name), element("div", "big", number(stage.rate) + "/s"));
  const bar = element("div", "bar");
  const filled = element("i");
  filled.style.width = `${100 * stage.busy}%`;
  bar.append(filled);
  made.append(bar, element("div", "small", "busy " + percent(stage.busy)));
  const dots = element("div", "replicas");
  for (const one of stage.replicas) {
    const dot = element("span", "dot " + one.state);
    dot.title = `${one.name}: ${one.state}, ${number(one.rate)}/s, CPU ${percent(one.cpu)}, `
      + `${(one.rss_bytes / 1e6).toFixed(0)} MB, pid ${one.pid}, up ${duration(one.up_s)}, ${one.restarts} restarts`;
    dots.append(dot);
  }
  made.append(dots);
  return made;
}

function hop(before, after) {
  const made = element("div", "hop");
  made.append(
    element("span", "", "wait " + duration(after.wait_s)),
    element("span", "", `${number(before.credits)} credits`),
    element("span", "", number(before.bytes_out / 1e6) + " MB/s"),
  );
  made.title = "how long blocks waited between the two stages, events that the next one would take now, and bytes";
  return made;
}
