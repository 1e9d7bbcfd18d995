// A busmicro caller in another language, written from docs/protocol.md and nothing else.

import { createInbox, headers } from "@nats-io/nats-core";

const LOOKUP_MS = 50;

/** The failure of a call: what docs/protocol.md, Errors, says an answer holds. */
export class CallError extends Error {
  constructor(code, message, rest = {}) {
    super(message);
    this.code = code;
    this.status = rest.status ?? null; // the HTTP number
    this.details = rest.details ?? [];
    this.origin = rest.origin ?? "";
    this.header = rest.header ?? null; // the one-line text of the header, decoded
    this.retryAfter = rest.retryAfter ?? null; // milliseconds
    this.notRun = rest.notRun ?? false;
  }

  /** Read an error reply. */
  static from(message) {
    const header = message.headers;
    const body = message.json();
    const after = header.get("Bus-Retry-After");
    return new CallError(header.get("Bus-Status"), body.message, {
      status: Number(header.get("Nats-Service-Error-Code")),
      details: body.details,
      origin: body.origin,
      header: decodeURIComponent(header.get("Nats-Service-Error")),
      retryAfter: after ? Number(after) : null,
      notRun: header.get("Bus-Not-Run") === "1",
    });
  }
}

/** One call on its way. */
class Pending {
  constructor(reply) {
    this.reply = reply;
    this.messages = 0; // so far; there should never be a second one
    this.promise = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
  }
}

/** Calls busmicro services. */
export class BusClient {
  constructor(nc, { namespace = "" } = {}) {
    this.nc = nc;
    this.prefix = namespace ? `${namespace}.` : "";
    this.inbox = createInbox();
    this.pending = new Map(); // never cleared: the tests count what comes too late
    this.last = 0;
    nc.subscribe(`${this.inbox}.*`, { callback: (error, message) => this.#arrived(error, message) });
  }

  /**
   * Start a call.
   *
   * `text` is the payload as it is; `timeout` is what the service is told (milliseconds),
   * `patience` how long this end waits, `node` the one node to ask.
   */
  start(service, endpoint, text, { timeout = 5000, patience = timeout, node, meta = {} } = {}) {
    const call = new Pending(`${this.inbox}.${++this.last}`);
    call.service = service;
    this.pending.set(call.reply, call);
    const header = headers();
    header.set("Bus-Timeout", String(timeout));
    for (const [name, value] of Object.entries(meta)) header.set(name, value);
    const subject = node
      ? `${this.prefix}node.${service}.${node}.${endpoint}`
      : `${this.prefix}rpc.${service}.${endpoint}`;
    this.nc.publish(subject, text, { reply: call.reply, headers: header });
    const late = new CallError("deadline_exceeded", "no reply in time");
    const timer = setTimeout(() => this.cancel(call, late), patience);
    call.result = call.promise
      .then((message) => this.#read(message, service, endpoint))
      .finally(() => clearTimeout(timer));
    return call;
  }

  /** Wait for a call no more, and say so to the node that works on it. */
  cancel(call, why = new CallError("cancelled", "the caller gave up")) {
    this.nc.publish(`${this.prefix}cancel.${call.service}`, call.reply);
    call.reject(why);
  }

  #arrived(error, message) {
    if (error) throw error;
    const call = this.pending.get(message.subject);
    if (!call) return;
    call.messages += 1;
    call.resolve(message);
  }

  async #read(message, service, endpoint) {
    if (message.data.length === 0 && message.headers?.code === 503) {
      throw await this.#nobody(service, endpoint);
    }
    if (message.headers?.has("Nats-Service-Error")) throw CallError.from(message);
    const type = message.headers?.get("Content-Type") || "application/json";
    if (type !== "application/json") return { type, bytes: message.data.length };
    return { type, value: message.data.length ? message.json() : null };
  }

  /** Nobody listens: does the service live without this endpoint, or not at all? */
  async #nobody(service, endpoint) {
    try {
      const options = { timeout: LOOKUP_MS };
      const info = (await this.nc.request(`$SRV.INFO.${service}`, "", options)).json();
      const names = info.endpoints.map((e) => e.name);
      if (!names.includes(endpoint.replace(".", "_"))) {
        return new CallError("unimplemented", `${service} has ${names.join(", ")}`, { notRun: true });
      }
    } catch {
      // nobody answers there either
    }
    return new CallError("unavailable", `no node serves ${service}`, { notRun: true });
  }
}
