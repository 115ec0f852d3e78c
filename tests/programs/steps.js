// An event loop with timers, promises and a file written step by step.
const fs = require('fs');
const { createHash } = require('crypto');

async function main() {
  const output = fs.openSync('output.steps', 'w');
  let digest = 'start';
  for (let step = 0; step < 1200; step++) {
    for (let turn = 0; turn < 300; turn++) {
      digest = createHash('sha256').update(digest + turn).digest('hex');
    }
    fs.writeSync(output, `${step} ${digest}\n`);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  fs.closeSync(output);
  console.log('done');
}

main();
