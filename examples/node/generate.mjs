// node generate.mjs ADDRESS [PROMPT [REGEX]]: weighted texts by a model of the server.
import { connect, fail } from "./sidecar.mjs";

const [address, prompt = "Today is ", regex = "[0-9]{4}-[0-9]{2}-[0-9]{2}"] = process.argv.slice(2);
const decoding = connect("Decoding", address);

const call = decoding.Generate({
  text: prompt,
  strategy: {
    constraint: { regex },
    smc: { particles: 4 },
    limits: { max_new_tokens: 32 },
    seed: 1,
  },
});

try {
  for await (const { event, started, tokens, resampling, summary } of call) {
    if (event === "started") {
      console.log(`model ${started.model}`);
    } else if (event === "tokens") {
      console.log(`step ${tokens.position}: ${tokens.tokens.map((one) => one.text).join(" | ")}`);
    } else if (event === "resampling") {
      console.log(`particles go on from ${resampling.ancestors.join(" ")}`);
    } else if (event === "summary") {
      for (const { text, log_weight, status } of summary.particles) {
        console.log(JSON.stringify({ text: text.toString(), log_weight, status }));
      }
      console.log(JSON.stringify({ log_evidence: summary.log_evidence }));
    }
  }
} catch (error) {
  fail(error);
}
decoding.close();
