"""A workload in Python. It holds an X509Source, prints each update as a line of JSON once it has checked it, and does what lines on
standard input say: `dial HOST:PORT ID` or `serve ID`, both mutual TLS with a peer of that SPIFFE ID only; `token AUDIENCE...` fetches a
JWT-SVID, `check AUDIENCE TOKEN` verifies one with the bundles that it holds and has the Workload API verify it."""

import json
import sys
import threading
import warnings

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL
from spiffe import JwtSource, JwtSvid, WorkloadApiClient, X509Source
from spiffetls import ListenOptions, ServerTlsMode, dial, listen

warnings.simplefilter("ignore")
printing = threading.Lock()


def say(event, **facts):
    with printing:
        print(json.dumps({"event": event, **facts}), flush=True)


def checked(context):
    """Verifies chain, key and bundle by hand, and gives what the test compares."""
    svid = context.default_svid
    bundle = context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    chain = list(svid.cert_chain)
    for cert, issuer in zip(chain, chain[1:]):
        cert.verify_directly_issued_by(issuer)
    roots = [r for r in bundle.x509_authorities if r.subject == chain[-1].issuer]
    chain[-1].verify_directly_issued_by(roots[0])

    def encoded(key):
        return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    if encoded(svid.private_key.public_key()) != encoded(svid.leaf.public_key()):
        raise ValueError("the key is not the certificate's")
    names = svid.leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {
        "id": str(svid.spiffe_id),
        "serial": format(svid.leaf.serial_number, "x"),
        "dns": names.get_values_for_type(x509.DNSName),
        "roots": len(bundle.x509_authorities),
    }


def only(spiffe_id):
    def authorize(cert):
        names = cert.to_cryptography().extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return names.get_values_for_type(x509.UniformResourceIdentifier) == [spiffe_id]

    return authorize


def serve(source, spiffe_id):
    listener = listen("127.0.0.1:0", source, ListenOptions(tls_mode=ServerTlsMode.MTLS, authorize_fn=only(spiffe_id)))
    say("listening", port=listener.getsockname()[1])
    conn, _ = listener.accept()
    conn.do_handshake()
    said = conn.recv(100).decode()
    conn.sendall(b"python heard " + said.encode())
    conn.shutdown()
    say("peer", said=said)


def call(source, address, spiffe_id):
    conn = dial(address, source, authorize_fn=only(spiffe_id))
    conn.sendall(b"hello from python")
    say("peer", said=conn.recv(100).decode())
    conn.close()


def token(tokens, audience):
    svid = tokens.fetch_svid(audience=set(audience))
    say("token", id=str(svid.spiffe_id), token=svid.token)


def check(tokens, audience, text):
    claimed = JwtSvid.parse_insecure(text, {audience}).spiffe_id
    bundle = tokens.get_bundle_for_trust_domain(claimed.trust_domain)
    own = JwtSvid.parse_and_validate(text, bundle, {audience}).spiffe_id
    with WorkloadApiClient() as api:
        theirs = api.validate_jwt_svid(text, audience).spiffe_id
    if own != theirs:
        raise ValueError(f"{own} is not {theirs}")
    say("checked", id=str(own))


def main():
    source = X509Source(timeout_in_seconds=60)

    def update():
        try:
            say("svid", **checked(source.get_x509_context()))
        except Exception as e:  # the test reads what it was
            say("error", error=repr(e))

    tokens = JwtSource(timeout_in_seconds=60)
    source.subscribe_for_updates(update)
    update()
    for line in sys.stdin:
        words = line.split()
        try:
            if words[0] == "dial":
                call(source, words[1], words[2])
            elif words[0] == "serve":
                serve(source, words[1])
            elif words[0] == "token":
                token(tokens, words[1:])
            elif words[0] == "check":
                check(tokens, words[1], words[2])
        except (SSL.Error, Exception) as e:
            say("refused", error=repr(e))
    tokens.close()
    source.close()


main()
