// A workload for `workload.kind = "gate"` that acts only while its device owns: node gate.mjs http://127.0.0.1:9600
//
// It runs on every device. What it is told holds until a moment on the boot clock, which is looked at before each act; nothing needs to
// arrive for it to stop. Replace act(). An act that takes long must end before that moment, or be one that the receiver
// refuses when it has seen a higher epoch.

import { readFileSync } from "node:fs";

const sidecar = (process.argv[2] ?? "http://127.0.0.1:9600").replace(/\/+$/, "");
let word = { active: false, epoch: 0, until_boottime_ns: 0 };

// CLOCK_BOOTTIME in nanoseconds. /proc/uptime shows hundredths, rounded down, so one is added: never too early a time.
function now() {
  return (Number(readFileSync("/proc/uptime", "utf8").split(" ")[0]) + 0.01) * 1e9;
}

async function listen() {
  for (;;) {
    try {
      const response = await fetch(`${sidecar}/v1/ownership/events`);
      if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
      let text = "";
      for await (const part of response.body.pipeThrough(new TextDecoderStream())) {
        const events = (text + part).split("\n\n");
        text = events.pop();
        for (const event of events) {
          const data = event.split("\n").find((line) => line.startsWith("data: "));
          if (data) word = JSON.parse(data.slice(6));
        }
      }
    } catch (why) {
      // What was told last goes on counting; it ends by itself.
      console.error(`gate: ${why.message}`);
    }
    await new Promise((go) => setTimeout(go, 200));
  }
}

// What only one device of the site may do. Send the epoch along: the receiver refuses lower ones.
function act(epoch) {
  console.log(`${Math.round(now())} ${epoch}`);
}

listen();
setInterval(() => {
  if (word.active && now() < word.until_boottime_ns) act(word.epoch);
}, 20);
