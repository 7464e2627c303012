// What POST /v1/limits says about a question, as sentences (pure).

const count = (value) => Number(value).toLocaleString('en');

/** `{text, over, tooLong}` for the response of POST /v1/limits. over = show as an error; tooLong = cannot be asked. */
export function budgetWords({ prompt_tokens: prompt, room_tokens: tokens, room_images: images }) {
  if (tokens < 1) {
    return {
      text: `This question takes ${count(prompt)} tokens, more than the model’s limit: shorten it.`,
      over: true,
      tooLong: true,
    };
  }
  if (images < 1) {
    return {
      text: `No room for an image, only for ${count(tokens)} tokens of text: shorten the question.`,
      over: true,
      tooLong: false,
    };
  }
  return { text: `room for ${images} ${images === 1 ? 'image' : 'images'}`, over: false, tooLong: false };
}

/** A note on a question unlike those of the checkpoint's training; empty for others, and if the card does not say. */
export const familiarWords = ({ familiar = null }) =>
  familiar === false ? 'This question is outside what this model knows: its answer is a guess.' : '';

/** The text for an error of POST /v1/limits, as budgetWords; null if the error is not about the question. */
export function budgetError(error) {
  if ((error.status !== 422 && error.status !== 413) || /checkpoint/.test(error.code ?? '')) return null;
  if (error.code === 'bad_place') return { text: error.message, over: true, tooLong: true };
  const most = /at most (\d+) characters/.exec(error.message)?.[1];
  const what = most ? `This question is longer than ${count(most)} characters` : 'This question is too long';
  return { text: `${what}: shorten it.`, over: true, tooLong: true };
}
