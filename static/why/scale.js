// Numbers as lengths, tints and places in a text. Pure, for tests.

/** Probabilities, from likely to unlikely; `alpha` is the strength of the tint on an image. */
export const BINS = [
  { from: 0.9, alpha: 0, label: '90 % or more' },
  { from: 0.7, alpha: 0.3, label: '70 – 90 %' },
  { from: 0.5, alpha: 0.5, label: '50 – 70 %' },
  { from: 0.25, alpha: 0.7, label: '25 – 50 %' },
  { from: 0, alpha: 0.9, label: 'under 25 %' },
];
export const UNSURE = 0.5; // less likely than this: the model was unsure
const LEAST = 0.01; // nats; a smaller effect is none
const STRONGEST = 0.9;

/** The bin of a log-probability. */
export const binOf = (logprob) => BINS.findIndex(({ from }) => Math.exp(logprob) >= from);

/** The length of each value's bar, 0 … 1: relative to the largest, none below zero. */
export function lengthsOf(values) {
  const most = Math.max(0, ...values);
  return values.map((value) => (most < LEAST ? 0 : Math.max(0, value) / most));
}

export const isNothing = (nats) => Math.abs(nats) < LEAST;

/** The alphas of an image's codes from their log-probabilities; null = given. */
export const unlikely = (grid) => grid.map((row) => row.map((one) => (one === null ? null : BINS[binOf(one)].alpha)));

/** The alphas of several grids of attention, comparable among them. The square root keeps small values visible. */
export function attended(grids) {
  const most = Math.max(...grids.flat(2), Number.MIN_VALUE);
  return grids.map((grid) => grid.map((row) => row.map((value) => STRONGEST * Math.sqrt(value / most))));
}

const MARK = /THOUGHT \d+:|Final Answer:/;
const BYTE = '\ufffd'; // a token that ends within a character

/**
 * A shown text in pieces, `[{text, logprob}]`; `logprob` is null for a given token, undefined where no token is known.
 * `tokens` may have more at both ends: the template's marks are not shown.
 */
export function piecesOf(text, tokens) {
  const owners = ownersOf(text, tokens);
  const pieces = [];
  [...text].reduce((at, letter) => {
    const owner = owners[at];
    const last = pieces[pieces.length - 1];
    if (last && last.owner === owner) last.text += letter;
    else pieces.push({ owner, text: letter, logprob: tokens[owner]?.logprob });
    return at + letter.length;
  }, 0);
  return pieces.map(({ text: piece, logprob }) => ({ text: piece, logprob }));
}

// The number of the token that each unit of the text belongs to.
function ownersOf(text, tokens) {
  const joined = tokens.map((token) => token.text).join('');
  const numbers = tokens.flatMap((token, k) => Array(token.text.length).fill(k));
  const mark = MARK.exec(joined);
  let from = mark ? mark.index + mark[0].length : 0;
  while (/\s/.test(joined[from] ?? '')) from += 1;
  const owners = [];
  while (owners.length < text.length) {
    if (joined[from] === text[owners.length]) owners.push(numbers[from++]);
    else if (joined[from] === BYTE) {
      const owner = numbers[from];
      while (joined[from] === BYTE) from += 1;
      do owners.push(owner);
      while (owners.length < text.length && text[owners.length] !== joined[from]);
    } else return [];
  }
  return owners;
}
