// The streams of a busmicro caller in another language, written from docs/protocol.md, Streams,
// and nothing else. `StreamEnd` is what both ends do; busserve.js has the node's side.

import { randomBytes } from "node:crypto";
import { crc32 } from "node:zlib";

import { headers } from "@nats-io/nats-core";

import { CallError } from "./busclient.js";

export const WINDOW = { messages: 256, bytes: 1 << 20 };
const LARGEST_WINDOW = 65536;
const LARGEST_WINDOW_BYTES = 1 << 28;
const LAST_FRAMES = 2; // the end and the status need no credit
const CUT_BYTES = 1 << 20;
const HEADER_ROOM_BYTES = 512;
const JOINED_LIMIT_BYTES = 64 << 20;
const ASK_AGAIN_MS = 200;
const ASK_TIMES = 50;
const SIGN_OF_LIFE_MS = 20;
const QUIET_MS = 5000;
const GONE_MS = 15000;
const NOBODY_AGAIN_MS = 20;
const NOBODY_MS = 60; // long enough for what connects again at once
const LATELY_MS = 5000;
const WITHOUT_CONNECTION_MS = 30000;
const NUMBERED = /^([dpoes])([1-9][0-9]*)$/;
const EMPTY = new Uint8Array(0);

const HTTP = {
  cancelled: 499, unknown: 500, invalid_argument: 400, deadline_exceeded: 504, not_found: 404,
  already_exists: 409, permission_denied: 403, resource_exhausted: 429, failed_precondition: 400,
  aborted: 409, out_of_range: 400, unimplemented: 501, internal: 500, unavailable: 503,
  data_loss: 500, unauthenticated: 401,
};

/** Is this a subject on which this program may publish for somebody else? */
export function safe(subject) {
  return subject.startsWith("_INBOX.") && !/(^|\.)(rpc|node|cancel|dlq)(\.|$)|[*>]/.test(subject);
}

/** An error as headers and a payload. */
export function encodeError(error, origin) {
  const message = error instanceof CallError ? error.message : "the handler failed";
  const code = error instanceof CallError ? error.code : "internal";
  const header = headers();
  header.set("Nats-Service-Error-Code", String(HTTP[code]));
  header.set("Nats-Service-Error", percentEncoded(message.slice(0, 512)));
  header.set("Bus-Status", code);
  if (error.notRun) header.set("Bus-Not-Run", "1");
  const body = { code, message, details: error.details ?? [], origin: error.origin || origin };
  return { headers: header, payload: Buffer.from(JSON.stringify(body)) };
}

function percentEncoded(text) {
  return [...Buffer.from(text)]
    .map((b) => (b < 0x20 || b > 0x7e || b === 0x25 ? `%${b.toString(16).toUpperCase().padStart(2, "0")}` : String.fromCharCode(b)))
    .join("");
}

/** Somebody who waits until something has changed. */
class Bell {
  #waiting = [];

