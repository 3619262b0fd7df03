// Verifies a token as JavaScript services do: discovery, keys and signature over HTTPS. Prints the claims, or why not.
// node jose.mjs ISSUER AUDIENCE, with JOSE naming the library and the token on standard input.
import { readFileSync } from 'node:fs';
import { webcrypto } from 'node:crypto';

globalThis.crypto ??= webcrypto; // Node 18

const { createRemoteJWKSet, jwtVerify } = await import(process.env.JOSE);
const [issuer, audience] = process.argv.slice(2);
const found = await (await fetch(issuer + '/.well-known/openid-configuration')).json();
const keys = createRemoteJWKSet(new URL(found.jwks_uri));
try {
  const { payload, protectedHeader } = await jwtVerify(readFileSync(0, 'utf8'), keys, {
    issuer: found.issuer, audience, algorithms: found.id_token_signing_alg_values_supported, typ: 'JWT',
  });
  console.log(JSON.stringify({ payload, protectedHeader }));
} catch (error) {
  console.log(error.code);
  process.exitCode = 1;
}
