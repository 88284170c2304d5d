/** How this page makes elements. Texts are only ever set as text: nothing that a model or a store says is parsed. */

const SVG = "http://www.w3.org/2000/svg";

export function byId(id) {
  return document.getElementById(id);
}

/** A new HTML element with a class and a text. */
export function element(tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

/** A new HTML element with properties and children: `build("button", {type: "button"}, "Stop")`. */
export function build(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name === "role" || name === "for") node.setAttribute(name, value);
    else if (name === "tone") node.dataset.tone = value;
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** A new SVG element. */
export function svg(tag, attributes = {}, text = "") {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

/** Pairs [name, value, format?] as the children of a `dl`, without those whose value is unknown. */
export function terms(pairs) {
  return pairs
    .filter(([, value]) => value !== undefined && value !== null && value !== "")
    .map(([name, value, format = String]) =>
      build("div", {}, element("dt", "", name), element("dd", "", format(value))),
    );
}

/** A button that copies what `text()` gives, and says so for a moment. */
export function copyButton(label, text, name = label) {
  const button = build("button", { type: "button", className: "quiet", textContent: label, "aria-label": name });
  button.addEventListener("click", async () => {
    button.textContent = (await copied(text())) ? "Copied" : "Copying failed";
    setTimeout(() => (button.textContent = label), 1500);
  });
  return button;
}

/** Copy a text. Only secure contexts have the clipboard; elsewhere a selection does. */
export async function copied(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Not permitted: the other way.
    }
  }
  const focused = document.activeElement;
  const area = build("textarea", { value: text, readOnly: true, className: "visually-hidden" });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}

/** Offer a text as a file. */
export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = build("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

export function sleep(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
