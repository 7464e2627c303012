// The title of the browser's tab: the page, and on the Studio the question of the trace.

const SITE = 'Omni-R1 Studio';
const LONGEST = 60;

const shown = { page: '', question: '', live: false };

/** `● How many red shapes are there? · Omni-R1 Studio` (pure). */
export function titleOf({ page = '', question = '', live = false }) {
  const words = question.replace(/\s+/g, ' ').trim();
  const short = words.length > LONGEST ? `${words.slice(0, LONGEST - 1).trimEnd()}…` : words;
  return (live ? '● ' : '') + [short || page, SITE].filter(Boolean).join(' · ');
}

/** Changes parts of the title; they may come from several modules, in any order. */
export function setTitle(change) {
  Object.assign(shown, change);
  const title = titleOf(shown);
  if (document.title !== title) document.title = title;
}
