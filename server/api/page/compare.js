/** One text, answered by every chosen variant: several runs, of which each variant's median one is shown. */
import { ServerError } from "./api.js";
import { LatencyChart } from "./chart.js";
import { Columns } from "./columns.js";
import { byId, copied, element, sleep } from "./dom.js";
import { duration } from "./format.js";
import { Race } from "./race.js";
import { samplesOf } from "./samples.js";
import { Verdict, answerMs, inTurns } from "./verdict.js";

const AUTO_RUN_MS = 1_000; // from one text to the next
const STOPPABLE_MS = 400; // a run this long shows a Stop button
const MOST_REPEATING_MS = 4_000; // no further run begins after that
const REPLAY_MS = 1_200; // how long a replay takes on the slowest lane
const AUTO_REPLAY_MS = 450;
const CHIPS = 7;
const BUSY = 3; // slowest over fastest of equal runs

export class CompareView {
  #page;
  #text = byId("text");
  #run = byId("run");
  #auto = byId("auto");
  #problem = byId("problem");
  #replay = byId("replay");
  #race = new Race(byId("race"));
  #columns = new Columns(byId("columns"));
  #chart = new LatencyChart(byId("chart"));
  #verdict = new Verdict({ figure: byId("figure"), claim: byId("claim"), detail: byId("detail"), badge: byId("badge") });
  #calm = matchMedia("(prefers-reduced-motion: reduce)");
  #running = null; // the AbortController of the run in progress
  #nextSample = 0;
  #autoRuns = 0; // how often auto-run was switched on: only the latest loop goes on
  #own = false; // whether the reader has written the text, or a link has brought it
  #shown = ""; // the variants of the last update

