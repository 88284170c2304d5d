/** A column per variant: what it answered, which words differ from the baseline's, how long that took. */
import { element, terms } from "./dom.js";
import { comparison, count, duration, percent, plural } from "./format.js";
import { changes, changesInWords } from "./words.js";

const LONG = 90; // characters; longer answers are set smaller

export class Columns {
  #root;
  #columns = new Map();

  constructor(root) {
    this.#root = root;
  }

  /** Show a column for each variant; existing columns keep their answers. */
  show(variants) {
    const columns = variants.map(({ ref }) => [ref, this.#columns.get(ref) ?? new Column()]);
    this.#columns = new Map(columns);
    for (const variant of variants) this.#columns.get(variant.ref).describe(variant);
    const nodes = [...this.#columns.values()].map((column) => column.node);
    if (nodes.length !== this.#root.children.length || nodes.some((node, i) => node !== this.#root.children[i])) {
      this.#root.replaceChildren(...nodes);
    }
  }

  /** Clear the answers of the variants that are about to run. */
  clear(refs) {
    for (const ref of refs) this.#columns.get(ref)?.clear();
  }

  token(ref, token) {
    this.#columns.get(ref)?.token(token);
  }

  finish(ref, result) {
    this.#columns.get(ref)?.finish(result);
  }

  fail(ref, message) {
    this.#columns.get(ref)?.fail(message);
  }

  /** Show how each result compares with the baseline's, and mark the words that differ. */
  compare(baseline, results) {
    const reference = results.find(({ ref }) => ref === baseline);
    for (const result of results) {
      if (result === reference) this.#columns.get(baseline)?.lead(results.length);
      else this.#columns.get(result.ref)?.compare(reference, result);
    }
  }

  /** The run is over: no column waits any longer. */
  settle() {
    for (const column of this.#columns.values()) column.settle();
  }
}

class Column {
  node = element("article", "column");
  #name = element("h2");
  #state = element("span", "state");
  #answer = element("p", "answer");
  #note = element("p", "note");
  #others = element("ol", "others");
  #times = element("dl", "times");
  #comparison = element("p", "column-comparison");
  #agreement = element("p", "agreement");
  #facts = element("dl", "facts");

  constructor() {
    const head = element("header");
    head.append(this.#name, this.#state);
    const told = [this.#note, this.#others, this.#comparison, this.#agreement];
    for (const each of told) each.hidden = true;
    this.node.append(head, this.#answer, ...told, this.#times, this.#facts);
  }

  describe({ ref, variant, tone, state, dtype, spec }) {
    this.node.dataset.tone = tone;
    this.node.dataset.ref = ref;
    this.#name.textContent = variant;
    this.#state.textContent = state === "ready" ? "" : state;
    this.#facts.replaceChildren(
      ...terms([
        ["decoder", spec.decoder_layers, (n) => plural(n, "layer")],
        ["enc. cut", spec.encoder_sparsity, percent],
        ["weights", spec.parameters, count],
        ["dtype", dtype],
      ]),
    );
    if (state === "failed") this.fail("This variant did not load; the server’s log says why.");
  }

  clear() {
    this.node.classList.remove("failed");
    this.node.classList.add("waiting", "stale");
    this.#answer.replaceChildren();
    this.#note.hidden = this.#others.hidden = true;
  }

  token({ text, special }) {
    this.node.classList.remove("waiting");
    if (!special) this.#answer.append(text);
  }

  finish({ generated_text: text, timings, finish_reason: reason, generated_tokens: tokens, sequences }) {
    this.node.classList.remove("waiting", "stale");
    this.#answer.textContent = text;
    this.#answer.classList.toggle("long", text.length > LONG);
    if (text === "") this.#answer.replaceChildren(element("span", "empty", "an empty answer"));
    this.#note.hidden = reason !== "length";
    this.#note.textContent = `Ended at the most new tokens, ${tokens}.`;
    const others = sequences?.slice(1) ?? [];
    this.#others.hidden = others.length === 0;
    this.#others.replaceChildren(...others.map(({ generated_text: other }) => element("li", "", other)));
    this.#times.replaceChildren(
      ...terms([
        ["time", timings.total_ms - timings.queue_ms, duration],
        ["encode", timings.encode_ms, duration],
        ["decode", timings.decode_ms, duration],
        ["first token", timings.time_to_first_token_ms - timings.queue_ms, duration],
        ["per token", timings.time_per_output_token_ms, duration],
        ["queue", timings.queue_ms, duration],
      ]),
    );
  }

  fail(message) {
    this.node.classList.remove("waiting");
    this.node.classList.add("failed");
    this.#answer.textContent = message;
  }

  /** If no new answer came, remove the times and the comparison of the last one. */
  settle() {
    if (this.node.classList.contains("stale")) {
      this.#comparison.hidden = this.#agreement.hidden = true;
      this.#times.replaceChildren();
    }
    this.node.classList.remove("waiting", "stale");
  }

  /** Mark this as the baseline, if there are other variants. */
  lead(variants) {
    this.#comparison.hidden = variants === 1;
    this.#comparison.textContent = "the baseline";
    this.#agreement.hidden = true;
  }

  compare(reference, { generated_text: text, speedup, agreement }) {
    const { figure, word, outcome } = comparison(speedup);
    this.#comparison.hidden = this.#agreement.hidden = false;
    this.#comparison.textContent = `${figure} ${word} ${reference.variant}`;
    this.#comparison.dataset.outcome = outcome;
    this.#agreement.dataset.agreement = agreement.exact ? "exact" : "different";
    if (agreement.exact) {
      this.#agreement.textContent = "same answer";
      return;
    }
    const parts = changes(reference.generated_text, text);
    if (text !== "") this.#answer.replaceChildren(...marked(parts));
    const told = `${changesInWords(parts)} · ${plural(agreement.token_edit_distance, "token")} · ROUGE-L ${agreement.rouge_l.toFixed(2)}`;
    this.#agreement.textContent = told;
  }
}

/** An answer with its changes marked. What is gone cannot be selected: a copy of the answer is the answer. */
export function marked(parts) {
  return parts.map(({ text, kind }) => {
    if (kind === "new") return element("ins", "", text);
    return kind === "gone" ? element("del", "", text) : document.createTextNode(text);
  });
}
