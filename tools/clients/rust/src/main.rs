//! A workload in Rust on the `spiffe` crate and spiffe-rustls. It holds an X509Source and a JwtSource, prints each update as a line of
//! JSON once it has checked it, and does what lines on standard input say (see ../../README.md).

use std::error::Error;
use std::sync::Arc;

use serde_json::{Value, json};
use spiffe::{JwtSource, JwtSvid, WorkloadApiClient, X509Source};
use spiffe_rustls::{authorizer, mtls_client, mtls_server};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

type Outcome = Result<Value, Box<dyn Error + Send + Sync>>;

fn say(line: &Value) {
    println!("{line}");
}

/// Verifies the chain of the default SVID up to its bundle, and gives what the test compares.
fn checked(source: &X509Source, event: &str) -> Outcome {
    let svid = source.svid()?;
    let bundle = source
        .try_bundle_for_trust_domain(svid.spiffe_id().trust_domain())
        .ok_or("no bundle")?;
    let mut path = Vec::new();
    for certificate in svid.cert_chain() {
        path.push(X509Certificate::from_der(certificate.as_bytes())?.1);
    }
    for root in bundle.authorities() {
        let root = X509Certificate::from_der(root.as_bytes())?.1;
        if path.last().is_some_and(|last| last.issuer() == root.subject()) {
            path.push(root);
            break;
        }
    }
    for pair in path.windows(2) {
        pair[0].verify_signature(Some(pair[1].public_key()))?;
    }
    let leaf = path.first().filter(|_| path.len() > svid.cert_chain().len());
    let leaf = leaf.ok_or("no root issued the chain")?;
    let names = leaf.subject_alternative_name()?.ok_or("no names")?;
    let dns: Vec<&str> = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    }).collect();
    Ok(json!({
        "event": event,
        "id": svid.spiffe_id().to_string(),
        "serial": format!("{:x}", leaf.serial),
        "dns": dns,
        "roots": bundle.authorities().len(),
    }))
}

/// Tells each update of the source, also that it holds nothing any more.
async fn watch(source: X509Source) {
    let mut updates = source.updated();
    loop {
        match checked(&source, "svid") {
            Ok(svid) => say(&svid),
            Err(error) if source.svid().is_err() => say(&json!({"event": "lost", "error": error.to_string()})),
            Err(error) => say(&json!({"event": "error", "error": error.to_string()})),
        }
        if let Err(error) = updates.changed().await {
            say(&json!({"event": "error", "error": error.to_string()}));
            return;
        }
    }
}

async fn heard(stream: &mut (impl AsyncReadExt + Unpin)) -> Result<String, Box<dyn Error + Send + Sync>> {
    let mut buffer = [0; 100];
    let n = stream.read(&mut buffer).await?;
    if n == 0 {
        return Err("the peer closed".into());
    }
    Ok(String::from_utf8(buffer[..n].to_vec())?)
}

async fn serve(source: &X509Source, id: &str) -> Outcome {
    let config = mtls_server(source.clone()).authorize(authorizer::exact([id])?).build()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    say(&json!({"event": "listening", "port": listener.local_addr()?.port()}));
    let (tcp, _) = listener.accept().await?;
    let mut stream = TlsAcceptor::from(Arc::new(config)).accept(tcp).await?;
    let said = heard(&mut stream).await?;
    stream.write_all(format!("rust heard {said}").as_bytes()).await?;
    stream.shutdown().await?;
    Ok(json!({"event": "peer", "said": said}))
}

async fn dial(source: &X509Source, address: &str, id: &str) -> Outcome {
    let config = mtls_client(source.clone()).authorize(authorizer::exact([id])?).build()?;
    let name = rustls::pki_types::ServerName::try_from("localhost")?;
    let tcp = TcpStream::connect(address).await?;
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    stream.write_all(b"hello from rust").await?;
    let said = heard(&mut stream).await?;
    Ok(json!({"event": "peer", "said": said}))
}

async fn token(source: &JwtSource, audience: &[&str]) -> Outcome {
    let svid = source.fetch_jwt_svid(audience).await?;
    Ok(json!({"event": "token", "id": svid.spiffe_id().to_string(), "token": svid.token()}))
}

async fn all_tokens(client: &WorkloadApiClient, audience: &str) -> Outcome {
    let svids = client.fetch_all_jwt_svids([audience], None).await?;
    let ids: Vec<String> = svids.iter().map(|svid| svid.spiffe_id().to_string()).collect();
    Ok(json!({"event": "tokens", "ids": ids}))
}

/// Asks the library, with the keys of the bundle, and the agent.
async fn check(source: &JwtSource, client: &WorkloadApiClient, audience: &str, token: &str) -> Outcome {
    let here = JwtSvid::parse_and_validate(token, source, &[audience]).map(|svid| svid.spiffe_id().to_string());
    let there = client.validate_jwt_token(audience, token).await.map(|svid| svid.spiffe_id().to_string());
    match (here, there) {
        (Ok(here), Ok(there)) if here == there => Ok(json!({"event": "checked", "id": here})),
        (Err(here), Err(there)) => Err(format!("{here}; {there}").into()),
        (here, there) => Ok(json!({"event": "error", "error": format!("here {here:?}, the agent {there:?}")})),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let source = X509Source::new().await?;
    let tokens = JwtSource::new().await?;
    let client = WorkloadApiClient::connect_env().await?;
    tokio::spawn(watch(source.clone()));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let words: Vec<&str> = line.split(' ').collect();
        let outcome = match words[..] {
            ["serve", id] => serve(&source, id).await,
            ["dial", address, id] => dial(&source, address, id).await,
            ["token", ref audience @ ..] => token(&tokens, audience).await,
            ["tokens", audience] => all_tokens(&client, audience).await,
            ["check", audience, text] => check(&tokens, &client, audience, text).await,
            ["held"] => Ok(checked(&source, "held").unwrap_or_else(|error| json!({"event": "nothing", "error": error.to_string()}))),
            _ => Err("unknown command".into()),
        };
        say(&outcome.unwrap_or_else(|error| json!({"event": "refused", "error": error.to_string()})));
    }
    Ok(())
}
