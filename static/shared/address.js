// The one place in the browser that knows a proxy's path prefix: `/studio` if the gallery is at /studio/gallery, else ''.
//
// Everywhere else a path such as `/v1/traces` or `/gallery` is relative to the studio, as `url` in the server's JSON is.

const { protocol, pathname } = new URL(import.meta.url);
const own = /^(.*)\/static\/(?:v-[^/]+\/)?shared\/address\.js$/.exec(pathname);
const prefix = protocol.startsWith('http') && own ? own[1] : ''; // in tests this module is a file

/** What to request, show or link to for a path below the studio; other addresses (`#x`, `blob:…`) stay as they are. */
export const urlOf = (path) => (typeof path === 'string' && path.startsWith('/') ? prefix + path : path);

/** The studio's address, with its host and without a slash at its end, to copy. */
export const studioUrl = () => location.origin + prefix;
