/**
 * What the address says: `#VIEW?model=g2p&variants=dense,pruned&text=...&num_beams=4`. It stands behind the `#` because
 * that part never reaches the server: no text gets into a log of addresses.
 */

const VIEWS = ["compare", "batch", "traffic", "models"];
const OWN = new Set(["model", "variants", "text"]);

/** {view, model, variants, text, parameters}; null where the address is silent. */
export function readLink(hash = location.hash) {
  const [view, query = ""] = hash.slice(1).split(/\?(.*)/s);
  const given = new URLSearchParams(query);
  return {
    view: VIEWS.includes(view) ? view : "compare",
    model: given.get("model"),
    variants: given.get("variants")?.split(",") ?? null,
    text: given.get("text"),
    parameters: new Map([...given].filter(([name]) => !OWN.has(name))),
  };
}

/** The address that says the same. */
export function linkTo({ view, model, variants, text, parameters }) {
  const given = new URLSearchParams();
  if (model) given.set("model", model);
  if (variants) given.set("variants", variants.join(","));
  for (const [name, value] of parameters) given.set(name, value);
  if (text) given.set("text", text);
  return `#${view}${given.size ? `?${given}` : ""}`;
}
