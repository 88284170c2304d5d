/** Which words of two texts differ. */

const MOST_CELLS = 4_000_000; // of the table below; longer texts are marked as a whole
const segmenter = new Intl.Segmenter(undefined, { granularity: "word" });

/**
 * What changed from `reference` to `text`: a list of {text, kind}, where kind is "same", "new" (only in `text`), "gone"
 * (only in `reference`) or "blank". Without those that are gone, the texts joined are `text`.
 */
export function changes(reference, text) {
  const old = words(reference).filter((word) => word.trim());
  const all = words(text);
  const kept = commonWords(old, all.filter((word) => word.trim()));
  const parts = [];
  let at = 0; // in `old`: what is before it has been told
  let turn = 0; // in `kept`
  const goneUpTo = (end) => {
    if (at < end) parts.push({ text: old.slice(at, end).join(" "), kind: "gone" });
    at = Math.max(at, end);
  };
  for (const word of all) {
    if (!word.trim()) {
      parts.push({ text: word, kind: "blank" });
      continue;
    }
    const match = kept[turn++];
    goneUpTo(match ?? kept.find((each, i) => i >= turn && each !== null) ?? old.length);
    parts.push({ text: word, kind: match === null ? "new" : "same" });
    if (match !== null) at = match + 1;
  }
  goneUpTo(old.length);
  return parts;
}

/** How many words it takes to get from the one to the other, in words: "2 words differ". */
export function changesInWords(parts) {
  const fresh = parts.filter(({ kind }) => kind === "new").length;
  const gone = parts.filter(({ kind }) => kind === "gone").reduce((sum, { text }) => sum + text.split(" ").length, 0);
  const n = Math.max(fresh, gone);
  return n === 0 ? "only blanks differ" : n === 1 ? "1 word differs" : `${n} words differ`;
}

/** A text's words, punctuation and blanks, also of languages that write no blanks. */
function words(text) {
  return Array.from(segmenter.segment(text), ({ segment }) => segment);
}

/** For each of `b`, the position of its partner in `a` in a longest common subsequence, or null. */
function commonWords(a, b) {
  const partners = new Array(b.length).fill(null);
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) partners[start] = start++;
  let endA = a.length;
  let endB = b.length;
  while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) partners[--endB] = --endA;
  const n = endA - start;
  const m = endB - start;
  if (n * m === 0 || n * m > MOST_CELLS) return partners;
  // length[i][j]: the length of the longest common subsequence of a[start + i:endA] and b[start + j:endB]
  const length = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1));
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      const same = a[start + i] === b[start + j];
      length[i][j] = same ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
    }
  }
  for (let i = 0, j = 0; i < n && j < m; ) {
    if (a[start + i] === b[start + j]) partners[start + j++] = start + i++;
    else if (length[i + 1][j] >= length[i][j + 1]) i++;
    else j++;
  }
  return partners;
}
