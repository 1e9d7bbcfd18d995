// A busmicro service in another language that streams, written from docs/protocol.md.

import { Svcm } from "@nats-io/services";

import { CallError } from "./busclient.js";
import { encodeError, safe, StreamEnd } from "./busstream.js";

/** The node's end. */
class NodeEnd extends StreamEnd {
  constructor(streams, caller, options) {
    super(streams, streams.address(), options);
    this.other = caller;
    this.abort = new AbortController(); // ends the handler
  }

  /** Say that the stream is open; all messages are JSON, so no header says what they are. */
  accept() {
    this.publish("a", this.standing(), { reply: true });
  }

  /** Until it is heard, a caller may not know that it was accepted. */
  ping() {
    if (!this.heardEver) this.accept();
    super.ping();
  }

  /** The handler has ended; the stream lives until the caller has its status. */
  close(error = null) {
    if (this.over) return;
    this.over = this.halfClosed = true;
    const how = error ? encodeError(error, this.streams.origin) : { payload: new Uint8Array(0) };
    this.numbered("s", how.payload, { headers: how.headers, reply: true });
    this.failure = error ?? new CallError("cancelled", "the stream has ended");
    this.abort.abort();
    this.bell.ring();
  }

  lingers() {
    return this.kept.length > 0;
  }

  tell(letter) {
    if (this.lingers() || !this.over) {
      this.publish(letter, this.standing(), { reply: letter !== "c" });
    }
  }

  onStanding(text) {
    super.onStanding(text);
    if (this.over && !this.lingers()) this.finish();
  }

  onControl(name, message) {
    if (name === "x") return this.gone();
    super.onControl(name, message);
  }

  onStatus() {
    throw new CallError("internal", "a caller has no status to send");
  }

  broken(error) {
    this.close(error);
  }

  gone() {
    this.kept = [];
    this.abort.abort();
    this.finish(new CallError("cancelled", "the caller is gone"));
  }
}

/** One service; `endpoints` are `{name, kind, handler}`, `options` those of `StreamEnd`. */
export class StreamingService {
  constructor(nc, streams, { name, endpoints, options = {} }) {
    this.nc = nc;
    this.streams = streams;
    this.name = name;
    this.options = options;
    this.endpoints = new Map(endpoints.map((one) => [one.name, one]));
    this.open = new Map(); // by the caller's address
    this.ends = []; // all there ever were, for the tests
    streams.origin = name;
  }

  async start() {
    const { nc, name } = this;
    const metadata = { "busmicro.started": new Date().toISOString() };
    this.service = await new Svcm(nc).add({ name, version: "1.0.0", metadata });
    this.id = this.service.info().id;
    for (const one of this.endpoints.values()) {
      this.service.addEndpoint(one.name.replace(".", "_"), {
        subject: `rpc.${name}.${one.name}`,
        metadata: one.kind === "unary" ? {} : { "busmicro.kind": one.kind },
        handler: (error, message) => this.#arrived(one, message),
      });
      const own = { callback: (error, message) => this.#arrived(one, message) };
      nc.subscribe(`node.${name}.${this.id}.${one.name}`, own);
    }
    nc.subscribe(`cancel.${name}`, { callback: (error, m) => this.open.get(m.string())?.gone() });
    await nc.flush();
    return this.id;
  }

  #arrived(endpoint, message) {
    if (!message.reply || !safe(message.reply) || this.open.has(message.reply)) return;
    const refuse = (error) => {
      const { payload, headers: header } = encodeError(error, this.name);
      this.nc.publish(message.reply, payload, { headers: header });
    };
    try {
      const window = this.#window(endpoint, message);
      const request = message.data.length ? message.json() : null;
      if (window) this.#accept(endpoint, message, window, request);
      else this.#answer(endpoint, message, request).catch(refuse);
    } catch (error) {
      const wrong = new CallError("invalid_argument", String(error), { notRun: true });
      refuse(error instanceof CallError ? error : wrong);
    }
  }

  /** The caller's window, or null for a call. */
  #window({ name, kind }, message) {
    const text = message.headers?.get("Bus-Stream");
    if (Boolean(text) !== (kind !== "unary")) {
      throw new CallError("unimplemented", `${name} is ${kind}`, { notRun: true });
    }
    if (!text) return null;
    const [messages, bytes] = text.split(" ").map(Number);
    if (messages >= 1 && messages <= 65536 && bytes >= 1 && bytes <= 1 << 28) {
      return { messages, bytes };
    }
    throw new CallError("invalid_argument", `not a window: ${text}`, { notRun: true });
  }

  async #answer(endpoint, message, request) {
    this.nc.publish(message.reply, JSON.stringify(await endpoint.handler(request)));
  }

  #accept(endpoint, message, window, request) {
    const timeout = message.headers.get("Bus-Timeout");
    const late = new CallError("deadline_exceeded", "time ran out", { notRun: timeout === "0" });
    if (timeout === "0") throw late;
    const end = new NodeEnd(this.streams, message.reply, this.options);
    end.mayMessages = window.messages;
    end.mayBytes = window.bytes;
    this.ends.push(end);
    this.open.set(end.other, end);
    this.streams.ends.set(end.address, end);
    end.accept();
    const timer = timeout && setTimeout(() => end.close(late), Number(timeout));
    this.#run(endpoint, end, request).finally(() => {
      clearTimeout(timer);
      this.open.delete(end.other);
    });
  }

  async #run({ kind, handler }, end, request) {
    try {
      const reply = await handler(end, request);
      if (kind === "client_stream") await end.send(JSON.stringify(reply));
      end.close();
    } catch (error) {
      end.close(error);
    }
  }
}
