// The series over time, drawn by uPlot; rows are [time, fed, done, p50, p95, p99, dead, in_flight].

const KEPT = 900;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function axes(label) {
  const look = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
  return [{ ...look }, { ...look, size: 58, values: label }];
}

const size = (place) => ({ width: place.clientWidth, height: place.clientHeight - 30 });  // less the legend
const short = (v) => (v >= 1000 ? v / 1000 + " k" : String(v));

const KINDS = {
  rate: {
    columns: [["fed", 1, 1], ["done", 2, 1]],
    options: () => ({ scales: { y: { range: (u, low, high) => [0, Math.max(1, high * 1.05)] } },
                      axes: axes((u, all) => all.map(short)) }),
  },
  latency: {
    columns: [["p50", 3, 1e3], ["p95", 4, 1e3], ["p99", 5, 1e3]],
    options: () => ({ scales: { y: { distr: 3, log: 10 } },
                      axes: axes((u, all) => all.map((v) => (v === null ? "" : String(v)))) }),
  },
};

export class Charts {
  constructor() {
    this.rows = [];
    this.drawn = {};
    this.make();
    new ResizeObserver(() => this.resize()).observe(document.querySelector("main"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.make());
  }

  make() {
    for (const [name, kind] of Object.entries(KINDS)) {
      this.drawn[name]?.destroy();
      const place = document.getElementById(name);
      const series = kind.columns.map(([label]) => ({
        label, stroke: colour("--" + label), width: 2, spanGaps: false, points: { show: false },
        value: (u, v) => (v === null || v === undefined ? "–" : v.toPrecision(3)),
      }));
      this.drawn[name] = new uPlot(
        { ...size(place), series: [{ label: "at", value: (u, v) => (v ? new Date(v * 1e3).toLocaleTimeString() : "–") }, ...series],
          ...kind.options() },
        this.data(kind), place,
      );
    }
  }

  data(kind) {
    return [this.rows.map((row) => row[0]),
            ...kind.columns.map(([, column, scale]) => this.rows.map((row) => (row[column] === null ? null : row[column] * scale)))];
  }

  add(rows) {
    this.rows = this.rows.concat(rows).slice(-KEPT);
    for (const [name, kind] of Object.entries(KINDS)) this.drawn[name].setData(this.data(kind));
  }

  resize() {
    for (const [name, chart] of Object.entries(this.drawn)) {
      const place = document.getElementById(name);
      chart.setSize(size(place));
    }
  }
}
