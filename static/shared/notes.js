/** A card's notes in any format as one paragraph. */
export const wordsOf = (notes) =>
  notes && typeof notes === 'object' ? Object.values(notes).join(' ') : String(notes ?? '');
