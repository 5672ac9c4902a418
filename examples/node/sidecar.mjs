// The services of the sidecar, from the protos of this repository.
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const protos = fileURLToPath(new URL("../../proto", import.meta.url));
const files = ["decoding", "logits_processing"].map((name) => `midstream/v1/${name}.proto`);
const definitions = protoLoader.loadSync(files, {
  includeDirs: [protos],
  keepCase: true,
  defaults: true,
  oneofs: true,
  enums: String,
  longs: Number,
});
const { v1 } = grpc.loadPackageDefinition(definitions).midstream;

// A client of one service at "unix:PATH" or "HOST:PORT". Logits are larger than gRPC's 4 MB.
export function connect(service, address) {
  const credentials = grpc.credentials.createInsecure();
  const options = {
    "grpc.max_send_message_length": 64 << 20,
    "grpc.max_receive_message_length": 64 << 20,
  };
  return new v1[service](address, credentials, options);
}

// Every field that the server found wrong is in the details; the message names the first.
export function fail(error) {
  console.error(error.details ?? error);
  process.exit(1);
}
