/** What every variant of the family is doing now, and how requests that name only the family are divided. */
import { build, element, svg } from "./dom.js";
import { duration, percent, plural, whole } from "./format.js";
import { sharesOf, withShare } from "./shares.js";

const POLL_MS = 2_000;
const REMEMBERED = 90; // polls in the small charts: three minutes
const FAILURES = ["rejected", "timeout", "error"];
const FRACTIONS = [0.01, 0.05, 0.1, 0.25, 0.5, 1];

export class TrafficView {
  #page;
  #live = element("div", "live");
  #weights = build("div", { className: "weights", role: "group", "aria-label": "Shares of the requests" });
  #meaning = element("p", "note");
  #from = build("select", { id: "shadow-from" });
  #to = build("select", { id: "shadow-to" });
  #fraction = build("select", { id: "shadow-fraction" }, new Option("off", "0"), ...FRACTIONS.map((f) => new Option(percent(f), String(f))));
  #seen = element("div", "seen");
  #apply = build("button", { type: "submit", className: "primary", id: "traffic-apply" }, "Apply");
  #clear = build("button", { type: "button", className: "quiet" }, "Stop dividing");
  #problem = build("p", { className: "problem", role: "alert", hidden: true, id: "traffic-problem" });
  #told = build("p", { className: "note", role: "status", id: "traffic-told" });
  #key = build("input", { type: "password", id: "admin-key", autocomplete: "off", spellcheck: false });
  #forget = build("button", { type: "button", className: "quiet" }, "Forget it");
  #keyField;
  #shares = [];
  #plan = null; // as the server has it
  #edited = false; // whether the reader has moved something that is not applied yet
  #built = "";
  #past = new Map(); // by ref, the last p50s in milliseconds, null where there was no answer
  #poll = 0;
  #visible = false;

