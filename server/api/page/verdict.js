/** The headline: how much faster the best variant was than the baseline, and whether it gave the same answer. */
import { comparison, duration, plural } from "./format.js";

export class Verdict {
  #figure;
  #claim;
  #detail;
  #badge;

  constructor({ figure, claim, detail, badge }) {
    this.#figure = figure;
    this.#claim = claim;
    this.#detail = detail;
    this.#badge = badge;
  }

  /** Show the outcome, given each variant's median run and how many runs there were. Returns it as one sentence. */
  show(baseline, results, runs) {
    const reference = results.find(({ ref }) => ref === baseline);
    const rivals = results.filter(({ ref }) => ref !== baseline);
    const of = runs > 1 ? `median of ${runs} runs` : "one run";
    if (rivals.length === 0) return this.#alone(reference, of);
    const best = rivals.reduce((a, b) => (b.speedup > a.speedup ? b : a));
    const { figure, word, outcome } = comparison(best.speedup);
    const detail = `${duration(answerMs(best))}, not ${duration(answerMs(reference))}`;
    const claim = `${word} ${reference.variant}`;
    this.#write(figure, rivals.length > 1 ? `${best.variant} is ${claim}` : claim, `${detail}\n${of}`, outcome);
    const agreement = this.#agree(best.agreement);
    return `${best.variant} is ${figure} ${word} ${reference.variant}: ${detail}, ${of}; ${agreement}.`;
  }

  /** Show why there is no figure: nothing has run, or the run failed. */
  none(claim) {
    this.#write("", claim, "", "vacant");
    this.#badge.hidden = true;
  }

  #alone(result, of) {
    const figure = duration(answerMs(result));
    this.#write(figure, `${result.variant}, ${of}`, "With a second variant this is the speed-up.", "alone");
    this.#badge.hidden = true;
    return `${result.variant} answered in ${figure}.`;
  }

  #agree({ exact, token_edit_distance: distance, rouge_l: rougeL }) {
    const text = exact ? "same answer" : `differs by ${plural(distance, "token")}`;
    this.#badge.hidden = false;
    this.#badge.textContent = text;
    this.#badge.dataset.agreement = exact ? "exact" : "different";
    this.#badge.title = `ROUGE-L ${rougeL.toFixed(2)}`;
    return text;
  }

  #write(figure, claim, detail, outcome) {
    this.#figure.hidden = figure === "";
    this.#figure.textContent = figure;
    this.#figure.dataset.outcome = outcome;
    this.#claim.textContent = claim;
    this.#detail.textContent = detail;
  }
}

/** The time by which variants are compared: the total without the wait in the queue. */
export function answerMs({ timings }) {
  return timings.total_ms - timings.queue_ms;
}

/**
 * The order of the variants in run number `i`: each begins in its turn, since who comes first meets a machine that has
 * just done something else. Without a dense variant the first one is the baseline, and stays the first.
 */
export function inTurns(refs, variants, i) {
  if (!variants.some(({ variant }) => variant === "dense")) return refs;
  const first = i % refs.length;
  return [...refs.slice(first), ...refs.slice(0, first)];
}
