// Relative times.

/** `2 minutes ago`, for a time in RFC 3339. */
export function whenOf(time, now = Date.now()) {
  const minutes = Math.max(0, (now - Date.parse(time)) / 60_000);
  const ago = (value, unit) => new Intl.RelativeTimeFormat('en', { numeric: 'auto' }).format(-Math.round(value), unit);
  if (minutes < 1) return 'just now';
  if (minutes < 60) return ago(minutes, 'minute');
  if (minutes < 60 * 24) return ago(minutes / 60, 'hour');
  return ago(minutes / 60 / 24, 'day');
}
