// What peer.js can be told about streams: to open some, and to be a service that has some.

import { once } from "node:events";

import { CallError } from "./busclient.js";
import { Streams } from "./busstream.js";
import { StreamingService } from "./busserve.js";

const json = (value) => JSON.stringify(value);
const parsed = (bytes) => JSON.parse(Buffer.from(bytes).toString());

/** What the service `relay` does, as the class `Relay` of relay.py does in Python. */
function endpoints(figures) {
  const forever = async (end) => {
    figures.began += 1;
    await once(end.abort.signal, "abort");
    figures.ended += 1;
    throw end.failure;
  };
  return [
    { name: "Relay.hello", kind: "unary", handler: async ({ name }) => ({ greeting: `Hello ${name}` }) },
    { name: "Relay.count", kind: "server_stream", handler: count },
    { name: "Relay.total", kind: "client_stream", handler: total },
    { name: "Relay.echo", kind: "both", handler: echo },
    { name: "Relay.wait", kind: "server_stream", handler: forever },
    { name: "Relay.first", kind: "client_stream", handler: first },
  ];
}

/** Count to `to`, or to ten and then fail. */
async function count(end, { to, fail = false }) {
  for (let n = 0; n < to; n += 1) {
    if (fail && n === 10) {
      throw new CallError("not_found", "no Zoë, 100% sure", { details: [{ after: n }] });
    }
    await end.send(json({ n }));
  }
}

async function total(end) {
  let [sum, messages] = [0, 0];
  for await (const one of end) {
    sum += parsed(one).n;
    messages += 1;
  }
  return { sum, messages };
}

async function echo(end) {
  for await (const one of end) await end.send(one);
}

/** Take one message and end well, whatever else was to come. */
async function first(end) {
  return parsed(await end.next());
}

function told(error) {
  if (!(error instanceof CallError)) throw error;
  return { ...error, message: error.message };
}

/** The commands, for one connection. */
export function streamCommands(nc) {
  const streams = new Streams(nc);
  const opened = new Map();
  const figures = { began: 0, ended: 0 };
  let service = null;
  return {
    async open({ id, service, endpoint, text, options }) {
      const end = streams.open(service, endpoint, text, options);
      opened.set(id, end);
      await end.open; // or refused
      return {};
    },
    /** Send texts as they are. */
    async send({ stream, texts }) {
      for (const text of texts) await opened.get(stream).send(text);
      return {};
    },
    /** Send `{"n": 0}`, `{"n": 1}`, … */
    async number({ stream, to }) {
      const end = opened.get(stream);
      for (let n = 0; n < to; n += 1) await end.send(json({ n }));
      await end.end();
      return {};
    },
    /** Send one message of so many bytes. */
    async large({ stream, bytes }) {
      await opened.get(stream).send(json({ text: "ä".repeat(bytes / 2) }));
      return {};
    },
    async end({ stream }) {
      await opened.get(stream).end();
      return {};
    },
    /** Take messages: at most so many, or all to the end, and how that was. */
    async take({ stream, limit = Infinity }) {
      const messages = [];
      try {
        while (messages.length < limit) {
          const one = await opened.get(stream).next();
          if (one === null) return { messages, over: true };
          messages.push(parsed(one));
        }
      } catch (error) {
        return { messages, failed: told(error) };
      }
      return { messages, over: false };
    },
    /** Take numbered messages to the end, or one large one; say only whether they are right. */
    async check({ stream }) {
      let [messages, right] = [0, true];
      for await (const one of opened.get(stream)) {
        const { n, text } = parsed(one);
        right &&= text ? /^ä+$/.test(text) : n === messages;
        messages += 1;
      }
      return { messages, right };
    },
    async leave({ stream }) {
      opened.get(stream).cancel();
      await nc.flush();
      return {};
    },
    /** How it ended, null if well, and how often frames were asked for again. */
    async status({ stream }) {
      const end = opened.get(stream);
      const failed = await end.status;
      return { failed: failed && told(failed), repaired: end.repaired };
    },
    /** Send a frame that the protocol does not have, or whatever else is wrong. */
    async frame({ stream, name, text = "" }) {
      const end = opened.get(stream);
      end.publish(name, Buffer.from(text));
      return {};
    },
    async relay({ options }) {
      const about = { name: "relay", endpoints: endpoints(figures), options };
      service = new StreamingService(nc, streams, about);
      return { node: await service.start() };
    },
    async figures() {
      return { ...figures, repaired: service?.ends.map((end) => end.repaired) ?? [] };
    },
  };
}
