"""A workload in Python on py-spiffe. It holds an X509Source and a JwtSource, prints each update as a line of JSON once it has checked
it, and does what lines on standard input say (see ../README.md)."""

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


def outcome(ask):
    try:
        return str(ask().spiffe_id), ""
    except Exception as e:  # which one does not matter: the token is no good
        return "", repr(e)


def check(source, audience, token):
    """Asks the library, with the keys of the bundle, and the agent."""

    def here():
        unverified = JwtSvid.parse_insecure(token, {audience})
        bundle = source.get_bundle_for_trust_domain(unverified.spiffe_id.trust_domain)
        return JwtSvid.parse_and_validate(token, bundle, {audience})

    def there():
        with WorkloadApiClient() as api:
            return api.validate_jwt_svid(token, audience, timeout=20)

    (mine, why), (agents, why_not) = outcome(here), outcome(there)
    if mine != agents:
        say("error", error=f"here {mine or why}, the agent {agents or why_not}")
    elif mine:
        say("checked", id=mine)
    else:
        say("refused", error=f"{why}; {why_not}")


def main():
    source = X509Source(timeout_in_seconds=60)
    tokens = JwtSource(timeout_in_seconds=60)

    def update():
        try:
            say("svid", **checked(source.get_x509_context()))
        except Exception as e:  # the test reads what it was
            say("error", error=repr(e))

    def held():
        try:
            say("held", **checked(source.get_x509_context()))
        except Exception as e:
            say("nothing", error=repr(e))

    def token(*audience):
        svid = tokens.fetch_svid(set(audience))
        say("token", id=str(svid.spiffe_id), token=svid.token)

    def all_tokens(audience):
        say("tokens", ids=[str(svid.spiffe_id) for svid in tokens.fetch_svids({audience})])

    commands = {
        "dial": lambda address, spiffe_id: call(source, address, spiffe_id),
        "serve": lambda spiffe_id: serve(source, spiffe_id),
        "token": token,
        "tokens": all_tokens,
        "check": lambda audience, text: check(tokens, audience, text),
        "held": held,
    }
    source.subscribe_for_updates(update)
    update()
    for line in sys.stdin:
        name, *words = line.split()
        try:
            commands[name](*words)
        except (SSL.Error, Exception) as e:
            say("refused", error=repr(e))
    tokens.close()
    source.close()


main()
