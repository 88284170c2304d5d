/** The latency chart: one line per variant over the last runs, with its median. The SVG is drawn by hand. */
import { element, svg } from "./dom.js";
import { duration, median, tickLabel, ticks } from "./format.js";

const MOST_RUNS = 60; // most runs shown
const LEAST_SLOTS = 20; // slots shown while there are fewer runs
const MARGIN = { top: 14, right: 96, bottom: 22, left: 44 };
const LABEL_GAP = 17; // half the least distance between two labels at the right, in pixels

export class LatencyChart {
  #root;
  #svg = svg("svg", { role: "img" });
  #tip = element("div", "tip");
  #series = []; // {ref, variant, tone}
  #runs = []; // {text, times: Map of ref to ms}

  constructor(root) {
    this.#root = root;
    this.#tip.hidden = true;
    root.append(this.#svg, this.#tip);
    new ResizeObserver(() => this.#draw()).observe(root);
    root.addEventListener("pointermove", (event) => this.#point(event));
    root.addEventListener("pointerleave", () => this.#unpoint());
  }

  /** Which variants to draw. */
  show(variants) {
    this.#series = variants;
    this.#draw();
  }

  clear() {
    this.#runs = [];
    this.#draw();
  }

  /** Add one run: the text and each variant's milliseconds by ref. */
  add(text, times) {
    this.#runs = [...this.#runs, { text, times }].slice(-MOST_RUNS);
    this.#draw();
  }

  /** Each variant's median over the runs shown: [{ref, variant, tone, ms, n}]. */
  medians() {
    return this.#series.flatMap((series) => {
      const values = this.#runs.flatMap(({ times }) => times.get(series.ref) ?? []);
      return values.length ? [{ ...series, ms: median(values), n: values.length }] : [];
    });
  }

  get #slots() {
    return Math.max(LEAST_SLOTS, this.#runs.length);
  }

  get #plot() {
    const { width, height } = this.#root.getBoundingClientRect();
    return {
      width,
      height,
      x: (i) => MARGIN.left + ((i + 0.5) / this.#slots) * (width - MARGIN.left - MARGIN.right),
      y: (ms, topMs) => height - MARGIN.bottom - (Math.min(ms, topMs) / topMs) * (height - MARGIN.top - MARGIN.bottom),
    };
  }

  /** The axis ends just above the slowest run, unless that run is an outlier: then the axis is cut below it. */
  #topMs(medians) {
    const slowest = Math.max(...this.#runs.flatMap(({ times }) => [...times.values()]));
    return 1.1 * Math.min(slowest, 3 * Math.max(...medians.map(({ ms }) => ms)));
  }

  #draw() {
    const { width, height, x, y } = this.#plot;
    this.#svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.#unpoint();
    const medians = this.medians();
    this.#root.classList.toggle("vacant", medians.length === 0);
    if (medians.length === 0) {
      this.#svg.setAttribute("aria-label", "No runs yet");
      this.#svg.replaceChildren();
      return;
    }
    const topMs = this.#topMs(medians);
    this.#svg.setAttribute("aria-label", medians.map((m) => `${m.variant}: median ${duration(m.ms)}`).join("; "));
    this.#svg.replaceChildren(
      ...ticks(topMs, 4).flatMap((ms) => [
        svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(ms, topMs), y2: y(ms, topMs) }),
        svg("text", { class: "tick", x: MARGIN.left - 8, y: y(ms, topMs) + 4, "text-anchor": "end" }, tickLabel(ms)),
      ]),
      svg("text", { class: "tick", x: MARGIN.left, y: height - 4 }, `ms, the last ${MOST_RUNS} runs at most`),
      ...medians.map((m) => this.#line(m, x, (ms) => y(ms, topMs), topMs)),
      ...this.#medianLabels(medians, width, (ms) => y(ms, topMs)),
    );
  }

  #line({ ref, tone, ms: medianMs }, x, y, topMs) {
    const group = svg("g", { "data-tone": tone });
    const points = this.#runs.flatMap(({ times }, i) => {
      const ms = times.get(ref);
      return ms === undefined ? [] : [{ ms, px: x(i), py: y(ms) }];
    });
    group.append(
      svg("line", { class: "median", x1: MARGIN.left, x2: x(this.#slots - 0.5), y1: y(medianMs), y2: y(medianMs) }),
      svg("polyline", { class: "series", points: points.map(({ px, py }) => `${px},${py}`).join(" ") }),
      ...points.map(({ ms, px, py }) =>
        ms > topMs
          ? svg("path", { class: "beyond", d: `M${px - 4},${py + 4}l4,-7l4,7z` })
          : svg("circle", { class: "dot", cx: px, cy: py, r: 2.6 }),
      ),
    );
    return group;
  }

  #medianLabels(medians, width, y) {
    let lowest = Infinity;
    return [...medians]
      .sort((a, b) => a.ms - b.ms)
      .map((m) => {
        lowest = Math.min(y(m.ms), lowest - 2 * LABEL_GAP);
        const left = width - MARGIN.right + 10;
        const label = svg("text", { class: "median-label", x: left, y: lowest, "data-tone": m.tone });
        label.append(
          svg("tspan", { class: "median-name" }, m.variant),
          svg("tspan", { x: left, dy: 16 }, duration(m.ms)),
        );
        return label;
      });
  }

  #point(event) {
    const box = this.#root.getBoundingClientRect();
    const { width, x } = this.#plot;
    const inner = width - MARGIN.left - MARGIN.right;
    const i = Math.floor(((event.clientX - box.left - MARGIN.left) / inner) * this.#slots);
    const run = this.#runs[i];
    if (!run) return this.#unpoint();
    const lines = this.#series
      .filter(({ ref }) => run.times.has(ref))
      .map(({ ref, variant, tone }) => {
        const line = element("span", "", `${variant} ${duration(run.times.get(ref))}`);
        line.dataset.tone = tone;
        return line;
      });
    this.#tip.replaceChildren(element("strong", "", run.text), ...lines);
    this.#tip.hidden = false;
    this.#tip.classList.toggle("leftward", i > this.#slots / 2);
    this.#tip.style.setProperty("--x", `${x(i)}px`);
  }

  #unpoint() {
    this.#tip.hidden = true;
  }
}
