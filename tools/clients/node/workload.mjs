// A workload in JavaScript on grpc-js: what one writes where there is no SPIFFE library. It follows the Workload API with its own
// retry after 0.2 s, prints each update as a line of JSON once it has checked it, and does what lines on standard input say (see
// ../README.md). LIBRARIES is a folder with node_modules, PROTO the Workload API's workload.proto.
import { createRequire } from 'node:module';
import { createPrivateKey, webcrypto, X509Certificate } from 'node:crypto';
import { createInterface } from 'node:readline';
import tls from 'node:tls';

globalThis.crypto ??= webcrypto; // Node 18

const require = createRequire(process.env.LIBRARIES + '/');
const grpc = require('@grpc/grpc-js');
const { createLocalJWKSet, decodeJwt, jwtVerify } = await import(require.resolve('jose'));
const { SpiffeWorkloadAPI } = grpc.loadPackageDefinition(require('@grpc/proto-loader').loadSync(process.env.PROTO, { keepCase: true }));
const client = new SpiffeWorkloadAPI(process.env.SPIFFE_ENDPOINT_SOCKET, grpc.credentials.createInsecure(), {
  'grpc.initial_reconnect_backoff_ms': 100, 'grpc.min_reconnect_backoff_ms': 100, 'grpc.max_reconnect_backoff_ms': 200,
});
const header = new grpc.Metadata();
header.set('workload.spiffe.io', 'true');

const say = (event, facts) => console.log(JSON.stringify({ event, ...facts }));
let held; // the newest SVID as TLS takes it

// certificates splits DER after DER: a sequence of at least 256 and less than 64 Ki bytes each.
function certificates(der) {
  const all = [];
  for (let at = 0; at < der.length;) {
    if (der.readUInt16BE(at) !== 0x3082) throw new Error('no certificate at byte ' + at);
    const end = at + 4 + der.readUInt16BE(at + 2);
    all.push(new X509Certificate(der.subarray(at, end)));
    at = end;
  }
  return all;
}

const uris = (names) => names.split(', ').filter((n) => n.startsWith('URI:')).map((n) => n.slice(4));

function checked({ svids }) {
  const [svid] = svids;
  const chain = certificates(svid.x509_svid), roots = certificates(svid.bundle);
  const key = createPrivateKey({ key: svid.x509_svid_key, format: 'der', type: 'pkcs8' });
  const [leaf] = chain;
  [...chain, roots.find((r) => r.subject === chain.at(-1).issuer)].reduce((cert, issuer) => {
    if (!issuer?.ca || !cert.checkIssued(issuer) || !cert.verify(issuer.publicKey)) throw new Error('not issued by ' + issuer?.subject);
    return issuer;
  });
  if (leaf.ca || !leaf.checkPrivateKey(key)) throw new Error('a CA, or the key is not the certificate\'s');
  const names = uris(leaf.subjectAltName);
  if (names.length !== 1 || names[0] !== svid.spiffe_id) throw new Error(svid.spiffe_id + ' is not ' + names);
  const dns = leaf.subjectAltName.split(', ').filter((n) => n.startsWith('DNS:')).map((n) => n.slice(4));
  held = {
    facts: { id: svid.spiffe_id, serial: leaf.serialNumber.toLowerCase().replace(/^0+/, ''), dns, roots: roots.length },
    tls: {
      cert: chain.map(String).join(''), key: key.export({ format: 'pem', type: 'pkcs8' }), ca: roots.map(String), minVersion: 'TLSv1.2',
    },
  };
  return held.facts;
}

function follow() {
  const stream = client.FetchX509SVID({}, header);
  stream.on('data', (message) => {
    try {
      say('svid', checked(message));
    } catch (error) {
      say('error', { error: String(error) });
    }
  });
  stream.on('end', () => {}); // grpc-js tells a good end as OK with 'status'
  stream.on('error', () => {});
  stream.on('status', ({ code, details }) => {
    say('ended', { code: grpc.status[code], error: details });
    setTimeout(follow, 200);
  });
}

