/** A card's notes, whatever shape they have, as one paragraph. */
export const wordsOf = (notes) =>
  notes && typeof notes === 'object' ? Object.values(notes).join(' ') : String(notes ?? '');