  wait() {
    return new Promise((resolve) => this.#waiting.push(resolve));
  }

  ring() {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

/** One end of one stream. */
export class StreamEnd {
  /**
   * `gives` is the window that this end allows, `lose` the names of frames that it forgets to
   * publish once, `miss` of frames that it does not notice once: so tests provoke losses; `grace`
   * how long the other end may be missing, in milliseconds.
   */
  constructor(streams, address, { gives = WINDOW, grace = NOBODY_MS, lose, miss } = {}) {
    this.streams = streams;
    this.address = address;
    this.other = ""; // the other end's address, once it is known
    this.gives = gives;
    this.grace = grace;
    this.lose = new Set(lose);
    this.miss = new Set(miss);
    this.bell = new Bell();
    this.failure = null; // how the stream ended, if badly
    this.over = false; // no more frames go out of here
    this.repaired = { asked: 0, answered: 0 };
    // what this end sends
    this.mayMessages = 0;
    this.mayBytes = 0;
    this.outMessages = 0;
    this.outBytes = 0;
    this.sent = 0;
    this.kept = []; // frames that the other end has not said to have
    this.confirmed = 0;
    this.halfClosed = false;
    this.signAsked = 0; // when a `d` last had a reply subject
    this.sending = Promise.resolve(); // one message after another, though it may be cut
    // what this end takes
    this.received = 0;
    this.known = 0; // the highest number that the other end is known to have sent
    this.inMessages = 0;
    this.inBytes = 0;
    this.taken = { messages: 0, bytes: 0 };
    this.said = { messages: 0, bytes: 0 }; // of that, what the other end was told
    this.pieces = [];
    this.queue = [];
    this.ended = false; // the other end has half-closed
    this.repair = null;
    // signs of life
    this.heard = Date.now();
    this.asked = this.heard;
    this.heardEver = false;
    this.nobody = 0; // when the first of the 503 came
    this.clock = setInterval(() => this.#tick(), 250);
  }

  // --- what the application does --------------------------------------------------------------

  /** Send one message, as soon as there is credit for it. */
  send(payload) {
    const bytes = Buffer.from(payload);
    this.sending = this.sending.then(() => this.#sendWhole(bytes));
    return this.sending;
  }

  async #sendWhole(bytes) {
    const cut = Math.min(CUT_BYTES, this.streams.nc.info.max_payload - HEADER_ROOM_BYTES);
    if (bytes.length <= cut) return this.#sendOne("d", bytes, {});
    let from = 0;
    for (; bytes.length - from > cut; from += cut) {
      await this.#sendOne("p", bytes.subarray(from, from + cut), {});
    }
    const header = headers();
    header.set("Bus-Checksum", crc32(bytes).toString(16).padStart(8, "0"));
    return this.#sendOne("d", bytes.subarray(from), { headers: header });
  }

  async #sendOne(letter, payload, options) {
    while (!this.failure && !this.halfClosed && !this.#credit()) await this.bell.wait();
    if (this.failure) throw this.failure;
    if (this.halfClosed) return; // the stream has ended well meanwhile: nobody wants it
    this.outMessages += 1;
    this.outBytes += payload.length;
    const sign = letter === "d" && Date.now() - this.signAsked >= SIGN_OF_LIFE_MS;
    if (sign) this.signAsked = Date.now();
    this.numbered(letter, payload, { ...options, reply: sign });
  }

  #credit() {
    return this.other && this.outMessages < this.mayMessages && this.outBytes < this.mayBytes;
  }

  /** Say that this end sends no more messages. */
  async end() {
    await this.sending;
    while (!this.failure && !this.other) await this.bell.wait();
    if (this.failure || this.halfClosed) return;
    this.halfClosed = true;
    this.numbered("e", EMPTY, { reply: true });
  }

  /** The next message of the other end, or null when there is none any more. */
  async next() {
    while (this.queue.length === 0) {
      if (this.failure) throw this.failure;
      if (this.ended) return null;
      await this.bell.wait();
    }
    const { payload, weighs } = this.queue.shift();
    this.#take(1, weighs);
    return payload;
  }

  async *[Symbol.asyncIterator]() {
    for (let one = await this.next(); one !== null; one = await this.next()) yield one;
  }

  // --- frames that go out -----------------------------------------------------------------------

  numbered(letter, payload, { headers: header, reply = false } = {}) {
    const frame = { number: ++this.sent, name: `${letter}${this.sent}`, payload, header, reply };
    this.kept.push(frame);
    if (!this.lose.delete(frame.name)) this.publish(frame.name, payload, { header, reply });
  }

  publish(name, payload, { header, reply = false } = {}) {
    const options = reply ? { reply: this.address } : {};
    if (header) options.headers = header;
    this.streams.nc.publish(`${this.other}.${name}`, payload, options);
  }

  /** What the other end may send, and what has come and gone; said, so it counts from now. */
  standing() {
    this.said = { ...this.taken };
    const messages = this.taken.messages + this.gives.messages;
    const bytes = this.taken.bytes + this.gives.bytes;
    return `${messages} ${bytes} ${this.received} ${this.sent}`;
  }

  tell(letter) {
    if (this.other && !this.over) this.publish(letter, this.standing(), { reply: letter !== "c" });
  }

  #take(messages, bytes) {
    this.taken.messages += messages;
    this.taken.bytes += bytes;
    const half =
      (this.taken.messages - this.said.messages) * 2 >= this.gives.messages ||
      (this.taken.bytes - this.said.bytes) * 2 >= this.gives.bytes;
    if (half) this.tell("c");
  }

  // --- frames that come in ----------------------------------------------------------------------

  onFrame(name, message) {
    if (this.over && !this.lingers()) return;
    this.heard = this.asked = Date.now();
    this.heardEver = true;
    if (this.nobody) this.#back();
    try {
      const match = NUMBERED.exec(name);
      if (match) this.#onNumbered(match[1], Number(match[2]), message);
      else this.onControl(name, message);
    } catch (error) {
      if (!(error instanceof CallError)) throw error;
      this.broken(error);
    }
    this.bell.ring();
  }

  #onNumbered(letter, number, message) {
    if (this.miss.delete(`${letter}${number}`)) return;
    if (number <= this.received) return;
    if (number > this.said.messages + this.gives.messages + LAST_FRAMES) {
      throw new CallError("internal", "a frame beyond the credit");
    }
    this.known = Math.max(this.known, number);
    if (number > this.received + 1) return this.askRepair();
    this.received = number;
    if (letter !== "d" && letter !== "p" && this.pieces.length && !this.#isError(message)) {
      throw new CallError("data_loss", "the end came in the middle of a message");
    }
    if (letter === "e") this.ended = true;
    else if (letter === "s") this.onStatus(message);
    else this.#onMessage(letter, message);
  }

  #onMessage(letter, message) {
    const payload = message.data;
    if (letter === "o") {
      const details = [message.json()]; // the claim, so that somebody may look at it
      throw new CallError("unimplemented", "no object store here", { details });
    }
    if (this.ended) throw new CallError("internal", "a message after the end");
    const mayMessages = this.said.messages + this.gives.messages;
    const mayBytes = this.said.bytes + this.gives.bytes;
    if (this.inMessages >= mayMessages || this.inBytes >= mayBytes) {
      throw new CallError("internal", "a message beyond the credit");
    }
    this.inMessages += 1;
    this.inBytes += payload.length;
    if (letter === "p") return this.#onPiece(payload);
    if (!this.pieces.length) return this.queue.push({ payload, weighs: payload.length });
    this.queue.push({ payload: this.#joined(message), weighs: payload.length });
  }

  #isError(message) {
    return Boolean(message.headers?.has("Nats-Service-Error"));
  }

  #onPiece(payload) {
    this.pieces.push(payload);
    const joined = this.pieces.reduce((sum, one) => sum + one.length, 0);
    if (joined > JOINED_LIMIT_BYTES) throw new CallError("resource_exhausted", "too large here");
    this.#take(1, payload.length); // else a message larger than the window would never be whole
  }

