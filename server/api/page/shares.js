/** Whole percentages that always sum to 100. */

/** `weights` as whole percentages, by largest remainders; equal parts where no weight is above 0. */
export function sharesOf(weights) {
  const sum = weights.reduce((a, b) => a + b, 0);
  if (sum <= 0) return sharesOf(weights.map(() => 1));
  const exact = weights.map((weight) => (100 * weight) / sum);
  const shares = exact.map(Math.floor);
  const byRemainder = exact.map((each, i) => [each - shares[i], i]).sort((a, b) => b[0] - a[0]);
  const missing = 100 - shares.reduce((a, b) => a + b, 0);
  for (let i = 0; i < missing; i++) shares[byRemainder[i][1]]++;
  return shares;
}

/** The same shares after the one at `index` was set to `share`: the others keep their proportions. */
export function withShare(shares, index, share) {
  const others = shares.filter((_, i) => i !== index);
  if (others.length === 0) return [100];
  const rest = 100 - share;
  const spread = sharesOf(others).map((each) => (each * rest) / 100);
  const rounded = rest === 0 ? others.map(() => 0) : scaled(spread, rest);
  return shares.map((_, i) => (i === index ? share : rounded.shift()));
}

/** Numbers that sum to the whole number `total`, rounded so that they still do. */
function scaled(values, total) {
  const floors = values.map((value) => Math.floor(value + 1e-9));
  const order = values.map((value, i) => [value - floors[i], i]).sort((a, b) => b[0] - a[0]);
  const missing = total - floors.reduce((a, b) => a + b, 0);
  for (let i = 0; i < missing; i++) floors[order[i % order.length][1]]++;
  return floors;
}
