/** Which family and which of its variants the reader looks at. Emits "change". */
import { build, element } from "./dom.js";

const TONES = 6; // how many variant colours base.css defines
const FIRST_CHOSEN = 4; // variants that are chosen where the link names none

/** Whether a variant answers: one that is idle is loaded for the next request. */
export const takesRequests = ({ state }) => state === "ready" || state === "idle";

export class Choice extends EventTarget {
  #family;
  #field;
  #picks;
  #models = []; // as GET /models returned them
  #names = null; // the chosen variants' names; null: the first ones
  #asked = null; // the family that the link names, until it is there

  constructor({ family, field, picks }) {
    super();
    this.#family = family;
    this.#field = field;
    this.#picks = picks;
    family.addEventListener("change", () => {
      this.#names = null;
      this.#show();
      this.#tell(true);
    });
    picks.addEventListener("change", () => {
      this.#names = [...picks.querySelectorAll("input:checked")].map((box) => box.value);
      this.#tell(false);
    });
  }

  /** Take up what a link says. */
  ask(family, names) {
    this.#asked = family;
    this.#names = names;
    if (this.#models.length) this.update(this.#models);
  }

  /** Show what the server has now. Returns whether the family is another one than before. */
  update(models) {
    const before = this.family;
    this.#models = models.filter(({ state }) => state !== "draining");
    const families = [...new Set(this.#models.map(({ model }) => model))];
    if (families.join() !== [...this.#family.options].map(({ value }) => value).join()) {
      this.#family.replaceChildren(...families.map((name) => new Option(name, name)));
      if (families.includes(before)) this.#family.value = before;
      this.#field.hidden = families.length < 2;
    }
    if (families.includes(this.#asked)) this.#family.value = this.#asked;
    this.#asked = null;
    this.#show();
    this.#tell(this.family !== before);
  }

  get family() {
    return this.#family.value;
  }

  /** The family's variants in running order, the dense one first, each with its colour and whether it is chosen. */
  get all() {
    const variants = this.#models.filter(({ model }) => model === this.family);
    variants.sort((a, b) => (b.variant === "dense") - (a.variant === "dense"));
    return variants.map((variant, i) => ({
      ...variant,
      tone: i % TONES,
      chosen: this.#names ? this.#names.includes(variant.variant) : i < FIRST_CHOSEN,
    }));
  }

  get chosen() {
    return this.all.filter(({ chosen }) => chosen);
  }

  get ready() {
    return this.chosen.filter(takesRequests);
  }

  /** For the link: the chosen variants' names, or null where the choice is the first one. */
  get names() {
    return this.#names && this.chosen.map(({ variant }) => variant);
  }

  #show() {
    const [legend, ...labels] = this.#picks.children;
    const all = this.all;
    const drawn = labels.map((label) => label.dataset.pick).join("\n");
    const wanted = all.map(({ variant, state, tone }) => `${variant} ${state} ${tone}`);
    if (drawn !== wanted.join("\n")) {
      const focused = this.#picks.contains(document.activeElement) ? document.activeElement.value : null;
      this.#picks.replaceChildren(legend, ...all.map(pick));
      this.#picks.querySelector(`input[value="${CSS.escape(focused ?? "")}"]`)?.focus();
    }
    for (const box of this.#picks.querySelectorAll("input")) {
      box.checked = all.some(({ variant, chosen }) => chosen && variant === box.value);
    }
  }

  #tell(otherFamily) {
    this.dispatchEvent(new CustomEvent("change", { detail: { otherFamily } }));
  }
}

function pick({ variant, state, tone }) {
  const box = build("input", { type: "checkbox", value: variant });
  const note = state === "ready" ? null : element("small", "", state);
  const label = build("label", { className: "pick", tone }, box, element("span", "swatch"), variant, note);
  label.dataset.pick = `${variant} ${state} ${tone}`;
  return label;
}
