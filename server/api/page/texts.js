/** Texts from a pasted list or a file, and the results as a file again. */

const MOST_TEXTS = 20_000;
export const MOST_BYTES = 20_000_000;
const FIELDS = ["source", "inputs", "text"]; // where a row's text may stand

/**
 * Rows {text, targets} of one text a line, or of JSONL: a string or an object a line, with its text under `source`,
 * `inputs` or `text`, and perhaps right answers under `target`. Throws an Error that names the line and the remedy.
 */
export function rowsOf(content) {
  const lines = content.replace(/^\ufeff/, "").split(/\r\n|\n|\r/);
  const filled = lines.map((line, i) => ({ line, number: i + 1 })).filter(({ line }) => line.trim());
  if (filled.length > MOST_TEXTS) {
    const found = filled.length.toLocaleString("en");
    throw new Error(`${found} texts: at most ${MOST_TEXTS.toLocaleString("en")} run here. For more, use nash generate.`);
  }
  const jsonl = filled.length > 0 && /^\s*[{"]/.test(filled[0].line) && isJson(filled[0].line);
  return filled.map(jsonl ? jsonRow : ({ line }) => ({ text: line, targets: null }));
}

function isJson(line) {
  try {
    JSON.parse(line);
    return true;
  } catch {
    return false;
  }
}

function jsonRow({ line, number }) {
  let row;
  try {
    row = JSON.parse(line);
  } catch {
    throw new Error(`Line ${number} is not JSON, but the first line is: write all as JSON, or none.`);
  }
  const text = typeof row === "string" ? row : FIELDS.map((name) => row?.[name]).find((value) => value !== undefined);
  if (typeof text !== "string") throw new Error(`Line ${number} has no text: give it as "source", "inputs" or "text".`);
  const targets = row.target === undefined ? null : [row.target].flat();
  if (targets?.some((target) => typeof target !== "string")) {
    throw new Error(`Line ${number}: "target" is neither a text nor a list of texts.`);
  }
  return { text, targets };
}

/** Results as CSV for spreadsheets: a byte order mark, and no cell that one would take for a formula. */
export function csvOf(rows, refs) {
  const head = ["source", "target", ...refs.flatMap((ref) => [ref, `${ref} ms`, `${ref} speedup`, `${ref} exact`, `${ref} rouge_l`]), "error"];
  const lines = rows.map(({ text, targets, results, error }) => [
    text,
    targets?.join(" | ") ?? "",
    ...refs.flatMap((ref) => {
      const result = results?.get(ref);
      if (!result) return ["", "", "", "", ""];
      const { generated_text: answer, ms, speedup, agreement } = result;
      return [answer, ms.toFixed(3), speedup, agreement.exact, agreement.rouge_l];
    }),
    error ?? "",
  ]);
  return `\ufeff${[head, ...lines].map((line) => line.map(cell).join(",")).join("\r\n")}\r\n`;
}

function cell(value) {
  if (typeof value !== "string") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) && Number.isNaN(Number(value)) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Results as JSONL, a row for each text. */
export function jsonlOf(rows) {
  return rows
    .map(({ text, targets, results, error }) => {
      const row = { source: text, ...(targets && { target: targets.length === 1 ? targets[0] : targets }) };
      if (error) return `${JSON.stringify({ ...row, error })}\n`;
      const answers = [...results].map(([ref, { generated_text, ms, speedup, agreement }]) => [
        ref,
        { generated_text, ms: +ms.toFixed(3), speedup, agreement },
      ]);
      return `${JSON.stringify({ ...row, answers: Object.fromEntries(answers) })}\n`;
    })
    .join("");
}