  #joined(message) {
    const whole = Buffer.concat([...this.pieces, message.data]);
    this.pieces = [];
    const checksum = message.headers?.get("Bus-Checksum") ?? "";
    if (crc32(whole).toString(16).padStart(8, "0") === checksum) return whole;
    throw new CallError("data_loss", "the checksum of a large message differs");
  }

  onControl(name, message) {
    if (name === "n") return this.gone();
    if (!["c", "q", "r"].includes(name)) throw new CallError("internal", `what is ${name}?`);
    this.onStanding(message.string());
    if (name === "q") this.tell("c");
    if (name === "r") this.#sendAgain();
  }

  onStanding(text) {
    if (!/^[0-9]+( [0-9]+){3}$/.test(text)) throw new CallError("internal", "that is no standing");
    const [messages, bytes, received, sent] = text.split(" ").map(Number);
    if (received > this.sent) throw new CallError("internal", "it has what was never sent");
    if (messages > received + LARGEST_WINDOW || bytes > this.outBytes + LARGEST_WINDOW_BYTES * 2) {
      throw new CallError("internal", "too much credit");
    }
    this.mayMessages = Math.max(this.mayMessages, messages);
    this.mayBytes = Math.max(this.mayBytes, bytes);
    this.confirmed = Math.max(this.confirmed, received);
    this.kept = this.kept.filter((frame) => frame.number > this.confirmed);
    this.known = Math.max(this.known, sent);
    if (this.known > this.received) this.askRepair(); // the last ones may be what is lost
  }

  #sendAgain() {
    this.repaired.answered += 1;
    for (const { name, payload, header, reply } of this.kept) {
      this.publish(name, payload, { header, reply });
    }
  }

  /** Ask for what is missing, again and again as long as nothing comes. */
  askRepair() {
    if (this.repair) return;
    const state = { had: this.received, times: 0 };
    const ask = () => {
      if (this.received >= this.known) return this.#repaired();
      if (this.received > state.had) state.times = 0;
      state.had = this.received;
      if (++state.times > ASK_TIMES) {
        this.#repaired();
        return this.broken(new CallError("data_loss", "what was lost did not come again"));
      }
      this.repaired.asked += 1;
      this.tell("r");
    };
    this.repair = setInterval(ask, ASK_AGAIN_MS);
    ask();
  }

  #repaired() {
    clearInterval(this.repair);
    this.repair = null;
  }

  /** It is there after all; what was sent meanwhile is lost, which a standing shows. */
  #back() {
    this.nobody = 0;
    this.ping();
  }

  // --- is the other end there? ------------------------------------------------------------------

  /** The NATS server says that nobody listens where the other end was. */
  onNobody() {
    const now = Date.now();
    this.nobody ||= now;
    const patient = Math.max(this.nobody + this.grace, this.streams.reconnected + LATELY_MS);
    if (now >= patient) return this.gone();
    setTimeout(() => this.ping(), NOBODY_AGAIN_MS);
  }

  ping() {
    this.asked = Date.now();
    this.tell("q");
  }

  #tick() {
    const now = Date.now();
    if (this.streams.lost) {
      if (now - this.streams.lost > WITHOUT_CONNECTION_MS) this.gone();
      return;
    }
    if (!this.other) return;
    if (now - this.heard >= GONE_MS) this.gone();
    else if (now - this.asked >= QUIET_MS) this.ping();
  }

  /** The stream has ended here; whoever waits is told. */
  finish(failure = null) {
    this.failure ??= failure;
    this.over = this.ended = this.halfClosed = true;
    clearInterval(this.clock);
    this.#repaired();
    this.streams.ends.delete(this.address);
    this.bell.ring();
  }

  lingers() {
    return false;
  }
}

