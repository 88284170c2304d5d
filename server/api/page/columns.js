/** A column per variant: what it is, what it answered, how long that took. */
import { comparison, count, duration, element, megabytes } from "./format.js";

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
    this.#root.replaceChildren(...[...this.#columns.values()].map((column) => column.node));
  }

  /** Clear the answers of the variants that are about to run. */
  clear(refs) {
    for (const ref of refs) this.#columns.get(ref)?.clear();
  }

  token(ref, token) {
    this.#columns.get(ref)?.token(token);
  }

  finish(ref, event) {
    this.#columns.get(ref)?.finish(event);
  }

  fail(ref, message) {
    this.#columns.get(ref)?.fail(message);
  }

  /** Show how each result compares with the baseline's, and mark the tokens that differ. */
  compare({ baseline, results }) {
    const reference = this.#columns.get(baseline);
    for (const { ref, speedup, agreement } of results) {
      if (ref === baseline) reference?.lead(results.length);
      else this.#columns.get(ref)?.compare(reference, speedup, agreement);
    }
  }

  /** The run is over: no column waits any longer. */
  settle() {
    for (const column of this.#columns.values()) column.settle();
  }
}

class Column {
  node = element("article", "column");
  tokens = []; // of the last answer, without the end token: {id, text, node}
  #name = element("h2");
  #state = element("span", "state");
  #answer = element("p", "answer");
  #times = element("dl", "times");
  #comparison = element("p", "column-comparison");
  #facts = element("dl", "facts");

  constructor() {
    const head = element("header");
    head.append(this.#name, this.#state);
    this.node.append(head, this.#answer, this.#comparison, this.#times, this.#facts);
  }

  get name() {
    return this.#name.textContent;
  }

  describe({ ref, variant, tone, state, digest, dtype, memory_bytes: memoryBytes, spec }) {
    this.node.dataset.tone = tone;
    this.node.dataset.ref = ref;
    this.#name.textContent = variant;
    this.#state.textContent = state === "ready" ? "" : state;
    this.#facts.replaceChildren(
      ...terms([
        ["decoder", spec?.decoder_layers, (n) => `${n} layer${n === 1 ? "" : "s"}`],
        ["encoder cut", spec?.encoder_sparsity, (s) => `${Math.round(100 * s)}\u00a0%`],
        ["parameters", spec?.parameters, count],
        ["memory", memoryBytes, megabytes],
        ["type", dtype],
        ["digest", digest, (d) => d.replace(/^sha256:/, "").slice(0, 8)],
      ]),
    );
    if (state === "failed") this.fail("This variant did not load; the server’s log says why.");
  }

  clear() {
    this.tokens = [];
    this.node.classList.remove("failed");
    this.node.classList.add("waiting", "stale");
    this.#answer.replaceChildren();
  }

  token({ id, text, special }) {
    this.node.classList.remove("waiting");
    if (special) return;
    const node = element("span", "token", text);
    this.tokens.push({ id, text, node });
    this.#answer.append(node);
  }

  finish({ generated_text: text, timings }) {
    this.node.classList.remove("waiting", "stale");
    if (this.#answer.textContent !== text) this.#answer.textContent = text;
    if (text === "") this.#answer.replaceChildren(element("span", "empty", "an empty answer"));
    this.#times.replaceChildren(
      ...terms([
        ["total", timings.total_ms, duration],
        ["queue", timings.queue_ms, duration],
        ["encode", timings.encode_ms, duration],
        ["decode", timings.decode_ms, duration],
                ["first token", timings.time_to_first_token_ms, duration],
        ["per token", timings.time_per_output_token_ms, duration],
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
      this.#comparison.textContent = "";
      this.#times.replaceChildren();
    }
    this.node.classList.remove("waiting", "stale");
  }

  /** Mark this as the baseline, if there are other variants. */
  lead(variants) {
    this.#comparison.textContent = variants > 1 ? "the baseline" : "";
  }

  compare(reference, speedup, agreement) {
    const { figure, word, outcome } = comparison(speedup);
    this.#comparison.textContent = `${figure} ${word} ${reference.name}`;
    this.#comparison.dataset.outcome = outcome;
    if (agreement.exact) return;
    const shared = sharedPositions(reference.tokens, this.tokens);
    this.tokens.forEach(({ node }, i) => node.classList.toggle("differs", !shared.has(i)));
  }
}

/** Pairs of a description list, without those whose value is unknown. */
function terms(pairs) {
  return pairs
    .filter(([, value]) => value !== undefined && value !== null)
    .map(([name, value, format = String]) => {
      const pair = element("div");
      pair.append(element("dt", "", name), element("dd", "", format(value)));
      return pair;
    });
}

/** Positions in `tokens` that belong to a longest common subsequence with `reference`, by token id. */
function sharedPositions(reference, tokens) {
  const n = reference.length;
  const m = tokens.length;
  // length[i][j]: the length of the longest common subsequence of reference[i:] and tokens[j:]
  const length = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1));
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      length[i][j] =
        reference[i].id === tokens[j].id
          ? length[i + 1][j + 1] + 1
          : Math.max(length[i + 1][j], length[i][j + 1]);
    }
  }
  const shared = new Set();
  for (let i = 0, j = 0; i < n && j < m; ) {
    if (reference[i].id === tokens[j].id) {
      shared.add(j);
      i++;
      j++;
    } else if (length[i + 1][j] >= length[i][j + 1]) i++;
    else j++;
  }
  return shared;
}