  constructor(page) {
    this.#page = page;
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#run.dataset.action === "stop") this.stop();
      else this.run();
    });
    this.#text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.ctrlKey || event.metaKey || event.isComposing) return;
      event.preventDefault();
      this.run();
    });
    this.#text.addEventListener("input", () => {
      this.#own = true;
      this.#auto.checked = false;
      this.#grow();
    });
    // A click into a sample is the beginning of a text of one's own.
    this.#text.addEventListener("pointerup", () => {
      if (!this.#own && this.#text.selectionStart === this.#text.selectionEnd) this.#text.select();
    });
    this.#auto.addEventListener("change", () => this.#auto.checked && this.#runOnAndOn());
    this.#replay.addEventListener("click", () => this.#race.replay(REPLAY_MS));
    byId("clear").addEventListener("click", () => this.#clearChart());
    byId("share").addEventListener("click", (event) => this.#share(event.currentTarget));
    addEventListener("resize", () => this.#grow());
  }

  /** Show the chosen variants; what runs goes on. */
  update() {
    const { chosen, ready } = this.#page.choice;
    this.#columns.show(chosen);
    this.#chart.show(chosen);
    const shown = ready.map(({ ref, digest }) => `${ref} ${digest}`).join();
    // What was idle loads for the very run that asked for it.
    const loads = this.#running && chosen.some(({ state }) => state === "loading");
    if (shown !== this.#shown && !loads) {
      this.#shown = shown;
      if (this.#running) this.stop();
      this.#blank(ready);
    }
    const able = ready.length > 0;
    this.#run.disabled = !able;
    this.#auto.disabled = !able;
    this.#noteChart();
  }

  show() {
    this.#grow();
  }

  /** The reader has turned to another family. */
  anotherFamily() {
    const samples = samplesOf(this.#page.choice.family);
    byId("samples").replaceChildren(
      ...samples.slice(0, CHIPS).map((sample) => {
        const chip = element("button", "chip", sample);
        chip.type = "button";
        chip.addEventListener("click", () => this.#runSample(sample));
        return chip;
      }),
    );
    if (!this.#own) {
      this.#setText(samples[0] ?? "");
      if (document.activeElement === this.#text) this.#text.select();
    }
    this.#clearChart();
  }

  /** Times under other parameters are not comparable. */
  otherParameters() {
    this.#clearChart();
  }

  setText(text) {
    this.#own = true;
    this.#setText(text);
  }

  stop() {
    this.#auto.checked = false;
    this.#running?.abort();
  }

  /** Runs that the reader started: announced, and replayed in slow motion if they were too quick to follow. */
  async run() {
    if (this.#run.disabled) return;
    this.#auto.checked = false;
    const { sentence } = await this.#compare(this.#text.value, Number(byId("repeat").value));
    if (!sentence) return;
    this.#page.announce(sentence);
    this.#offerReplay(REPLAY_MS);
  }

  /** Show what went wrong and what to do: in the failed variant's column, otherwise under the text. */
  explain(error) {
    this.#page.parameters.blame(error?.message);
    if (error?.ref) {
      this.#columns.fail(error.ref, error.message);
      this.#page.announce(`${error.ref}: ${error.message}`);
      return;
    }
    const later = error?.retryAfterS ? ` Try again in ${error.retryAfterS} s.` : "";
    this.#problem.hidden = error === null;
    this.#problem.textContent = error ? error.message + later : "";
    const aboutTheText = [413, 422].includes(error?.status) && !error.message.startsWith("parameters.");
    if (aboutTheText) this.#text.setAttribute("aria-invalid", "true");
    else this.#text.removeAttribute("aria-invalid");
    if (error?.lostConnection || error?.status === 503 || error?.status === 401) this.#page.watch();
  }

  #blank(ready) {
    this.#race.prepare(ready);
    this.#replay.hidden = true;
    byId("race-note").textContent = "";
    const one = ready.length === 1 ? "Press Enter to run it" : "Press Enter to race the variants";
    this.#verdict.none(ready.length ? one : "Choose a variant that is ready");
  }

  async #share(button) {
    const done = await copied(this.#page.address(this.#text.value));
    button.textContent = done ? "Link copied" : "Copying failed";
    await sleep(1500);
    button.textContent = "Copy link";
  }

  #runSample(sample) {
    this.#own = false;
    this.#setText(sample);
    this.run();
  }

  /** Run sample after sample until the switch is turned off or something goes wrong. */
  async #runOnAndOn() {
    const samples = samplesOf(this.#page.choice.family);
    const turn = ++this.#autoRuns;
    while (this.#auto.checked && turn === this.#autoRuns) {
      const startedAt = performance.now();
      if (!document.hidden) {
        if (samples.length && !this.#own) this.#setText(samples[this.#nextSample++ % samples.length]);
        const { sentence, error } = await this.#compare(this.#text.value, 1);
        if (sentence) this.#offerReplay(AUTO_REPLAY_MS);
        else if (error?.status === 429) await sleep(1000 * (error.retryAfterS ?? 1));
        else this.#auto.checked = false;
      }
      await sleep(Math.max(0, AUTO_RUN_MS - (performance.now() - startedAt)));
    }
  }

  /** Run `text` on every chosen variant. Returns {sentence} on success, {error} on failure, {} if stopped. */
  async #compare(text, runs) {
    this.explain(null);
    if (!text.trim()) {
      const error = new ServerError("Type a text first.", { status: 422 });
      this.explain(error);
      return { error };
    }
    this.#running?.abort();
    const controller = new AbortController();
    this.#running = controller;
    const variants = this.#page.choice.ready;
    this.#begin(variants);
    const stoppable = setTimeout(() => this.#offerStop(true), STOPPABLE_MS);
    try {
      const body = { inputs: text, parameters: this.#parameters() };
      const recordings = await this.#record(body, variants, runs, controller.signal);
      return { sentence: this.#conclude(recordings) };
    } catch (error) {
      if (this.#running === controller) this.#verdict.none(error.name === "AbortError" ? "Stopped" : "No result");
      if (error.name === "AbortError") return {};
      this.explain(error);
      return { error };
    } finally {
      clearTimeout(stoppable);
      if (this.#running === controller) this.#end();
    }
  }

  /** Where something is drawn, all runs must draw the same, or their times would not be of the same work. */
  #parameters() {
    const seed = crypto.getRandomValues(new Uint32Array(1))[0];
    return { seed, ...this.#page.parameters.given };
  }

  #begin(variants) {
    this.#race.prepare(variants);
    this.#race.start();
    this.#columns.clear(variants.map(({ ref }) => ref));
    byId("result").classList.add("stale");
    byId("race-note").textContent = "";
    this.#replay.hidden = true;
  }

  /** Run, and run again: only the first run is drawn live. Returns a recording of each. */
  async #record(body, variants, runs, signal) {
    const startedAt = performance.now();
    const refs = variants.map(({ ref }) => ref);
    const recordings = [];
    do {
      const live = recordings.length === 0;
      const models = inTurns(refs, variants, recordings.length);
      recordings.push(await this.#follow(this.#page.server.compareLive({ ...body, models }, signal), live));
      const last = recordings.at(-1).comparison;
      this.#chart.add(body.inputs, new Map(last.results.map((result) => [result.ref, answerMs(result)])));
      this.#noteChart();
    } while (recordings.length < runs && performance.now() - startedAt < MOST_REPEATING_MS);
    return recordings;
  }

  /** Read one run's events, and draw them as they arrive if it is `live`. */
  async #follow(events, live) {
    const tokens = new Map(); // by ref, [token, atMs] each
    for await (const event of events) {
      if ("results" in event) return { tokens, comparison: event };
      if ("error" in event) throw new ServerError(event.error, { status: 500, ref: event.ref ?? null });
      const { ref } = event;
      if ("token" in event) {
        if (!tokens.has(ref)) tokens.set(ref, []);
        tokens.get(ref).push([event.token, event.at_ms]);
        if (live) {
          this.#race.token(ref, event.token, event.at_ms);
          this.#columns.token(ref, event.token);
        }
      } else if (live && "generated_text" in event) {
        this.#race.finish(ref, event.timings);
        this.#columns.finish(ref, event);
      }
    }
    throw new ServerError("The connection to the server was lost in the middle of the answer.");
  }

  /** Show each variant's median run. Returns the outcome as a sentence. */
  #conclude(recordings) {
    const { baseline, results } = recordings[0].comparison;
    const medians = results.map(({ ref }) => {
      const ranked = recordings
        .map(({ tokens, comparison }) => ({ ...comparison.results.find((each) => each.ref === ref), tokens: tokens.get(ref) ?? [] }))
        .sort((a, b) => answerMs(a) - answerMs(b));
      return ranked[(ranked.length - 1) >> 1];
    });
    const base = medians.find(({ ref }) => ref === baseline);
    for (const each of medians) {
      each.speedup = answerMs(base) / answerMs(each);
      this.#race.redraw(each.ref, each.tokens, each.timings);
      this.#columns.finish(each.ref, each);
    }
    this.#columns.compare(baseline, medians);
    const n = recordings.length;
    byId("race-note").textContent = runsInWords(recordings);
    return this.#verdict.show(baseline, medians, n);
  }

  #end() {
    this.#running = null;
    byId("result").classList.remove("stale");
    this.#offerStop(false);
    this.#race.settle();
    this.#columns.settle();
  }

  #offerStop(stop) {
    this.#run.textContent = stop ? "Stop" : "Run";
    this.#run.dataset.action = stop ? "stop" : "run";
  }

  #offerReplay(durationMs) {
    if (!this.#race.brief) return;
    this.#replay.hidden = false;
    this.#replay.textContent = `Replay, ${Math.round(this.#race.slowdown(REPLAY_MS))}× slower`;
    if (!this.#calm.matches) this.#race.replay(durationMs);
  }

  #noteChart() {
    const [reference, ...rivals] = this.#chart.medians();
    const best = rivals.reduce((a, b) => (a && a.ms < b.ms ? a : b), null);
    byId("clear").hidden = !reference;
    byId("chart-note").textContent = best
      ? `median ${duration(best.ms)} against ${duration(reference.ms)}: ${(reference.ms / best.ms).toFixed(2)}×`
      : "";
  }

  #clearChart() {
    this.#chart.clear();
    this.#noteChart();
  }

  #setText(text) {
    this.#text.value = text;
    this.#grow();
  }

  /** Fit the text area's height to its text; the style sheet limits it. */
  #grow() {
    this.#text.style.height = "auto";
    this.#text.style.height = `${this.#text.scrollHeight + this.#text.offsetHeight - this.#text.clientHeight}px`;
  }
}

/** What is drawn of several runs, and whether to trust it: on a busy machine equal runs take very different times. */
function runsInWords(recordings) {
  if (recordings.length === 1) return "One run: its times vary.";
  const spread = Math.max(
    ...recordings[0].comparison.results.map(({ ref }) => {
      const times = recordings.map(({ comparison }) => answerMs(comparison.results.find((each) => each.ref === ref)));
      return Math.max(...times) / Math.min(...times);
    }),
  );
  const busy = spread > BUSY ? ` Equal runs differ by up to ${spread.toFixed(0)}×: the machine is busy.` : "";
  return `Each lane is the variant’s median run of ${recordings.length}.${busy}`;
}