const peerIs = (socket, id) => {
  const names = uris(socket.getPeerCertificate().subjectaltname ?? '');
  if (names.length !== 1 || names[0] !== id) throw new Error('the peer is ' + names);
};

function serve(id) {
  let done = false; // with the first that came
  const end = (event, facts) => {
    if (!done) say(event, facts);
    done = true;
    server.close();
  };
  const refused = (error) => end('refused', { error: String(error) });
  const server = tls.createServer({ ...held.tls, requestCert: true, rejectUnauthorized: true }, (socket) => {
    socket.on('error', refused);
    socket.on('close', () => refused('the peer closed'));
    try {
      peerIs(socket, id);
    } catch (error) {
      refused(error);
      socket.destroy();
      return;
    }
    socket.once('data', (said) => {
      socket.end('node heard ' + said);
      end('peer', { said: String(said) });
    });
  });
  server.on('tlsClientError', refused);
  server.listen(0, '127.0.0.1', () => say('listening', { port: server.address().port }));
}

function dial(address, id) {
  const [host, port] = address.split(':');
  let done = false;
  const end = (event, facts) => { if (!done) say(event, facts); done = true; };
  const socket = tls.connect({ ...held.tls, host, port, checkServerIdentity: () => undefined }, () => {
    try {
      peerIs(socket, id);
      socket.write('hello from node');
    } catch (error) {
      end('refused', { error: String(error) });
      socket.destroy();
    }
  });
  socket.once('data', (said) => { end('peer', { said: String(said) }); socket.end(); });
  socket.on('error', (error) => end('refused', { error: String(error) }));
  socket.on('close', () => end('refused', { error: 'closed' }));
}

const call = (method, request) => new Promise((resolve, reject) => {
  client[method](request, header, { deadline: Date.now() + 20_000 }, (error, answer) => (error ? reject(error) : resolve(answer)));
});

async function keysOf(domain) {
  const stream = client.FetchJWTBundles({}, header);
  try {
    return await new Promise((resolve, reject) => {
      stream.on('error', reject);
      stream.on('data', ({ bundles }) => resolve(createLocalJWKSet(JSON.parse(bundles[domain]))));
    });
  } finally {
    stream.on('error', () => {});
    stream.cancel();
  }
}

async function token(...audience) {
  const { svids: [svid] } = await call('FetchJWTSVID', { audience });
  say('token', { id: svid.spiffe_id, token: svid.svid });
}

async function tokens(audience) {
  const { svids } = await call('FetchJWTSVID', { audience: [audience] });
  say('tokens', { ids: svids.map((s) => s.spiffe_id) });
}

// check asks jose, with the keys of the bundle, and the agent.
async function check(audience, token) {
  const [here, there] = await Promise.allSettled([
    (async () => {
      const domain = String(decodeJwt(token).sub).split('/').slice(0, 3).join('/');
      return (await jwtVerify(token, await keysOf(domain), { audience, typ: 'JWT' })).payload.sub;
    })(),
    call('ValidateJWTSVID', { audience, svid: token }).then((answer) => answer.spiffe_id),
  ]);
  if (here.status === 'rejected' && there.status === 'rejected') {
    say('refused', { error: `${here.reason}; ${there.reason}` });
  } else if (here.value === there.value) {
    say('checked', { id: here.value });
  } else {
    say('error', { error: `here ${here.value ?? here.reason}, the agent ${there.value ?? there.reason}` });
  }
}

follow();
const commands = {
  serve, dial, token, tokens, check, held: () => (held ? say('held', held.facts) : say('nothing', {})),
};
for await (const line of createInterface(process.stdin)) {
  const [name, ...words] = line.split(' ');
  try {
    await commands[name](...words);
  } catch (error) {
    say('refused', { error: String(error) });
  }
}
process.exit();
