// Which stream of this browser stays connected: the one in the tab that was used last.
//
// A browser has six connections to a server on HTTP/1.1, shared by all its tabs. Every stream announces on one channel
// that it takes the turn, and the one that had it lets go. BroadcastChannel works on plain http too; Web Locks do not.

const newer = ([time, id], [otherTime, otherId]) => time > otherTime || (time === otherTime && id > otherId);

export class Turn {
  #channel;
  #now;
  #id;
  #stamp = null; // [time, id] while the turn is ours
  #heard = 0; // the latest time announced by anybody: a clock that was set back must not lose every turn

  /**
   * channel: a BroadcastChannel, or null where there is none: then every stream keeps its turn.
   * onTaken(): another stream has taken the turn. onFree(): nobody has it any more.
   */
  constructor({ channel, now = () => performance.timeOrigin + performance.now(), id = Math.random(), onTaken, onFree }) {
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
      return this.#channel.postMessage(this.#stamp); // the other one did not know of ours
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
