// One session of onnxruntime-web that answers questions from the server that handed out this page.
// A message is a little-endian uint32 (length of the JSON), the JSON, and the tensors' bytes, each
// starting at a multiple of 8 bytes after the JSON's end (itself padded).

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array,
  int16: Int16Array, int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array,
  bool: Uint8Array, float16: globalThis.Float16Array ?? Uint16Array,
};
const up8 = (n) => (n + 7) & ~7;

function decode(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  let at = up8(4 + length);
  head.tensors = head.tensors.map(({ name, dtype, shape }) => {
    const count = shape.reduce((a, b) => a * b, 1);
    const data = new ARRAYS[dtype](buffer, at, count);
    at = up8(at + data.byteLength);
    return { name, dtype, shape, data };
  });
  return head;
}

function encode(head, tensors = []) {
  const described = tensors.map(({ name, dtype, shape }) => ({ name, dtype, shape }));
  const json = new TextEncoder().encode(JSON.stringify({ ...head, tensors: described }));
  const start = up8(4 + json.length);
  const whole = new Uint8Array(tensors.reduce((n, t) => n + up8(t.data.byteLength), start));
  new DataView(whole.buffer).setUint32(0, json.length, true);
  whole.set(json, 4);
  let at = start;
  for (const { data } of tensors) {
    whole.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), at);
    at += up8(data.byteLength);
  }
  return whole;
}

const say = (head, tensors) => fetch('answer', { method: 'POST', body: encode(head, tensors) });
const failed = (error) => say({ kind: 'error', text: String(error?.message ?? error) });

// What the runtime logs about the placement of nodes, if it was asked to log it.
const logged = [];
function listen() {
  for (const level of ['log', 'info', 'warn', 'error', 'debug']) {
    console[level] = (...parts) => {
      const line = parts.join(' ');
      if (/placed on|number of nodes/i.test(line)) logged.push(line);
    };
  }
}

async function open(settings) {
  if (settings.trace) listen();
  const ort = await import(settings.runtime);
  ort.env.wasm.numThreads = settings.threads;
  ort.env.wasm.wasmPaths = { wasm: new URL(settings.wasm, document.baseURI).href };
  const model = new Uint8Array(await (await fetch('model')).arrayBuffer());
  const session = await ort.InferenceSession.create(model, {
    executionProviders: ['wasm'],
    graphOptimizationLevel: 'all',
    ...(settings.trace ? { logSeverityLevel: 0, logVerbosityLevel: 0 } : {}),
  });
  return { ort, session };
}

async function answer({ ort, session }, question) {
  const feeds = {};
  for (const { name, dtype, shape, data } of question.tensors) {
    feeds[name] = new ort.Tensor(dtype, data, shape);
  }
  const start = performance.now();
  const outputs = await session.run(feeds);
  const ms = performance.now() - start;
  const tensors = session.outputNames.map((name) => {
    const { type, dims, data } = outputs[name];
    if (!(type in ARRAYS)) throw new Error(`output '${name}' is of type ${type}`);
    return { name, dtype: type, shape: [...dims], data };
  });
  await say({ kind: 'outputs', ms }, tensors);
}

async function main() {
  const settings = await (await fetch('settings')).json();
  const opened = await open(settings);
  await say({
    kind: 'opened',
    isolated: globalThis.crossOriginIsolated === true,
    threads: opened.ort.env.wasm.numThreads,
    runtime: opened.ort.env.versions.web,
    browser: navigator.userAgent,
    placed: logged,
  });
  for (;;) {
    const next = await fetch('next');
    if (next.status === 204) continue;
    if (!next.ok) throw new Error(`the server answered ${next.status}`);
    const question = decode(await next.arrayBuffer());
    await answer(opened, question).catch(failed);
  }
}

addEventListener('error', (event) => failed(event.message));
main().catch(failed);
