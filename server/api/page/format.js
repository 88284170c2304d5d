/** How this page formats numbers. */

/** Milliseconds with three significant digits: "7.43 ms", "19.2 ms", "1.24 s". */
export function duration(ms) {
  if (!Number.isFinite(ms)) return "–";
  const [value, unit] = ms < 999.5 ? [ms, "ms"] : [ms / 1000, "s"];
  const decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return `${value.toFixed(decimals)}\u00a0${unit}`;
}

/** A count in compact form: 5.9M, 812K. */
export function count(n) {
  return new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(n);
}

/** A count with all its digits: 10,045. */
export function whole(n) {
  return n.toLocaleString("en");
}

export function megabytes(bytes) {
  const mb = bytes / 1e6;
  return `${mb.toFixed(mb < 10 ? 1 : 0)}\u00a0MB`;
}

/** A fraction as percent: "50 %". */
export function percent(fraction, decimals = 0) {
  return `${(100 * fraction).toFixed(decimals)}\u00a0%`;
}

/** "1 token", "3 tokens". */
export function plural(n, noun) {
  return `${whole(n)} ${noun}${n === 1 ? "" : "s"}`;
}

/**
 * Two speeds in words: {figure: "2.6×", word: "faster than", outcome: "faster"}.
 * `speedup` is the baseline's time over the variant's.
 */
export function comparison(speedup) {
  if (speedup > 0.98 && speedup < 1.02) return { figure: "1×", word: "as fast as", outcome: "even" };
  const ratio = speedup < 1 ? 1 / speedup : speedup;
  const outcome = speedup < 1 ? "slower" : "faster";
  return { figure: `${ratio.toFixed(ratio < 1.95 ? 2 : ratio < 99.5 ? 1 : 0)}×`, word: `${outcome} than`, outcome };
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Round positions 0, step, 2 step ... up to `top`, at most `most` + 1 of them. */
export function ticks(top, most) {
  const rough = top / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const positions = [];
  for (let i = 0; i * step <= top * 1.0001; i++) positions.push(i * step);
  return positions;
}

/** A tick's label: at most two decimals, no trailing zeros. */
export function tickLabel(ms) {
  return ms >= 1000 ? `${+(ms / 1000).toFixed(2)} s` : `${+ms.toFixed(2)}`;
}
