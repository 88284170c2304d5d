/** A model's layers as a picture: what is left of each layer's heads and units, within the outline of the dense model. */
import { build, element, svg } from "./dom.js";
import { percent, plural, whole } from "./format.js";

const ROW = 15; // pixels from one layer to the next
const HEIGHT = 10;
const GUTTER = 20;
const HEADS = 68; // width of a layer's heads
const GAP = 8;
const UNITS_AT = GUTTER + 2 * (HEADS + GAP);
const WIDTH = 288;

/** The picture and its words, for the `spec` of a row of GET /models. */
export function layersOf(spec) {
  const encoder = Array.from({ length: spec.dense_encoder_layers }, (_, i) => spec.encoder[i] ?? null);
  const byOrigin = new Map(spec.decoder.map((layer) => [layer.origin, layer]));
  const decoder = Array.from({ length: spec.dense_decoder_layers }, (_, i) => byOrigin.get(i) ?? null);
  return build("figure", { className: "layers" },
    stack("Encoder", ["self-attention", "", "feed-forward"], encoder.map((layer) => layer && [layer.heads, null, layer.ffn]), spec, spec.d_ff),
    stack("Decoder", ["self", "cross", "feed-forward"], decoder.map((layer) => layer && [layer.self_heads, layer.cross_heads, layer.ffn]), spec, spec.decoder_d_ff),
    inNumbers(spec, encoder, decoder));
}

/** One stack; a layer is [heads, cross heads or null, units], or null where it was dropped. */
function stack(name, titles, layers, spec, mostUnits) {
  const top = 16;
  const height = top + layers.length * ROW;
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": said(name, layers, spec, mostUnits) });
  const at = [GUTTER, GUTTER + HEADS + GAP, UNITS_AT];
  titles.forEach((title, i) => title && picture.append(svg("text", { x: at[i], y: 9, class: "axis-title" }, title)));
  layers.forEach((layer, i) => {
    const y = top + i * ROW;
    picture.append(svg("text", { x: GUTTER - 7, y: y + HEIGHT - 1, class: "layer-number" }, String(i)));
    if (layer === null) {
      picture.append(svg("rect", { x: GUTTER, y: y + 0.5, width: WIDTH - GUTTER - 1, height: HEIGHT - 1, rx: 2, class: "dropped" }));
      return;
    }
    const [heads, cross, units] = layer;
    drawHeads(picture, heads, spec.num_heads, GUTTER, y);
    if (cross !== null) drawHeads(picture, cross, spec.num_heads, GUTTER + HEADS + GAP, y);
    const most = WIDTH - UNITS_AT;
    picture.append(svg("rect", { x: UNITS_AT, y, width: most, height: HEIGHT, rx: 2, class: "cut" }));
    const width = mostUnits ? (most * units) / mostUnits : 0;
    if (units) picture.append(svg("rect", { x: UNITS_AT, y, width: Math.max(1, width), height: HEIGHT, rx: 2, class: "kept" }));
  });
  return build("div", {}, element("h3", "", name), picture);
}

function drawHeads(picture, kept, most, x, y) {
  const step = HEADS / most;
  const gap = step > 5 ? 2 : step > 2 ? 1 : 0;
  const present = new Set(kept);
  for (let head = 0; head < most; head++) {
    const state = present.has(head) ? "kept" : "cut";
    picture.append(svg("rect", { x: x + head * step, y, width: step - gap, height: HEIGHT, rx: gap ? 2 : 0, class: state }));
  }
}

function said(name, layers, spec, mostUnits) {
  const kept = layers.filter((layer) => layer !== null);
  const attentions = kept.flatMap(([heads, cross]) => (cross === null ? [heads] : [heads, cross]));
  const heads = attentions.reduce((sum, each) => sum + each.length, 0);
  const units = kept.reduce((sum, [, , each]) => sum + each, 0);
  const most = attentions.length * spec.num_heads;
  return `${name}: ${kept.length} of ${plural(layers.length, "layer")}; in them ${heads} of ${most} heads and ${whole(units)} of ${whole(kept.length * mostUnits)} feed-forward units`;
}

/** The same as a table, for who wants the numbers. */
function inNumbers(spec, encoder, decoder) {
  const rows = [
    ...encoder.map((layer, i) => [`encoder ${i}`, layer && layer.heads.length, null, layer && layer.ffn]),
    ...decoder.map((layer, i) => [`decoder ${i}`, layer && layer.self_heads.length, layer && layer.cross_heads.length, layer && layer.ffn]),
  ];
  const line = ([name, self, cross, units]) =>
    self === null
      ? build("tr", {}, build("th", { scope: "row" }, name), build("td", { colSpan: 3 }, "dropped"))
      : build("tr", {}, build("th", { scope: "row" }, name), ...[self, cross, units].map((n) => build("td", {}, n === null ? "" : whole(n))));
  const head = build("tr", {}, ...["layer", "heads", "cross", "units"].map((title) => build("th", { scope: "col" }, title)));
  const width = spec.width < spec.d_model ? `; hidden states ${whole(spec.width)} of ${whole(spec.d_model)} wide` : "";
  const note = `of ${plural(spec.num_heads, "head")} and ${whole(spec.d_ff)} units a layer${width}; ${percent(spec.encoder_sparsity)} of the encoder cut`;
  return build("details", { className: "numbers" }, build("summary", {}, "In numbers"),
    build("table", {}, build("caption", { className: "note" }, note), build("thead", {}, head), build("tbody", {}, ...rows.map(line))));
}
