/** A list of texts, each answered by every chosen variant: progress, figures, a table, and the results as a file. */
import { marked } from "./columns.js";
import { build, download, element, sleep, terms } from "./dom.js";
import { comparison, duration, median, percent, whole } from "./format.js";
import { samplesOf } from "./samples.js";
import { MOST_BYTES, csvOf, jsonlOf, rowsOf } from "./texts.js";
import { answerMs, inTurns } from "./verdict.js";
import { changes } from "./words.js";

const MOST_SHOWN = 200; // rows of the table
const DRAW_MS = 200;
const PAINT_MS = 20; // after drawing: on one machine, painting would slow down what is measured next
const REFUSALS_OF_A_TEXT = new Set([413, 422, 424, 504]); // they say nothing about the next text

export class BatchView {
  #page;
  #area = build("textarea", { id: "batch-text", rows: 6, spellcheck: false, placeholder: "One text a line, or JSONL" });
  #file = build("input", { type: "file", accept: ".txt,.jsonl,.json,.csv,text/plain", className: "visually-hidden", id: "batch-file" });
  #start = build("button", { type: "submit", className: "primary", id: "batch-run" }, "Run");
  #problem = build("p", { className: "problem", role: "alert", hidden: true, id: "batch-problem" });
  #progress = build("progress", { max: 1, value: 0, "aria-label": "Progress" });
  #status = element("p", "note");
  #figures = element("div", "batch-figures");
  #differing = build("input", { type: "checkbox" });
  #table = element("table", "results");
  #results;
  #rows = []; // {text, targets, results: Map of ref to result, error}
  #variants = []; // those that the rows were run on
  #running = null; // an AbortController
  #drawnAt = 0;
  #caption;
  #body;
  #considered = 0; // rows that the table has dealt with
  #found = 0; // those of them that belong into it