/** The caller's end. */
export class CallerEnd extends StreamEnd {
  constructor(streams, address, service, options) {
    super(streams, address, options);
    this.service = service;
    this.status = new Promise((resolve) => (this.settled = resolve)); // null, or the error
    this.accepted = false;
    this.open = new Promise((resolve) => (this.opened = resolve)); // accepted, or over
  }

  /** Give the stream up. */
  cancel(why = new CallError("cancelled", "the caller gave up"), said = { payload: EMPTY }) {
    if (this.over) return;
    if (this.other) this.publish("x", said.payload, { header: said.headers });
    else this.streams.nc.publish(`${this.streams.prefix}cancel.${this.service}`, this.address);
    this.finish(why);
  }

  /** An answer on the address itself: refused, or not by a streaming endpoint. */
  onAnswer(message) {
    if (this.accepted) return;
    if (message.headers?.has("Nats-Service-Error")) this.finish(CallError.from(message));
    else this.finish(new CallError("unimplemented", "what answered does not stream"));
  }

  onNobody() {
    if (this.accepted) super.onNobody();
    else this.finish(new CallError("unavailable", "nobody listens", { notRun: true }));
  }

  onFrame(name, message) {
    if (this.accepted || name === "a") super.onFrame(name, message);
  }

  onControl(name, message) {
    if (name === "x") return this.finish(CallError.from(message));
    if (name !== "a") return super.onControl(name, message);
    if (!safe(message.reply ?? "")) throw new CallError("internal", "not a safe address");
    this.accepted = true;
    this.other = message.reply;
    this.opened();
    this.answers = message.headers?.get("Content-Type") || "application/json";
    this.onStanding(message.string());
  }

