/** The page itself: the server's state, the reader's choice, the address, and one view at a time. */
import { Server } from "./api.js";
import { Choice, takesRequests } from "./choice.js";
import { CompareView } from "./compare.js";
import { byId } from "./dom.js";
import { linkTo, readLink } from "./link.js";
import { Parameters } from "./parameters.js";

const POLL_READY_MS = 10_000;
const POLL_UNREADY_MS = 1_000;
const THEMES = ["auto", "light", "dark"];
const WITH_PARAMETERS = new Set(["compare", "batch"]);

// The other views are fetched when they are first opened.
const LATER = {
  batch: async (page) => new (await import("./batch.js")).BatchView(byId("view-batch"), page),
  traffic: async (page) => new (await import("./traffic.js")).TrafficView(byId("view-traffic"), page),
  models: async (page) => new (await import("./models.js")).ModelsView(byId("view-models"), page),
};

class Page {
  server = new Server();
  choice = new Choice({ family: byId("family"), field: byId("family-field"), picks: byId("variants") });
  parameters = new Parameters(byId("parameters"), byId("parameters-note"));
  #views = new Map();
  #view = "compare";
  #poll = 0;
  #keyRefused = false;

  start() {
    const compare = new CompareView(this);
    this.#views.set("compare", Promise.resolve(compare));
    this.#followLink();
    addEventListener("hashchange", () => this.#followLink());
    this.choice.addEventListener("change", async ({ detail }) => {
      if (detail.otherFamily) compare.anotherFamily();
      this.#writeLink();
      (await this.#views.get(this.#view))?.update();
    });
    this.parameters.addEventListener("change", () => {
      compare.otherParameters();
      this.#writeLink();
    });
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.server.key.value = byId("key").value.trim();
      this.#keyRefused = true; // unless the next answer is none of that kind
      this.watch();
    });
    addEventListener("keydown", (event) => this.#shortcut(event));
    this.#switchThemes();
    this.watch();
  }

  /** Say something to readers who do not see the page. */
  announce(text) {
    byId("announcer").textContent = text;
  }

  /** The address of what is shown, with a text. */
  address(text) {
    return new URL(linkTo({ ...this.#state, text }), location.href).href;
  }

  /** Ask the server for its models, at once and then periodically. */
  async watch() {
    let models = null;
    let failure = null;
    try {
      models = await this.server.models();
    } catch (error) {
      failure = error;
    }
    const keyWanted = failure?.status === 401;
    const settled = keyWanted || models?.every((model) => takesRequests(model) || model.state === "failed");
    clearTimeout(this.#poll);
    this.#poll = setTimeout(() => this.watch(), settled ? POLL_READY_MS : POLL_UNREADY_MS);
    this.#askForKey(keyWanted, failure);
    if (keyWanted) this.#showServer("lost", "The server asks for a key");
    else if (failure) this.#showServer("lost", failure.lostConnection ? "Server out of reach, trying again" : failure.message);
    else this.#showModels(models);
  }

  #askForKey(wanted, failure) {
    const form = byId("key-form");
    if (wanted && form.hidden) {
      form.hidden = false;
      byId("key").focus();
    }
    form.hidden = !wanted;
    const refused = wanted && (this.#keyRefused || this.server.key.value !== "");
    byId("key-problem").hidden = !refused;
    byId("key-problem").textContent = refused ? failure.message : "";
    byId("key").setAttribute("aria-invalid", String(refused));
    this.#keyRefused = false;
  }

  #showModels(models) {
    if (byId("server-state").dataset.state === "lost") this.#cameBack();
    this.choice.update(models);
    const ready = models.filter(takesRequests).length;
    const loading = models.filter(({ state }) => state === "loading").map(({ ref }) => ref);
    if (loading.length) this.#showServer("loading", `Loading ${loading.join(", ")}`);
    else if (ready) this.#showServer("ready", ready === 1 ? "1 variant ready" : `${ready} variants ready`);
    else this.#showServer("lost", "No variant is ready");
  }

  async #cameBack() {
    (await this.#views.get("compare")).explain(null);
  }

  #showServer(state, text) {
    const node = byId("server-state");
    node.dataset.state = state;
    if (node.textContent !== text) node.textContent = text;
  }

  get #state() {
    const { family: model, names: variants } = this.choice;
    return { view: this.#view, model, variants, parameters: this.parameters.texts };
  }

  /** Show what the address says. A link of the page's own navigation names the view only. */
  async #followLink() {
    const { view, model, variants, text, parameters } = readLink();
    if (location.hash.includes("?")) {
      this.parameters.set(parameters);
      this.choice.ask(model, variants);
      if (text !== null) (await this.#views.get("compare")).setText(text);
    }
    await this.#open(view);
    this.#writeLink();
  }

  async #open(name) {
    if (name !== this.#view) (await this.#views.get(this.#view))?.hide?.();
    this.#view = name;
    for (const link of document.querySelectorAll(".views a")) {
      if (link.hash.slice(1).split("?")[0] === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== `view-${name}`;
    byId("parameters").hidden = !WITH_PARAMETERS.has(name);
    byId("variants").hidden = name === "traffic"; // which is about all of them
    if (!this.#views.has(name)) this.#views.set(name, LATER[name](this));
    const view = await this.#views.get(name);
    if (this.#view === name) {
      view.show?.();
      view.update();
    }
  }

  #writeLink() {
    if (this.choice.family) history.replaceState(null, "", linkTo(this.#state));
  }

  async #shortcut(event) {
    const view = await this.#views.get(this.#view);
    if (event.key === "Escape") view?.stop?.();
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) view?.run?.();
  }

  #switchThemes() {
    const button = byId("theme");
    const root = document.documentElement;
    const show = () => (button.textContent = `Theme: ${root.dataset.theme ?? "auto"}`);
    button.addEventListener("click", () => {
      const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "auto") + 1) % THEMES.length];
      if (next === "auto") delete root.dataset.theme;
      else root.dataset.theme = next;
      try {
        localStorage.setItem("nash-theme", next);
      } catch {
        // Storage is switched off: the theme lives as long as the page.
      }
      show();
    });
    show();
  }
}

new Page().start();
