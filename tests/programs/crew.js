// Worker threads that share memory and pass messages, and child processes that talk to their parent.
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');
const { fork, spawn } = require('child_process');
const { createHash } = require('crypto');
const fs = require('fs');

const STEPS = 250;
const hash = (text) => createHash('sha256').update(text).digest('hex').slice(0, 16);

async function work() {
  const counts = new Int32Array(workerData.shared);
  parentPort.on('message', (question) => {
    let answer = question;
    for (let turn = 0; turn < 200; turn++) answer = hash(answer + turn);
    Atomics.add(counts, workerData.number, 1);
    parentPort.postMessage(answer);
  });
}

async function main() {
  const shared = new SharedArrayBuffer(8);
  const workers = [0, 1].map((number) => new Worker(__filename, { workerData: { shared, number } }));
  const child = fork(__filename, ['child']);
  const cat = spawn('cat');
  const ask = (who, send, text) => new Promise((resolve) => {
    who.once('message', resolve);
    send(text);
  });
  const output = fs.openSync('output.crew', 'w');
  for (let step = 0; step < STEPS; step++) {
    const answers = await Promise.all([
      ...workers.map((worker, number) => ask(worker, (text) => worker.postMessage(text), `${step} ${number}`)),
      ask(child, (text) => child.send(text), `${step}`),
      new Promise((resolve) => {
        cat.stdout.once('data', (data) => resolve(data.toString().trim()));
        cat.stdin.write(`echo ${step}\n`);
      }),
    ]);
    fs.writeSync(output, `${step} ${answers.join(' ')} ${new Int32Array(shared).join(' ')}\n`);
    await new Promise((resolve) => setTimeout(resolve, 3));
  }
  fs.closeSync(output);
  cat.stdin.end();
  child.disconnect();
  await Promise.all(workers.map((worker) => worker.terminate()));
  console.log('done');
}

if (process.argv[2] === 'child') {
  process.on('message', (text) => process.send(hash(text + 'child')));
} else if (isMainThread) {
  main();
} else {
  work();
}
