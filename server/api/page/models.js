/** The chosen variants' cards: layers as a picture, size, quality, lineage, and how to call them. */
import { build, copyButton, element, terms } from "./dom.js";
import { count, duration, megabytes, percent, whole } from "./format.js";
import { layersOf } from "./layers.js";
import { baseUrl, snippetsOf } from "./snippets.js";

export class ModelsView {
  #page;
  #root = element("div", "cards");
  #problem = build("p", { className: "problem", role: "alert", hidden: true });
  #shown = "";

  constructor(root, page) {
    this.#page = page;
    root.append(this.#problem, this.#root);
  }

  async update() {
    const { chosen } = this.#page.choice;
    const shown = chosen.map(({ ref, digest, state, memory_bytes: bytes }) => `${ref} ${digest} ${state} ${bytes}`).join("\n");
    if (shown === this.#shown) return;
    this.#shown = shown;
    try {
      const cards = await Promise.all(chosen.map(({ ref }) => this.#page.server.card(ref)));
      if (shown !== this.#shown) return;
      this.#problem.hidden = true;
      this.#root.replaceChildren(...cards.map((card, i) => cardOf(card, chosen[i].tone, this.#page.server.key.value !== "")));
    } catch (error) {
      this.#shown = "";
      this.#problem.hidden = false;
      this.#problem.textContent = error.message;
      if (error.status === 401) this.#page.watch();
    }
  }
}

function cardOf(card, tone, keyed) {
  const node = build("article", { className: "card", tone },
    build("header", {}, element("h2", "", card.ref), element("span", "state", card.state === "ready" ? "" : card.state)),
    build("dl", { className: "times" }, ...terms([
      ["kind", card.spec.kind],
      ["parameters", card.spec.parameters, count],
      ["encoder cut", card.spec.encoder_sparsity, (f) => percent(f)],
      ["on disk", card.bytes, megabytes],
      ["with its caches", card.memory_bytes, megabytes],
      ["dtype", card.dtype],
    ])),
    layersOf(card.spec),
    ...qualityOf(card),
    ...latencyOf(card),
    lineageOf(card),
    callOf(card, keyed));
  node.dataset.ref = card.ref;
  return node;
}

function qualityOf({ ref, quality }) {
  const words = (name) => name.replaceAll("_", " ");
  const own = Object.entries(quality.metrics).map(([name, value]) => [words(name), `${value.toFixed(2)}\u00a0%`]);
  const on = quality.measured_on ? `Measured on ${whole(quality.measured_on.rows)} rows of ${quality.measured_on.split}.` : "";
  if (own.length + quality.records.length === 0) return [part("Quality", element("p", "note", "Nothing is recorded for this version."))];
  const parts = [build("dl", { className: "times" }, ...terms(own)), element("p", "note", on)];
  if (quality.records.length) {
    parts.push(tableOf(`Quality of ${ref} by dtype`, ["dtype", "metric", "value"], quality.records.map((each) => [
      each.dtype, `${words(each.metric)}, ${whole(each.rows)} of ${each.split}`, `${each.value.toFixed(2)}\u00a0%`,
    ])));
  }
  return [part("Quality", ...parts)];
}

function latencyOf({ ref, latency }) {
  if (latency.length === 0) return [];
  return [part("Recorded times", tableOf(`Recorded times of ${ref}`, ["processor", "dtype", "batch", "tokens", "total"], latency.slice(-8).map((each) => [
    `${each.processor}, ${each.threads} threads`, each.dtype, whole(each.batch),
    `${each.source_tokens} in, ${each.new_tokens} out`, duration(each.total_ms),
  ])))];
}

function lineageOf(card) {
  const short = (digest) => digest.slice(0, 10);
  const { lineage } = card;
  const facts = [
    ["version", card.version],
    ["aliases", card.aliases.join(", ")],
    ["digest", card.digest && short(card.digest)],
    ["published", card.created_at && card.created_at.slice(0, 16).replace("T", " ")],
    ["licence", card.licence],
  ];
  if (lineage) {
    facts.push(
      ["made from", lineage.parent && (lineage.parent_ref ?? short(lineage.parent))],
      ["initial weights", lineage.trained_from],
      ["seed", lineage.seed],
      ["trained in", Object.values(lineage.precision)[0]],
      ["code", lineage.code_version],
      ...Object.entries(lineage.data).map(([name, digest]) => [`data, ${name}`, short(digest)]),
    );
  } else facts.push(["origin", "a folder outside the store"]);
  return part("Lineage", build("dl", { className: "times lineage" }, ...terms(facts)));
}

function callOf({ ref }, keyed) {
  const url = baseUrl(ref);
  const base = build("div", { className: "base-url" }, element("code", "", url), copyButton("Copy", () => url, `Copy the base URL of ${ref}`));
  const snippets = snippetsOf(ref, keyed).map(({ title, code }) =>
    build("div", { className: "snippet" },
      build("div", { className: "panel-head" }, element("h4", "", title), copyButton("Copy", () => code, `Copy the ${title} example for ${ref}`)),
      build("pre", { tabIndex: 0, role: "region", "aria-label": `${title}, ${ref}` }, element("code", "", code))));
  return part("Call it", element("p", "note", "Its own base URL, for clients that cannot name a model:"), base,
    build("details", {}, build("summary", {}, "Examples"), ...snippets));
}

function part(title, ...children) {
  return build("div", { className: "card-part" }, element("h3", "", title), ...children);
}

function tableOf(name, titles, rows) {
  const head = build("tr", {}, ...titles.map((title) => build("th", { scope: "col" }, title)));
  const lines = rows.map((row) => build("tr", {}, ...row.map((value) => build("td", {}, value))));
  return build("div", { className: "scroller", tabIndex: 0, role: "region", "aria-label": name },
    build("table", {}, build("thead", {}, head), build("tbody", {}, ...lines)));
}
