/**
 * The race: a lane per variant on one shared time axis, each starting at zero.
 *
 * Variants run one after the other; a lane's clock starts when the lane before it is done. The clock only draws
 * the wait for the first token; the server reports when each token was made and how long each part took. A finished lane
 * starts where the queue ended: what is compared is the work, and the wait is no variant's fault.
 * Positions are custom properties in milliseconds (--from, --to) over --scale, so that one assignment
 * rescales everything.
 */
import { element } from "./dom.js";
import { duration, tickLabel, ticks } from "./format.js";

const SEEN_LIVE_MS = 700; // a run this long can be followed live

export class Race {
  #root;
  #axis = element("div", "axis");
  #lanes = new Map();
  #scaleMs = 20;
  #frame = 0;

  constructor(root) {
    this.#root = root;
    root.setAttribute("role", "img");
  }

  /** Show an empty lane for each variant, in the order in which they will run. */
  prepare(variants) {
    cancelAnimationFrame(this.#frame);
    this.#lanes = new Map(variants.map(({ ref, variant, tone }) => [ref, new Lane(variant, tone)]));
    this.#root.replaceChildren(...this.#all.map((lane) => lane.node), this.#axis);
    this.#root.setAttribute("aria-label", "No run yet");
    this.#rescale(this.#scaleMs);
  }

  /** Start the first lane's clock. */
  start() {
    let active;
    const advance = () => {
      const next = this.#all.find((lane) => !lane.done);
      if (next && next !== active) next.start();
      active = next;
      if (active) {
        const elapsedMs = active.advance();
        if (elapsedMs > this.#scaleMs) this.#rescale(elapsedMs * 1.6);
      }
      this.#frame = requestAnimationFrame(advance);
    };
    advance();
  }

  /** A token that the engine made `atMs` after the request arrived. */
  token(ref, token, atMs) {
    this.#lanes.get(ref)?.token(token, atMs);
  }

  /** One variant is done: show its parts, and start the next lane. */
  finish(ref, timings) {
    this.#lanes.get(ref)?.finish(timings);
    this.#all.find((lane) => !lane.done)?.start();
  }

  /** Show another run in a variant's lane: its tokens as [token, atMs], and its timings. */
  redraw(ref, tokens, timings) {
    const lane = this.#lanes.get(ref);
    if (!lane) return;
    lane.empty();
    for (const [token, atMs] of tokens) lane.token(token, atMs);
    lane.finish(timings);
  }

  /** The run has ended, successfully or not: stop the clocks and fit the axis to the slowest lane. */
  settle() {
    cancelAnimationFrame(this.#frame);
    for (const lane of this.#all) lane.settle();
    if (this.#slowestMs > 0) this.#rescale(this.#slowestMs);
    this.#root.setAttribute("aria-label", this.#all.map((lane) => lane.description).join("; "));
  }

  /** Whether there is nothing to show yet. */
  get vacant() {
    return this.#slowestMs === 0;
  }

  /** Whether the run was too quick to follow live. */
  get brief() {
    return this.#slowestMs > 0 && this.#slowestMs < SEEN_LIVE_MS;
  }

  /** How many times slower than the run a replay of `durationMs` is. */
  slowdown(durationMs) {
    return durationMs / this.#slowestMs;
  }

  /** Grow all lanes from zero again, together; the slowest one takes `durationMs`. */
  replay(durationMs) {
    for (const lane of this.#all) lane.replay(this.slowdown(durationMs));
  }

  get #all() {
    return [...this.#lanes.values()];
  }

  get #slowestMs() {
    return Math.max(0, ...this.#all.map((lane) => lane.totalMs));
  }

  #rescale(scaleMs) {
    this.#scaleMs = scaleMs;
    this.#root.style.setProperty("--scale", scaleMs);
    const marks = ticks(scaleMs, this.#root.clientWidth < 560 ? 4 : 8).map((ms) => {
      const mark = element("span", "tick", tickLabel(ms));
      mark.style.setProperty("--from", ms);
      return mark;
    });
    this.#axis.replaceChildren(...marks);
  }
}

/** One variant's row: its name, a bar of segments and token cells, its total. */
class Lane {
  node = element("div", "lane");
  done = false;
  totalMs = 0;
  #name;
  #bar = element("div", "bar");
  #total = element("span", "lane-total");
  #wait = element("div", "segment encode");
  #cells = [];
  #ends = []; // when each cell ends, in milliseconds
  #startedAt = null;
  #description = null;

  constructor(name, tone) {
    this.#name = name;
    this.node.dataset.tone = tone;
    const track = element("div", "track");
    track.append(this.#bar, this.#total);
    this.node.append(element("span", "lane-name", name), track);
  }

  start() {
    this.#startedAt ??= performance.now();
  }

  /** Forget the run. */
  empty() {
    this.#cells = [];
    this.#ends = [];
  }

  /** Extend the wait for the first token. Returns the milliseconds since the start. */
  advance() {
    const elapsedMs = performance.now() - this.#startedAt;
    if (this.#cells.length === 0) this.#bar.replaceChildren(place(this.#wait, 0, elapsedMs));
    return elapsedMs;
  }

  token({ text, special }, atMs) {
    const cell = element("div", special ? "cell end" : "cell");
    cell.append(element("span", "", special ? "■" : text.trim() || "·"));
    if (this.#cells.length === 0) this.#bar.replaceChildren(place(this.#wait, 0, atMs));
    this.#bar.append(place(cell, this.#ends.at(-1) ?? atMs, atMs));
    this.#cells.push(cell);
    this.#ends.push(atMs);
    this.#showTotal(atMs);
  }

  finish(timings) {
    this.done = true;
    const ends = this.#ends.map((end) => end - timings.queue_ms);
    this.#bar.replaceChildren(
      place(element("div", "segment encode"), 0, timings.encode_ms),
      ...this.#cells.map((cell, i) => place(cell, i ? ends[i - 1] : timings.encode_ms, ends[i])),
    );
    this.#showTotal(timings.total_ms - timings.queue_ms);
    this.#description =
      `${this.#name}: encode ${duration(timings.encode_ms)}, decode ${duration(timings.decode_ms)} for ` +
      `${this.#cells.length} tokens, in all ${duration(this.totalMs)}`;
  }

  /** Remove the wait if it brought no token. */
  settle() {
    if (this.#cells.length === 0) this.#wait.remove();
  }

  /** The lane in words, for readers who cannot see it. */
  get description() {
    return this.#description ?? `${this.#name}: no answer`;
  }

  replay(slowdown) {
    const timing = { duration: this.totalMs * slowdown, easing: "linear" };
    this.#bar.animate([{ clipPath: "inset(0 100% 0 0)" }, { clipPath: "inset(0 0 0 0)" }], timing);
    this.#total.animate([{ opacity: 0 }, { opacity: 0, offset: 0.98 }, { opacity: 1 }], timing);
  }

  #showTotal(ms) {
    this.totalMs = ms;
    this.#total.textContent = duration(ms);
    this.#total.style.setProperty("--from", ms);
  }
}

/** Put an element on the time axis, from one millisecond to another. */
function place(node, fromMs, toMs) {
  node.style.setProperty("--from", fromMs);
  node.style.setProperty("--to", toMs);
  return node;
}