  onStatus(message) {
    this.tell("c");
    this.finish(message.headers?.has("Nats-Service-Error") ? CallError.from(message) : null);
  }

  /** What the node had no right to send. */
  broken(error) {
    this.cancel(error, encodeError(error, "node-client"));
  }

  gone() {
    this.finish(new CallError("unavailable", "the node is gone"));
  }

  finish(failure) {
    super.finish(failure);
    clearTimeout(this.deadline);
    this.opened();
    this.settled(this.failure);
  }
}

/** All streams of one connection. */
export class Streams {
  constructor(nc, { namespace = "" } = {}) {
    this.nc = nc;
    this.prefix = namespace ? `${namespace}.` : "";
    this.inbox = `_INBOX.${randomBytes(8).toString("hex")}`;
    this.ends = new Map();
    this.lost = 0; // since when there is no connection
    this.reconnected = 0;
    nc.subscribe(`${this.inbox}.>`, { callback: (error, message) => this.#arrived(error, message) });
    this.#watch();
  }

  address() {
    return `${this.inbox}.${randomBytes(8).toString("hex")}`;
  }

  /**
   * Open a stream.
   *
   * `text` is the request of a server stream, and left out for the other shapes; `timeout` the
   * deadline of the whole stream, in milliseconds; `gives`, `lose` and `miss` as for `StreamEnd`.
   */
  open(service, endpoint, text, { timeout, node, meta = {}, ...options } = {}) {
    const end = new CallerEnd(this, this.address(), service, options);
    if (text !== undefined) end.end().catch(() => {}); // how it ended says its status
    this.ends.set(end.address, end);
    const header = headers();
    header.set("Bus-Stream", `${end.gives.messages} ${end.gives.bytes}`);
    for (const [name, value] of Object.entries(meta)) header.set(name, value);
    if (timeout !== undefined) {
      header.set("Bus-Timeout", String(timeout));
      const late = new CallError("deadline_exceeded", "the stream took too long");
      end.deadline = setTimeout(() => end.cancel(late), timeout);
    }
    const where = node ? `node.${service}.${node}` : `rpc.${service}`;
    const options_ = { reply: end.address, headers: header };
    this.nc.publish(`${this.prefix}${where}.${endpoint}`, text ?? EMPTY, options_);
    return end;
  }

  #arrived(error, message) {
    if (error) throw error;
    const [address, name] = this.#split(message.subject);
    const end = this.ends.get(address);
    if (!end) return this.#unknown(name, message);
    if (name) return end.onFrame(name, message);
    if (message.headers?.code === 503 && !message.data.length) return end.onNobody();
    end.onAnswer(message);
  }

  #split(subject) {
    const words = subject.slice(this.inbox.length + 1).split(".");
    return [`${this.inbox}.${words[0]}`, words[1]];
  }

  /** Whoever asks for a sign of life of a stream that is not here is told so. */
  #unknown(name, message) {
    if (name && message.reply && safe(message.reply)) this.nc.publish(`${message.reply}.n`);
  }

  async #watch() {
    for await (const status of this.nc.status()) {
      if (status.type === "disconnect") this.#away();
      if (status.type === "reconnect") this.#back();
    }
    for (const end of this.ends.values()) end.gone(); // the connection was closed
  }

  #away() {
    this.lost ||= Date.now();
    for (const end of this.ends.values()) if (!end.other) end.gone(); // whether it runs, who knows
  }

  #back() {
    this.lost = 0;
    this.reconnected = Date.now();
    for (const end of this.ends.values()) {
      end.heard = Date.now();
      end.ping();
    }
  }
}
