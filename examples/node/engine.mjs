// node engine.mjs ADDRESS [RUNS]: an engine with a model of its own (the table in table.json, where
// the next token depends on the last one) draws 4 particles by steps. Prints the evidence of each run.
import { readFileSync } from "node:fs";
import { connect, fail } from "./sidecar.mjs";

const [address, runs = "1"] = process.argv.slice(2);
const table = JSON.parse(readFileSync(new URL("table.json", import.meta.url), "utf8"));
const processing = connect("LogitsProcessing", address);

// [rows, row_size] as little-endian float32, which is what every machine that runs Node has.
function tensor(rows) {
  const inline = Buffer.from(new Float32Array(rows.flat()).buffer);
  return { dtype: "DTYPE_FLOAT32", shape: [rows.length, table.first.length], inline };
}

function handshake(seed) {
  return {
    protocol_version: 1,
    tokens: { tokens: table.tokens.map((token) => Buffer.from(token)) },
    eos_ids: table.eos_ids,
    row_size: table.first.length,
    dtype: "DTYPE_FLOAT32",
    answer: "ANSWER_TOKEN",
    strategy: {
      constraint: { regex: table.regex },
      smc: { particles: 4 },
      limits: { max_new_tokens: table.max_new_tokens },
      seed,
    },
  };
}

// One run of particles: logits of the rows go out, and how the rows go on comes back.
async function run(seed) {
  const call = processing.Process();
  const messages = call[Symbol.asyncIterator]();
  const ask = async (message) => {
    call.write(message);
    return (await messages.next()).value;
  };
  await ask({ handshake: handshake(seed) });
  let logits = [table.first];
  for (let number = 0; ; number++) {
    const { result } = await ask({ step: { number, logits: tensor(logits) } });
    if (result.parents.length === 0) {
      break;
    }
    // Row i goes on from row parents[i] with tokens[i]. A model with keys and values would copy
    // those of the parent; this one needs the last token alone.
    logits = result.parents.map((parent, i) => table.after[result.tokens[i]]);
  }
  const { summary } = (await messages.next()).value;
  call.end();
  return summary;
}

try {
  for (let seed = 0; seed < Number(runs); seed++) {
    const { log_evidence, particles } = await run(seed);
    const texts = particles.map(({ text }) => text.toString());
    console.log(JSON.stringify({ seed, log_evidence, texts }));
  }
} catch (error) {
  fail(error);
}
processing.close();