  constructor(root, page) {
    this.#page = page;
    this.#keyField = build("div", { className: "admin-key" },
      build("label", { for: "admin-key" }, "Admin key"), this.#key, this.#forget,
      element("p", "note", "Changes need a key with the scope admin. It stays in this tab and is gone when the tab is closed."));
    this.#key.value = page.server.adminKey.value;
    this.#keyField.hidden = !page.server.key.value && !page.server.adminKey.value; // until a change is refused
    const shadow = build("fieldset", { className: "shadow" }, element("legend", "", "Shadow"),
      element("p", "note", "A share of what one variant has answered is run again on both while nobody waits. Callers notice nothing."),
      build("div", { className: "shadow-fields" },
        build("label", {}, "answered by ", this.#from), build("label", {}, "tried on ", this.#to), build("label", {}, "share ", this.#fraction)),
      this.#seen);
    const form = build("form", { className: "traffic-form", noValidate: true },
      element("h2", "", "Who answers"), this.#meaning, this.#weights, shadow, this.#keyField, this.#problem,
      build("div", { className: "traffic-actions" }, this.#apply, this.#clear, this.#told));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    for (const field of [this.#from, this.#to, this.#fraction]) field.addEventListener("change", () => this.#edit());
    this.#clear.addEventListener("click", () => this.#set({ weights: {}, shadow: this.#shadow }));
    this.#forget.addEventListener("click", () => {
      this.#key.value = page.server.adminKey.value = "";
    });
    root.append(build("div", { className: "live-panel" }, element("h2", "", "Now"), this.#live,
      element("p", "note", "p50 and p95 are of the last minute’s answers to callers, their wait in the queue included, without comparisons.")), form);
    document.addEventListener("visibilitychange", () => this.#visible && !document.hidden && this.#look());
  }

  show() {
    this.#visible = true;
    this.#look();
  }

  hide() {
    this.#visible = false;
    clearTimeout(this.#poll);
  }

  update() {
    const all = this.#page.choice.all;
    const built = `${this.#page.choice.family} ${all.map(({ variant }) => variant)}`;
    if (built === this.#built || all.length === 0) return;
    this.#built = built;
    this.#edited = false;
    this.#plan = null;
    this.#told.textContent = "";
    for (const select of [this.#from, this.#to]) {
      select.replaceChildren(...all.map(({ variant }) => new Option(variant, variant)));
    }
    this.#to.selectedIndex = Math.min(1, all.length - 1);
    this.#shares = sharesOf(all.map((_, i) => (i === 0 ? 1 : 0)));
    this.#weights.replaceChildren(...all.map((variant, i) => this.#slider(variant, i)));
    this.#look();
  }

  /** Apply what is set here. */
  async run() {
    const names = this.#page.choice.all.map(({ variant }) => variant);
    const weights = Object.fromEntries(names.map((name, i) => [name, this.#shares[i]]));
    await this.#set({ weights, shadow: this.#shadow });
  }

  get #shadow() {
    const fraction = Number(this.#fraction.value);
    return fraction ? { from: this.#from.value, to: this.#to.value, fraction } : null;
  }

  #slider({ variant, tone }, index) {
    const slider = build("input", { type: "range", min: 0, max: 100, step: 1, name: variant, id: `share-${index}` });
    const shown = build("output", { for: slider.id });
    slider.addEventListener("input", () => {
      this.#shares = withShare(this.#shares, index, slider.valueAsNumber);
      this.#edit();
      this.#showShares();
    });
    return build("div", { className: "weight", tone }, build("label", { for: slider.id }, element("span", "swatch"), variant), slider, shown);
  }

  #showShares() {
    [...this.#weights.children].forEach((row, i) => {
      const [, slider, shown] = row.children;
      slider.value = this.#shares[i];
      slider.setAttribute("aria-valuetext", `${this.#shares[i]} percent`);
      shown.textContent = `${this.#shares[i]}\u00a0%`;
    });
  }

  #edit() {
    this.#edited = true;
    this.#told.textContent = "Not applied yet.";
  }

  async #set(plan) {
    const { server, choice } = this.#page;
    server.adminKey.value = this.#key.value.trim();
    this.#apply.disabled = true;
    try {
      const set = await server.setTraffic(choice.family, plan);
      this.#edited = false;
      this.#explain(null);
      this.#showPlan(set);
      this.#told.textContent = Object.keys(set.weights).length ? "Applied." : "Applied: nothing is divided.";
    } catch (error) {
      this.#explain(error);
      this.#told.textContent = "";
    } finally {
      this.#apply.disabled = false;
    }
  }

  #explain(error) {
    this.#problem.hidden = error === null;
    this.#problem.textContent = error?.message ?? "";
    if (error?.keyWanted) {
      this.#keyField.hidden = false;
      this.#key.setAttribute("aria-invalid", "true");
      this.#key.focus();
    } else this.#key.removeAttribute("aria-invalid");
  }

  /** Ask how things stand, now and every two seconds while this view is seen. */
  async #look() {
    clearTimeout(this.#poll);
    const family = this.#page.choice.family;
    if (!this.#visible || document.hidden) return;
    if (family) {
      try {
        const [{ models }, plan] = await Promise.all([this.#page.server.stats(), this.#page.server.traffic(family)]);
        if (family === this.#page.choice.family) {
          this.#showLive(models.filter(({ model }) => model === family));
          this.#showPlan(plan);
        }
      } catch (error) {
        if (error.lostConnection || error.status === 401) this.#page.watch();
      }
    }
    clearTimeout(this.#poll);
    if (this.#visible) this.#poll = setTimeout(() => this.#look(), POLL_MS);
  }

  #showLive(models) {
    const tones = new Map(this.#page.choice.all.map(({ ref, tone }) => [ref, tone]));
    const order = [...tones.keys()];
    models.sort((a, b) => order.indexOf(a.ref) - order.indexOf(b.ref));
    const rows = models.map((each) => {
      const past = this.#past.get(each.ref) ?? [];
      past.push(each.last_minute.p50_ms);
      this.#past.set(each.ref, past.slice(-REMEMBERED));
      return liveRow(each, tones.get(each.ref) ?? 0, this.#past.get(each.ref));
    });
    this.#live.replaceChildren(...rows);
  }

  #showPlan(plan) {
    this.#plan = plan;
    const all = this.#page.choice.all;
    const divided = Object.keys(plan.weights).length > 0;
    this.#meaning.textContent = divided
      ? `Requests that name only ${plan.model} are divided like this; a session stays with its variant.`
      : `Requests that name only ${plan.model} are not divided: one variant gets them all, the store’s default where it is loaded.`;
    this.#clear.disabled = !divided;
    if (!this.#edited) {
      const given = all.map(({ variant }) => plan.weights[variant] ?? 0);
      this.#shares = sharesOf(divided ? given : all.map((_, i) => (i === 0 ? 1 : 0)));
      this.#showShares();
      if (plan.shadow) {
        this.#from.value = plan.shadow.from;
        this.#to.value = plan.shadow.to;
        const fraction = String(plan.shadow.fraction);
        if (![...this.#fraction.options].some(({ value }) => value === fraction)) this.#fraction.append(new Option(percent(plan.shadow.fraction, 1), fraction));
        this.#fraction.value = fraction;
      } else this.#fraction.value = "0";
    }
    this.#seen.replaceChildren(...seenOf(plan));
    const alone = all.length < 2;
    this.#apply.disabled = alone;
    for (const field of [this.#from, this.#to, this.#fraction]) field.disabled = alone;
  }
}

function liveRow({ variant, state, slots, running, waiting, outcomes, last_minute: minute }, tone, past) {
  const failed = FAILURES.reduce((sum, outcome) => sum + outcomes[outcome], 0);
  const meter = build("meter", { min: 0, max: slots ?? 1, value: Math.min(running, slots ?? 1), "aria-label": `${variant}: slots in use` });
  const fact = (name, ...value) => build("div", {}, element("dt", "", name), build("dd", {}, ...value));
  return build("article", { className: "live-row", tone },
    build("header", {}, element("h3", "", variant), element("span", "state", state === "ready" ? "" : state)),
    build("dl", { className: "live-facts" },
      fact("requests/s", minute.per_s.toFixed(minute.per_s < 10 ? 1 : 0)),
      fact("p50", minute.p50_ms === null ? "–" : duration(minute.p50_ms)),
      fact("p95", minute.p95_ms === null ? "–" : duration(minute.p95_ms)),
      fact("in slots", `${whole(running)} of ${slots === null ? "–" : whole(slots)}`, meter),
      fact("waiting", whole(waiting)),
      fact("answered", whole(outcomes.ok)),
      fact("failed", whole(failed))),
    sparkline(past, variant));
}

/** The last minutes' p50 as a line, drawn from 0. */
function sparkline(values, variant) {
  const known = values.filter((value) => value !== null);
  const label = known.length ? `${variant}: p50 over the last minutes, now ${duration(known.at(-1))}` : `${variant}: no answers yet`;
  const chart = svg("svg", { class: "sparkline", viewBox: "0 0 180 36", preserveAspectRatio: "none", role: "img", "aria-label": label });
  chart.append(svg("line", { class: "grid", x1: 0, x2: 180, y1: 35, y2: 35 }));
  const top = 1.15 * Math.max(...known, 1e-9);
  const first = REMEMBERED - values.length;
  if (known.length < 2) chart.classList.add("vacant");
  const points = values.flatMap((value, i) => (value === null ? [] : [`${((first + i) * 180) / (REMEMBERED - 1)},${35 - (33 * value) / top}`]));
  if (points.length > 1) chart.append(svg("polyline", { class: "series", points: points.join(" ") }));
  return chart;
}

function seenOf({ seen, shadow }) {
  if (!seen) return [];
  const { pairs, agreement, speedup } = seen;
  if (pairs === 0) return [element("p", "note", "No pair yet: pairs run when nobody waits.")];
  const parts = [["exact", "the same"], ["close", "close"], ["different", "different"]];
  const bar = build("div", { className: "agreement-bar", role: "img", "aria-label": parts.map(([key, word]) => `${agreement[key]} ${word}`).join(", ") });
  for (const [key] of parts) {
    const share = element("span", key);
    share.style.flexGrow = agreement[key];
    if (agreement[key]) bar.append(share);
  }
  const words = parts.map(([key, word]) => `${percent(agreement[key] / pairs)} ${word}`).join(", ");
  return [bar, element("p", "", `${plural(pairs, "pair")}: ${words}. ${shadow.to} is ${speedup.toFixed(2)}× as fast as ${shadow.from}.`)];
}
