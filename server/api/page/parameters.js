/** How texts are decoded: a form whose empty fields leave the word to the model's own generation config. */
import { build, element } from "./dom.js";

const GROUPS = [
  ["Length", [
    ["max_new_tokens", "most new tokens", { min: 1, step: 1 }],
    ["min_new_tokens", "fewest new tokens", { min: 0, step: 1 }],
    ["truncate", "read at most, source tokens", { min: 2, step: 1 }],
  ]],
  ["Beam search", [
    ["num_beams", "beams", { min: 1, step: 1 }],
    ["length_penalty", "length penalty", { min: -10, max: 10, step: 0.1 }],
    ["num_return_sequences", "answers", { min: 1, step: 1 }],
  ]],
  ["Sampling", [
    ["temperature", "temperature", { min: 0.05, max: 5, step: 0.05 }],
    ["top_k", "top k", { min: 0, step: 1 }],
    ["top_p", "top p", { min: 0.01, max: 1, step: 0.01 }],
    ["seed", "seed", { min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 }],
  ]],
  ["Repetition", [
    ["repetition_penalty", "penalty", { min: 0.1, max: 10, step: 0.1 }],
    ["no_repeat_ngram_size", "no n-gram twice, n", { min: 0, step: 1 }],
  ]],
];

export class Parameters extends EventTarget {
  #details;
  #note;
  #fields = new Map();

  constructor(details, note) {
    super();
    this.#details = details;
    this.#note = note;
    const form = build("form", { className: "parameter-groups", noValidate: true });
    for (const [title, fields] of GROUPS) {
      const group = build("fieldset", {}, element("legend", "", title));
      for (const [name, label, limits] of fields) {
        const field = build("input", { type: "number", name, placeholder: "model’s own", inputMode: "decimal", ...limits });
        this.#fields.set(name, field);
        group.append(build("label", {}, label, field));
      }
      form.append(group);
    }
    const reset = build("button", { type: "button", className: "quiet" }, "Back to the model’s own");
    reset.addEventListener("click", () => {
      this.set(new Map());
      this.#changed();
    });
    form.append(reset);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", () => this.#changed());
    details.append(form);
    this.#say();
  }

  /** What was filled in, as `parameters` of a request. */
  get given() {
    return Object.fromEntries([...this.texts].map(([name, text]) => [name, Number(text)]));
  }

  /** The same as texts, for the link. */
  get texts() {
    const filled = [...this.#fields].filter(([, field]) => field.value !== "");
    return new Map(filled.map(([name, field]) => [name, field.value]));
  }

  /** Fill in what a link says; the rest is emptied. */
  set(texts) {
    for (const [name, field] of this.#fields) field.value = texts.get(name) ?? "";
    this.#say();
  }

  /** Mark the fields that a refusal names, and show them. */
  blame(message) {
    for (const [name, field] of this.#fields) {
      const named = new RegExp(`\\b${name}\\b`).test(message ?? "");
      field.setAttribute("aria-invalid", String(named));
      if (named) this.#details.open = true;
    }
  }

  #changed() {
    this.blame(null);
    this.#say();
    this.dispatchEvent(new Event("change"));
  }

  #say() {
    const texts = [...this.texts].map(([name, text]) => `${name} ${text}`);
    this.#note.textContent = texts.length ? texts.join(", ") : "the model’s own";
  }
}
