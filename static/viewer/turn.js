// Decides which tab of this browser keeps its stream connected: the most recently used one.
//
// Browsers allow six HTTP/1.1 connections per server, shared by all tabs. A stream announces on a channel that it takes
// the turn, and the previous holder disconnects. BroadcastChannel works on plain http; Web Locks do not.

const newer = ([time, id], [otherTime, otherId]) => time > otherTime || (time === otherTime && id > otherId);

export class Turn {
  #channel;
  #now;
  #id;
  #stamp = null; // [time, id] while this stream has the turn
  #heard = 0; // the latest announced time: after a clock was set back, turns must still be won

  /**
   * channel: a BroadcastChannel, or null if unsupported: then every stream keeps its turn.
   * onTaken(): another stream took the turn. onFree(): the turn is free.
   */
  constructor({
    channel,
    now = () => performance.timeOrigin + performance.now(),
    id = Math.random(),
    onTaken,
    onFree,
  }) {
    this.#channel = channel;
    this.#now = now;
    this.#id = id;
    if (!channel) return;
    channel.onmessage = ({ data }) => {
      if (data === 'free') return onFree();
      this.#heard = Math.max(this.#heard, data[0]);
      if (!this.#stamp || newer(data, this.#stamp)) {
        this.#stamp = null;
        return onTaken();
      }
      return this.#channel.postMessage(this.#stamp); // the other stream did not know about ours
    };
  }

  take() {
    this.#heard = Math.max(this.#now(), this.#heard + 1);
    this.#stamp = [this.#heard, this.#id];
    this.#channel?.postMessage(this.#stamp);
  }

  release() {
    if (!this.#stamp) return;
    this.#stamp = null;
    this.#channel?.postMessage('free');
  }

  close() {
    this.release();
    this.#channel?.close();
  }
}
