/** The headline: how much faster the best variant was than the baseline, and whether it gave the same answer. */
import { comparison, duration } from "./format.js";

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

  /** Show the outcome of a whole run, given POST /compare's document. Returns it as one sentence. */
  show({ baseline, results }) {
    const reference = results.find(({ ref }) => ref === baseline);
    const rivals = results.filter(({ ref }) => ref !== baseline);
    if (rivals.length === 0) return this.#alone(reference);
    const best = rivals.reduce((a, b) => (b.speedup > a.speedup ? b : a));
    const { figure, word, outcome } = comparison(best.speedup);
    const detail = `${duration(answerMs(best))} of work, not ${duration(answerMs(reference))}`;
    const claim = `${word} ${reference.variant}`;
    this.#write(figure, rivals.length > 1 ? `${best.variant} is ${claim}` : claim, detail, outcome);
    const agreement = this.#agree(best.agreement);
    return `${best.variant} is ${figure} ${word} ${reference.variant}, ${detail}; ${agreement}.`;
  }

  /** Show why there is no figure: nothing has run, or the run failed. */
  none(claim) {
    this.#write("×", claim, "", "vacant");
    this.#badge.hidden = true;
  }

  #alone(result) {
    const figure = duration(answerMs(result));
    this.#write(figure, result.variant, "A second variant of this model would give the speed-up.", "alone");
    this.#badge.hidden = true;
    return `${result.variant} answered in ${figure}.`;
  }

  #agree({ exact, token_edit_distance: distance, rouge_l: rougeL }) {
    const text = exact ? "same answer" : `differs by ${distance} token${distance === 1 ? "" : "s"}`;
    this.#badge.hidden = false;
    this.#badge.textContent = text;
    this.#badge.dataset.agreement = exact ? "exact" : "different";
    this.#badge.title = `ROUGE-L ${rougeL.toFixed(2)}`;
    return text;
  }

  #write(figure, claim, detail, outcome) {
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
