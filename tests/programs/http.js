// A web server and several clients that keep their connections, all in one process.
const http = require('http');
const crypto = require('crypto');

const CLIENTS = 6;
const ROUNDS = 150;

const server = http.createServer((request, response) => {
  const parts = [];
  request.on('data', (part) => parts.push(part));
  request.on('end', () => {
    response.end(crypto.createHash('md5').update(Buffer.concat(parts)).digest('hex'));
  });
});

function ask(agent, port, body) {
  return new Promise((resolve, reject) => {
    const options = { agent, port, host: '127.0.0.1', method: 'POST' };
    const request = http.request(options, (response) => {
      let text = '';
      response.on('data', (part) => { text += part; });
      response.on('end', () => resolve(text));
    });
    request.on('error', reject);
    request.end(body);
  });
}

server.listen(0, '127.0.0.1', async () => {
  const { port } = server.address();
  const agents = [];
  for (let i = 0; i < CLIENTS; i += 1) {
    agents.push(new http.Agent({ keepAlive: true, maxSockets: 1 }));
  }
  for (let round = 0; round < ROUNDS; round += 1) {
    const bodies = agents.map((_, i) => Buffer.alloc(1000 * (round + i), `${round}-${i};`));
    const answers = await Promise.all(agents.map((agent, i) => ask(agent, port, bodies[i])));
    console.log(round, answers.map((answer) => answer.slice(0, 6)).join(' '));
    await new Promise((resolve) => { setTimeout(resolve, 10); });
  }
  agents.forEach((agent) => agent.destroy());
  server.close();
});
