// The world's own pen at the model's resolution, and an eraser that uncovers another image. Pure, but for the context.

export const INK = '#ff00ff'; // as the reference drawings have it
export const PEN = 3;
export const ERASER = 7;

/** The whole pixels of a straight line, both ends included (Bresenham). */
export function pixelsOf([x1, y1], [x2, y2]) {
  let [x, y] = [Math.floor(x1), Math.floor(y1)];
  const [endX, endY] = [Math.floor(x2), Math.floor(y2)];
  const [dx, dy] = [Math.abs(endX - x), -Math.abs(endY - y)];
  const [right, down] = [x < endX ? 1 : -1, y < endY ? 1 : -1];
  const found = [];
  for (let error = dx + dy; ;) {
    found.push([x, y]);
    if (x === endX && y === endY) return found;
    const twice = 2 * error;
    if (twice >= dy) {
      error += dy;
      x += right;
    }
    if (twice <= dx) {
      error += dx;
      y += down;
    }
  }
}

/** The square that a pen of this width covers at a pixel: `[left, top, width, height]`. */
export const squareAt = ([x, y], width) => [x - Math.floor(width / 2), y - Math.floor(width / 2), width, width];

/** Crisp lines, as wide as the world's. */
export function ink(context, from, to, width = PEN) {
  context.fillStyle = INK;
  for (const pixel of pixelsOf(from, to)) context.fillRect(...squareAt(pixel, width));
}

/** Shows `below` (an image, or null: white) where the eraser passes. */
export function erase(context, from, to, below, width = ERASER) {
  const { width: right, height: bottom } = context.canvas;
  context.save();
  context.beginPath();
  for (const pixel of pixelsOf(from, to)) context.rect(...squareAt(pixel, width));
  context.clip();
  fill(context, below, right, bottom);
  context.restore();
}

/** The whole canvas becomes an image, or white. */
export function fill(context, image, width = context.canvas.width, height = context.canvas.height) {
  context.fillStyle = '#ffffff';
  context.fillRect(0, 0, width, height);
  if (image) context.drawImage(image, 0, 0, width, height);
}
