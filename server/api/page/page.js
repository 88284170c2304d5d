/** The page itself: the server's models, the reader's text, and the runs that bring them together. */
import { Server, ServerError } from "./api.js";
import { LatencyChart } from "./chart.js";
import { Columns } from "./columns.js";
import { duration, element } from "./format.js";
import { Race } from "./race.js";
import { samplesOf } from "./samples.js";
import { Verdict, answerMs } from "./verdict.js";

const POLL_READY_MS = 10_000;
const POLL_UNREADY_MS = 1_000;
const AUTO_RUN_MS = 1_000; // from one run to the next
const STOPPABLE_MS = 400; // a run this long shows a Stop button
const REPLAY_MS = 1_200; // how long a replay takes on the slowest lane
const AUTO_REPLAY_MS = 450;
const TONES = 6; // how many variant colours page.css defines
const CHIPS = 7;

class Page {
  #server = new Server();
  #form = byId("composer");
  #text = byId("text");
  #run = byId("run");
  #auto = byId("auto");
  #family = byId("family");
  #problem = byId("problem");
  #replay = byId("replay");
  #race = new Race(byId("race"));
  #columns = new Columns(byId("columns"));
  #chart = new LatencyChart(byId("chart"));
  #verdict = new Verdict({
    figure: byId("figure"),
    claim: byId("claim"),
    detail: byId("detail"),
    badge: byId("badge"),
  });
  #calm = matchMedia("(prefers-reduced-motion: reduce)");
  #models = []; // as GET /models returned them
  #running = null; // the AbortController of the run in progress
  #nextSample = 0;
  #autoRuns = 0; // how often auto-run was switched on: only the latest loop goes on
  #poll = 0;

  start() {
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#run.dataset.action === "stop") this.#running?.abort();
      else this.#runOnce();
    });
    this.#text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      if (!this.#run.disabled) this.#runOnce();
    });
    this.#text.addEventListener("input", () => {
      this.#auto.checked = false;
      this.#grow();
    });
    this.#family.addEventListener("change", () => this.#chooseFamily());
    this.#auto.addEventListener("change", () => this.#auto.checked && this.#runOnAndOn());
    this.#replay.addEventListener("click", () => this.#race.replay(REPLAY_MS));
    byId("clear").addEventListener("click", () => this.#clearChart());
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#server.key = byId("key").value.trim();
      this.#watch();
    });
    addEventListener("resize", () => this.#grow());
    this.#watch();
  }

  /** Ask the server for its models, at once and then periodically. */
  async #watch() {
    let models = null;
    let failure = null;
    try {
      models = await this.#server.models();
    } catch (error) {
      failure = error;
    }
    const keyWanted = failure?.status === 401;
    const settled = keyWanted || models?.every(({ state }) => state !== "loading");
    clearTimeout(this.#poll);
    this.#poll = setTimeout(() => this.#watch(), settled ? POLL_READY_MS : POLL_UNREADY_MS);
    byId("key-form").hidden = !keyWanted;
    if (keyWanted) this.#showServer("lost", "The server asks for an API key");
    else if (failure) this.#showServer("lost", failure.lostConnection ? "Server out of reach, trying again" : failure.message);
    else this.#showModels(models);
  }

  /** The chosen family's variants in running order: the dense one first. */
  get #variants() {
    const variants = this.#models.filter(({ model }) => model === this.#family.value);
    variants.sort((a, b) => (b.variant === "dense") - (a.variant === "dense"));
    return variants.map((variant, i) => ({ ...variant, tone: i % TONES }));
  }

  get #ready() {
    return this.#variants.filter(({ state }) => state === "ready");
  }

  #showModels(models) {
    if (byId("server-state").dataset.state === "lost") this.#explain(null); // it has come back
    this.#models = models;
    const families = [...new Set(this.#models.map(({ model }) => model))];
    if (families.join() !== [...this.#family.options].map(({ value }) => value).join()) {
      this.#family.replaceChildren(...families.map((name) => new Option(name, name)));
      byId("family-field").hidden = families.length < 2;
      this.#chooseFamily();
    }
    this.#showVariants();
    const ready = this.#models.filter(({ state }) => state === "ready").length;
    const loading = this.#models.filter(({ state }) => state === "loading").map(({ ref }) => ref);
    if (loading.length) this.#showServer("loading", `Loading ${loading.join(", ")}`);
    else if (ready) this.#showServer("ready", ready === 1 ? "1 variant ready" : `${ready} variants ready`);
    else this.#showServer("lost", "No variant is ready");
  }

  #showVariants() {
    const variants = this.#variants;
    this.#columns.show(variants);
    this.#chart.show(variants);
    const ready = this.#ready;
    if (this.#race.vacant && !this.#running) this.#race.prepare(ready);
    const able = ready.length > 0;
    this.#run.disabled = !able;
    this.#auto.disabled = !able;
  }

  #chooseFamily() {
    const samples = samplesOf(this.#family.value);
    byId("samples").replaceChildren(
      ...samples.slice(0, CHIPS).map((sample) => {
        const chip = element("button", "chip", sample);
        chip.type = "button";
        chip.addEventListener("click", () => this.#runSample(sample));
        return chip;
      }),
    );
    if (this.#running) {
      this.#running.abort();
      this.#end();
    }
    this.#setText(samples[0] ?? "");
    this.#text.select();
    this.#clearChart();
    this.#race.prepare(this.#ready);
    this.#replay.hidden = true;
    this.#verdict.none("Press Enter to race the variants");
    this.#showVariants();
  }

  #showServer(state, text) {
    const node = byId("server-state");
    node.dataset.state = state;
    if (node.textContent !== text) node.textContent = text;
  }

  #runSample(sample) {
    this.#auto.checked = false;
    this.#setText(sample);
    if (!this.#run.disabled) this.#runOnce();
  }

  /** One run that the reader started: announced, and replayed in slow motion if it was too quick to follow. */
  async #runOnce() {
    this.#auto.checked = false;
    const outcome = await this.#compare(this.#text.value);
    if (!outcome.sentence) return;
    byId("announcer").textContent = outcome.sentence;
    this.#offerReplay(REPLAY_MS);
  }

  /** Run sample after sample until the switch is turned off or something goes wrong. */
  async #runOnAndOn() {
    const samples = samplesOf(this.#family.value);
    const turn = ++this.#autoRuns;
    while (this.#auto.checked && turn === this.#autoRuns) {
      const startedAt = performance.now();
      if (!document.hidden) {
        if (samples.length) this.#setText(samples[this.#nextSample++ % samples.length]);
        const { sentence, error } = await this.#compare(this.#text.value);
        if (sentence) this.#offerReplay(AUTO_REPLAY_MS);
        else if (error?.status === 429) await sleep(1000 * (error.retryAfterS ?? 1));
        else this.#auto.checked = false;
      }
      await sleep(Math.max(0, AUTO_RUN_MS - (performance.now() - startedAt)));
    }
  }

  /** Run `text` on every ready variant. Returns {sentence} on success, {error} on failure, {} if stopped. */
  async #compare(text) {
    this.#explain(null);
    if (!text.trim()) {
      const error = new ServerError("Type a text first.", { status: 422 });
      this.#explain(error);
      return { error };
    }
    this.#running?.abort();
    const controller = new AbortController();
    this.#running = controller;
    this.#begin();
    const stoppable = setTimeout(() => this.#offerStop(true), STOPPABLE_MS);
    try {
      const models = this.#ready.map(({ ref }) => ref);
      const comparison = await this.#follow(this.#server.compare({ inputs: text, models }, controller.signal));
      return { sentence: this.#conclude(text, comparison) };
    } catch (error) {
      if (this.#running === controller) this.#verdict.none(error.name === "AbortError" ? "Stopped" : "No result");
      if (error.name === "AbortError") return {};
      this.#explain(error);
      return { error };
    } finally {
      clearTimeout(stoppable);
      if (this.#running === controller) this.#end();
    }
  }

  #begin() {
    const variants = this.#ready;
    this.#race.prepare(variants);
    this.#race.start();
    this.#columns.clear(variants.map(({ ref }) => ref));
    byId("result").classList.add("stale");
    this.#replay.hidden = true;
  }

  /** Draw the stream's events as they arrive; returns the last one, the whole comparison. */
  async #follow(events) {
    for await (const event of events) {
      if ("results" in event) return event;
      if ("error" in event) {
        throw new ServerError(event.error, { status: 500, ref: event.ref ?? null });
      }
      if ("token" in event) {
        this.#race.token(event.ref, event.token, event.at_ms);
        this.#columns.token(event.ref, event.token);
      } else if ("generated_text" in event) {
        this.#race.finish(event.ref, event.timings);
        this.#columns.finish(event.ref, event);
      }
    }
    throw new ServerError("The connection to the server was lost in the middle of the answer.");
  }

  #conclude(text, comparison) {
    this.#columns.compare(comparison);
    this.#chart.add(text, new Map(comparison.results.map((result) => [result.ref, answerMs(result)])));
    this.#noteChart();
    return this.#verdict.show(comparison);
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

  /** Show what went wrong and what to do: in the failed variant's column, otherwise under the text. */
  #explain(error) {
    if (error?.ref) {
      this.#columns.fail(error.ref, error.message);
      byId("announcer").textContent = `${error.ref}: ${error.message}`;
      return;
    }
    const later = error?.retryAfterS ? ` Try again in ${error.retryAfterS} s.` : "";
    this.#problem.hidden = error === null;
    this.#problem.textContent = error ? error.message + later : "";
    this.#text.toggleAttribute("aria-invalid", error?.status === 422 || error?.status === 413);
    if (error?.lostConnection || error?.status === 503) this.#watch();
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

function byId(id) {
  return document.getElementById(id);
}

function sleep(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

new Page().start();