  constructor(root, page) {
    this.#page = page;
    const pick = build("label", { className: "quiet filepick", for: "batch-file" }, "Choose a file");
    const samples = build("button", { type: "button", className: "quiet" }, "Use the examples");
    samples.addEventListener("click", () => (this.#area.value = samplesOf(page.choice.family).join("\n")));
    this.samples = samples;
    const label = build("label", { className: "batch-label", for: "batch-text" }, "Texts to run on every chosen variant");
    const hint = element("p", "note", "Paste or drop them: one text a line, or JSONL with source and perhaps target.");
    const form = build("form", { className: "batch-form", noValidate: true },
      label, this.#area, this.#problem,
      build("div", { className: "batch-actions" }, this.#start, this.#file, pick, samples, hint));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#running) this.stop();
      else this.run();
    });
    this.#file.addEventListener("change", () => this.#read(this.#file.files[0]));
    form.addEventListener("dragover", (event) => {
      event.preventDefault();
      form.classList.add("over");
    });
    form.addEventListener("dragleave", () => form.classList.remove("over"));
    form.addEventListener("drop", (event) => {
      if (!event.dataTransfer.files.length) return;
      event.preventDefault();
      form.classList.remove("over");
      this.#read(event.dataTransfer.files[0]);
    });
    this.#differing.addEventListener("change", () => this.#drawTable());
    const csv = build("button", { type: "button", className: "quiet" }, "Download CSV");
    csv.addEventListener("click", () => this.#download("csv", "text/csv", csvOf(this.#done, this.#refs)));
    const jsonl = build("button", { type: "button", className: "quiet" }, "Download JSONL");
    jsonl.addEventListener("click", () => this.#download("jsonl", "application/jsonl", jsonlOf(this.#done)));
    const scroller = build("div", { className: "scroller results-scroller", tabIndex: 0, role: "region", "aria-label": "Results, row by row" }, this.#table);
    const head = build("div", { className: "panel-head" }, element("h2", "", "Row by row"),
      build("label", { className: "check" }, this.#differing, "only where answers differ"),
      build("div", { className: "downloads" }, csv, jsonl));
    this.#results = build("div", { className: "batch-results", hidden: true },
      build("div", { className: "batch-progress" }, this.#progress, this.#status), this.#figures, head, scroller);
    root.append(form, this.#results);
  }

  update() {
    const { ready, family } = this.#page.choice;
    this.#start.disabled = ready.length === 0 && !this.#running;
    this.samples.hidden = samplesOf(family).length === 0;
  }

  stop() {
    this.#running?.abort();
  }

  /** Run every row; what fails for one text is told in its row. */
  async run() {
    if (this.#running || this.#start.disabled) return;
    this.#explain(null);
    try {
      this.#rows = rowsOf(this.#area.value);
      if (this.#rows.length === 0) throw new Error("Paste or drop some texts first.");
    } catch (error) {
      this.#rows = [];
      this.#explain(error.message);
      return;
    }
    this.#variants = this.#page.choice.ready;
    this.#running = new AbortController();
    this.#results.hidden = false;
    this.#drawTable();
    this.#start.textContent = "Stop";
    this.#start.dataset.action = "stop";
    this.#page.announce(`${whole(this.#rows.length)} texts are running.`);
    const parameters = { seed: 0, ...this.#page.parameters.given };
    let failure = null;
    try {
      await this.#work(parameters);
    } catch (error) {
      failure = error;
      this.#running.abort();
    }
    const stopped = this.#running.signal.aborted;
    this.#running = null;
    this.#start.textContent = "Run";
    delete this.#start.dataset.action;
    if (failure && failure.name !== "AbortError") {
      this.#page.parameters.blame(failure.message);
      this.#explain(`${failure.message} The results until then are below.`);
    }
    this.#draw();
    const state = stopped ? "Stopped at" : "Done:";
    this.#status.textContent = `${state} ${whole(this.#done.length)} of ${whole(this.#rows.length)} texts`;
    this.#page.announce(this.#status.textContent);
    this.update();
  }

  get #refs() {
    return this.#variants.map(({ ref }) => ref);
  }

  get #done() {
    return this.#rows.filter(({ results, error }) => results || error);
  }

  /** Run one row after the other. Throws what would happen to every further row too. */
  async #work(parameters) {
    for (const [i, row] of this.#rows.entries()) {
      const body = { inputs: row.text, models: inTurns(this.#refs, this.#variants, i), parameters };
      while (!row.results && !row.error) {
        try {
          const { results } = await this.#page.server.compare(body, this.#running.signal);
          row.results = new Map(results.map((result) => [result.ref, { ...result, ms: answerMs(result) }]));
        } catch (error) {
          if (error.status === 429) await this.#pause(1000 * (error.retryAfterS ?? 1));
          else if (REFUSALS_OF_A_TEXT.has(error.status) && this.#isAboutTheText(error)) row.error = error.message;
          else throw error;
        }
      }
      if (performance.now() - this.#drawnAt > DRAW_MS) {
        this.#draw();
        await sleep(PAINT_MS);
      }
    }
  }

  /** A refused parameter is refused for every text: better said once. */
  #isAboutTheText(error) {
    return !error.message.startsWith("parameters.");
  }

  async #pause(ms) {
    await sleep(ms);
    this.#running.signal.throwIfAborted();
  }

  async #read(file) {
    if (!file) return;
    this.#file.value = "";
    if (file.size > MOST_BYTES) {
      this.#explain(`${file.name} has ${whole(Math.round(file.size / 1e6))} MB: at most ${MOST_BYTES / 1e6} MB are read here.`);
      return;
    }
    this.#explain(null);
    this.#area.value = await file.text();
    this.#area.focus();
  }

  #explain(message) {
    this.#problem.hidden = message === null;
    this.#problem.textContent = message ?? "";
  }

  #download(ending, type, text) {
    download(`${this.#variants[0]?.model ?? "nash"}-comparison.${ending}`, type, text);
  }

  #draw() {
    this.#drawnAt = performance.now();
    const done = this.#done.length;
    this.#progress.value = done / this.#rows.length;
    this.#status.textContent = `${whole(done)} of ${whole(this.#rows.length)} texts`;
    this.#drawFigures();
    this.#extendTable();
  }

  #drawFigures() {
    const answered = this.#rows.filter(({ results }) => results);
    const failed = this.#rows.filter(({ error }) => error).length;
    this.#figures.replaceChildren(
      ...this.#variants.map((variant) => {
        const own = answered.map(({ results }) => results.get(variant.ref));
        const head = build("h2", {}, variant.variant);
        const card = build("div", { className: "figure-card", tone: variant.tone }, head);
        if (own.length === 0) return card;
        const right = answered.filter(({ targets, results }) => targets?.includes(results.get(variant.ref).generated_text));
        const aimed = answered.filter(({ targets }) => targets).length;
        const speedup = median(own.map(({ speedup: each }) => each));
        const { figure, word } = comparison(speedup);
        const baseline = variant.ref === this.#baseline;
        card.append(
          element("p", "figure-card-lead", baseline ? "the baseline" : `${figure} ${word.replace(" than", "").replace("as fast as", "as fast")}`),
          build("dl", { className: "times" },
            ...terms([
              ["median", median(own.map(({ ms }) => ms)), duration],
              ["same answers", baseline ? null : own.filter(({ agreement }) => agreement.exact).length / own.length, (f) => percent(f, 1)],
              ["mean ROUGE-L", baseline ? null : own.reduce((sum, { agreement }) => sum + agreement.rouge_l, 0) / own.length, (r) => r.toFixed(3)],
              ["equal to target", aimed ? right.length / aimed : null, (f) => percent(f, 1)],
            ])),
        );
        return card;
      }),
      ...(failed ? [element("p", "problem", `${whole(failed)} texts failed; their rows say why.`)] : []),
    );
  }

  get #baseline() {
    return (this.#variants.find(({ variant }) => variant === "dense") ?? this.#variants[0])?.ref;
  }

  /** Draw the table from the beginning. */
  #drawTable() {
    const head = build("tr", {}, cellOf("th", "#", "num"), cellOf("th", "text"),
      ...this.#variants.map(({ variant, tone }) => build("th", { tone, scope: "col", className: "toned" }, variant)));
    this.#caption = build("caption", { className: "note" });
    this.#body = build("tbody");
    this.#table.replaceChildren(this.#caption, build("thead", {}, head), this.#body);
    this.#considered = this.#found = 0;
    this.#extendTable();
  }

  /** Add the rows that have been answered since; they are in order. */
  #extendTable() {
    for (; this.#considered < this.#rows.length; this.#considered++) {
      const row = this.#rows[this.#considered];
      if (!row.results && !row.error) break;
      const differs = row.error || [...row.results.values()].some(({ agreement }) => !agreement.exact);
      if (this.#differing.checked && !differs) continue;
      this.#found++;
      if (this.#found <= MOST_SHOWN) this.#body.append(this.#line(row, this.#considered + 1));
    }
    this.#caption.textContent = this.#captionOf(this.#found);
  }

  #captionOf(found) {
    if (found === 0) return this.#differing.checked ? "No answer differs so far." : "No answer yet.";
    return found > MOST_SHOWN ? `The first ${MOST_SHOWN} of ${whole(found)} rows; the downloads have all.` : "";
  }

  #line({ text, results, error }, number) {
    const line = build("tr", {}, cellOf("td", whole(number), "num"), cellOf("td", text, "source"));
    if (error) {
      line.append(build("td", { colSpan: this.#variants.length, className: "failed" }, error));
      return line;
    }
    const reference = results.get(this.#baseline);
    for (const { ref } of this.#variants) {
      const { generated_text: answer, ms, agreement } = results.get(ref);
      const shown = agreement.exact ? [answer] : marked(changes(reference.generated_text, answer));
      const rouge = agreement.exact ? "" : ` · ROUGE-L ${agreement.rouge_l.toFixed(2)}`;
      line.append(build("td", {}, build("span", { className: "given" }, ...shown), element("small", "", `${duration(ms)}${rouge}`)));
    }
    return line;
  }
}

function cellOf(tag, text, className = "") {
  return build(tag, tag === "th" ? { scope: "col", className } : { className }, text);
}
