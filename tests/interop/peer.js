// The other end of the tests here: takes commands as JSON lines, answers each with a JSON line.
//
// Usage: node peer.js nats://127.0.0.1:4222

import { createInterface } from "node:readline";

import { Svcm } from "@nats-io/services";
import { connect } from "@nats-io/transport-node";

import { BusClient, CallError } from "./busclient.js";
import { streamCommands } from "./streampeer.js";

const nc = await connect({
  servers: process.argv[2],
  reconnectTimeWait: 100,
  maxReconnectAttempts: -1,
});
const bus = new BusClient(nc);
const services = new Svcm(nc);
const calls = new Map();

/** Gather what everybody answers to a verb. */
async function gather(verb, name, limit) {
  const client = services.client({ strategy: "stall", maxWait: 2000, maxMessages: limit });
  const found = [];
  for await (const answer of await client[verb](name)) found.push(answer);
  return found;
}

/** A service made with NATS' own framework: `calc` with endpoints on subjects of their own. */
async function serve() {
  const service = await services.add({
    name: "calc",
    version: "1.2.3",
    description: "Arithmetic from another language",
    metadata: { language: "javascript" },
  });
  const math = service.addGroup("math");
  math.addEndpoint("add", {
    metadata: { unit: "none" },
    handler: (error, message) => {
      const { a, b } = message.json();
      message.respond(JSON.stringify({ sum: a + b }));
    },
  });
  math.addEndpoint("divide", (error, message) => {
    const { a, b } = message.json();
    if (b === 0) message.respondError(422, "cannot divide by zero", "plain text, no JSON");
    else message.respond(JSON.stringify({ quotient: a / b }));
  });
  math.addEndpoint("find", (error, message) => message.respondError(404, "no such number"));
  math.addEndpoint("odd", (error, message) => message.respondError(1234, "a number of its own"));
  math.addEndpoint("crash", () => {
    throw new Error("out of paper");
  });
  await nc.flush();
  return service.info();
}

const commands = {
  async call({ id, service, endpoint, text, options }) {
    const call = bus.start(service, endpoint, text, options);
    calls.set(id, call);
    return { reply: await call.result };
  },
  async cancel({ call }) {
    bus.cancel(calls.get(call));
    await nc.flush();
    return {};
  },
  async messages({ call }) {
    return { messages: calls.get(call).messages };
  },
  async list({ verb, name, limit }) {
    return { found: await gather(verb, name, limit) };
  },
  async serve() {
    return { info: await serve() };
  },
  ...streamCommands(nc),
};

function say(id, answer) {
  process.stdout.write(`${JSON.stringify({ id, ...answer })}\n`);
}

function failure(error) {
  if (!(error instanceof CallError)) return { fault: error.stack ?? String(error) };
  return { error: { ...error, message: error.message } };
}

say(0, { ready: true });
for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  commands[command.do](command).then(
    (answer) => say(command.id, answer),
    (error) => say(command.id, failure(error)),
  );
}
await nc.close();
