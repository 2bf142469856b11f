//! A management API that is not one: whatever it says, `statecast doctor` ends in time, without a panic, and says why.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::doctor::{Report, broker};
use crate::process::Invocation;
use crate::servers::{Topology, fresh_database, unique};
use crate::tls::Authority;

/// Answers every request on every connection with what `answer` makes of its path; its URL.
async fn api(answer: impl Fn(&str) -> Vec<u8> + Clone + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://u:p@{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, answer.clone()));
        }
    });
    url
}

/// The same over TLS, with a certificate of `authority` for so many days.
async fn api_over_tls(authority: &Authority, days: i64) -> String {
    let (cert, key) = authority.issue_for("localhost", &["localhost"], days);
    let chain = CertificateDer::pem_file_iter(cert).unwrap().collect::<Result<Vec<_>, _>>().unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    let _ = serve(stream, |_| ok(r#"{"rabbitmq_version":"9"}"#)).await;
                }
            });
        }
    });
    format!("https://u:p@localhost:{port}")
}

async fn serve<S>(mut stream: S, answer: impl Fn(&str) -> Vec<u8>) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut asked = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        asked.extend_from_slice(&buffer[..read]);
        if asked.ends_with(b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&asked).into_owned();
            stream.write_all(&answer(head.split(' ').nth(1).unwrap_or_default())).await?;
            asked.clear();
        }
    }
}

fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

async fn statecast() -> Invocation {
    let topology = Topology::new(broker().await.url());
    topology.declare().await;
    Invocation::run(&fresh_database().await, &topology, &unique("doctor"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_answers_are_not_examined() {
    let statecast = statecast().await;
    let at = async |url: &str| {
        let begun = Instant::now();
        let report =
            Report::of(&statecast.clone().with("STATECAST_RABBITMQ__MANAGEMENT_URL", url), &[]).await;
        assert!(begun.elapsed() < Duration::from_secs(50), "{:?}", begun.elapsed());
        report
    };
    // Somebody who never ends is waited for, meanwhile all the others.
    let endless = api(|_| b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{".to_vec()).await;
    let (report, ()) = tokio::join!(at(&endless), improper(&at));
    report.must_say("management-unreachable", "warning", &["in time"]);
}

async fn improper(at: &impl AsyncFn(&str) -> Report) {
    // Nobody; somebody who speaks something else; too much of everything.
    let report = at("http://u:p@127.0.0.1:1").await;
    report.must_say("management-unreachable", "warning", &["cannot connect", "127.0.0.1:1"]);
    let report = at(&api(|_| b"220 smtp.example ESMTP\r\n".to_vec()).await).await;
    report.must_say("management-unreachable", "warning", &["properly"]);
    let large = |_: &str| {
        let body = "[".repeat(9 << 20);
        ok(&body)
    };
    at(&api(large).await).await.must_say("management-unreachable", "warning", &["limit"]);
    let heads = |_: &str| format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(1 << 20)).into_bytes();
    at(&api(heads).await).await.must_say("management-unreachable", "warning", &["properly"]);
    let broken = |_: &str| b"HTTP/1.1 500 Oops\r\ncontent-length: 9\r\n\r\nbad\x1b[2Jno".to_vec();
    at(&api(broken).await).await.must_say("management-unreachable", "warning", &["500", "bad"]);
    // JSON, but of another shape: each question stands alone.
    for body in ["null", "7", "[]", "{}", r#"{"type":7}"#, r#"[{"name":null}]"#, "[[[[[[", "\u{0}"] {
        let answer = move |path: &str| {
            ok(if path.ends_with("/overview") { r#"{"rabbitmq_version":"9"}"# } else { body })
        };
        let report = at(&api(answer).await).await;
        report.must_be_ok("management-unreachable");
        report.must_say("rabbitmq-unreachable", "ok", &[]);
    }
    at(&api(|_| ok("{}")).await).await.must_say("management-unreachable", "warning", &["not understood"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_wrong() {
    let date = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(3600));
    let answer = move |_: &str| {
        format!("HTTP/1.1 404 Not Found\r\ndate: {date}\r\ncontent-length: 0\r\n\r\n").into_bytes()
    };
    let url = api(answer).await;
    let report = Report::of(&statecast().await.with("STATECAST_RABBITMQ__MANAGEMENT_URL", &url), &[]).await;
    report.must_say("clock-rabbitmq", "warning", &["ahead of"]);
    report.must_be_ok("clock-postgres");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_its_certificate_is_looked_at() {
    let authority = Authority::new();
    let url = api_over_tls(&authority, 5).await;
    let statecast = statecast().await.with("STATECAST_RABBITMQ__MANAGEMENT_URL", &url);
    let report = Report::of(&statecast, &[]).await;
    let words = ["cannot connect", "UnknownIssuer", "rabbitmq.tls.ca_file"];
    report.must_say("management-unreachable", "warning", &words);
    let trusting = statecast.with("STATECAST_RABBITMQ__TLS__CA_FILE", authority.ca().to_str().unwrap());
    let report = Report::of(&trusting, &[]).await;
    report.must_be_ok("management-unreachable");
    report.must_say("tls-rabbitmq", "error", &["management API at localhost", "in 5 days"]);
}
