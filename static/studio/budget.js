// What a question costs and leaves, in one sentence (pure).

const count = (value) => Number(value).toLocaleString('en');

/** `{text, over, tooLong}` for the answer of POST /v1/limits. over = say it in red; tooLong = it cannot be asked at all. */
export function budgetWords({ prompt_tokens: prompt, room_tokens: tokens, room_images: images }) {
  if (tokens < 1) {
    return { text: `This question takes ${count(prompt)} tokens, more than the model holds: ask in fewer words.`, over: true, tooLong: true };
  }
  if (images < 1) {
    return { text: `No room for a picture, only for ${count(tokens)} tokens of text: ask in fewer words.`, over: true, tooLong: false };
  }
  return { text: `room for ${images} ${images === 1 ? 'picture' : 'pictures'}`, over: false, tooLong: false };
}

/** The same for a refusal of POST /v1/limits; null when the refusal is not about the question. */
export function refusedBudget(error) {
  if (error.status !== 422 && error.status !== 413) return null;
  if (error.code === 'bad_place') return { text: error.message, over: true, tooLong: true };
  const most = /at most (\d+) characters/.exec(error.message)?.[1];
  const what = most ? `This question is longer than ${count(most)} characters` : 'This question is too long';
  return { text: `${what}: ask in fewer words.`, over: true, tooLong: true };
}
