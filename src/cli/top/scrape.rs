//! Asks one relay: `GET /metrics` and `GET /ready`, each on a connection of its own, as the relay wants it.
//!
//! What answers may be anything: there is a deadline for the whole of a request and a bound on its size, and texts
//! are cleaned before anybody shows them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

use super::exposition::Exposition;
use super::figures::Figures;
use crate::cli::plain::harmless;

/// For one request, from connecting to the last byte.
const DEADLINE: Duration = Duration::from_secs(2);
/// Bytes of an answer, at most; a relay's metrics have about 20 kB.
const BODY_MAX: usize = 1 << 20;
/// Bytes of an answer's head, at most.
const HEAD_MAX: usize = 16 << 10;
/// Reasons kept, at most.
const REASONS_MAX: usize = 32;
/// Characters of a text, at most.
const TEXT_MAX: usize = 300;

/// A relay's address: `http://HOST:PORT`, with or without `/metrics`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    host: String,
    port: u16,
}

/// What a relay says about itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Look {
    pub(super) figures: Figures,
    pub(super) ready: Ready,
}

/// The JSON of `/ready`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Ready {
    pub(super) ready: bool,
    pub(super) role: String,
    #[serde(default)]
    pub(super) reasons: Vec<Reason>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Reason {
    pub(super) component: String,
    #[serde(default)]
    pub(super) severity: String,
    pub(super) text: String,
}

/// Why a relay could not be asked. In a line; where is said by whoever shows it.
#[derive(Debug, thiserror::Error)]
pub(super) enum ScrapeError {
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("no answer within {} s", DEADLINE.as_secs())]
    Silent,
    #[error("{path}: what answers is no HTTP server: {source}")]
    Http { path: &'static str, source: hyper::Error },
    #[error("{path}: the answer is cut off, or larger than {BODY_MAX} bytes")]
    Body { path: &'static str },
    #[error("{path}: the answer is {status}: is this a relay's http.listen?")]
    Status { path: &'static str, status: StatusCode },
    #[error("/metrics: there are no metrics of Statecast: is this a relay's http.listen?")]
    NotStatecast,
    #[error("/ready: the answer is not a relay's")]
    Ready,
    #[error("this relay is of pipeline {0}")]
    OtherPipeline(String),
}

impl Target {
    /// Where a relay with this `http.listen` is found on the same machine; `None` for port 0, which is another each time.
    pub(super) fn local(listen: SocketAddr) -> Option<Target> {
        let ip = match listen.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        (listen.port() != 0).then(|| Target { host: ip.to_string(), port: listen.port() })
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let wrong = |why: &str| format!("{why}; a relay's address is e.g. http://127.0.0.1:9465");
        let uri: Uri = text.parse().map_err(|_| wrong("this is no URL"))?;
        if uri.scheme_str() != Some("http") {
            return Err(wrong("it must begin with http:// (a relay serves no TLS)"));
        }
        if !matches!(uri.path(), "" | "/" | "/metrics") || uri.query().is_some() {
            return Err(wrong("no path is expected"));
        }
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let authority = authority.ok_or_else(|| wrong("no user is expected"))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(wrong("the host is missing"));
        }
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            None => 80,
        };
        Ok(Target { host: host.to_owned(), port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Asks `target`, which should be a relay of `pipeline`.
///
/// # Errors
/// It is away, slow, something else, or another pipeline's.
pub(super) async fn look(target: &Target, pipeline: &str) -> Result<Look, ScrapeError> {
    let (metrics, ready) = tokio::try_join!(get(target, "/metrics"), get(target, "/ready"))?;
    let (status, body) = metrics;
    if status != StatusCode::OK {
        return Err(ScrapeError::Status { path: "/metrics", status });
    }
    let figures = Figures::of(&Exposition::parse(&body)).ok_or(ScrapeError::NotStatecast)?;
    if figures.pipeline != pipeline {
        return Err(ScrapeError::OtherPipeline(clean(&figures.pipeline)));
    }
    let (status, body) = ready;
    // 503 is an answer as well: it says why.
    if status != StatusCode::OK && status != StatusCode::SERVICE_UNAVAILABLE {
        return Err(ScrapeError::Status { path: "/ready", status });
    }
    let ready: Ready = serde_json::from_slice(&body).map_err(|_| ScrapeError::Ready)?;
    Ok(Look { figures, ready: ready.cleaned() })
}

impl Ready {
    fn cleaned(self) -> Ready {
        let reason = |reason: Reason| Reason {
            component: clean(&reason.component),
            severity: clean(&reason.severity),
            text: clean(&reason.text),
        };
        let reasons = self.reasons.into_iter().take(REASONS_MAX).map(reason).collect();
        Ready { ready: self.ready, role: clean(&self.role), reasons }
    }
}

/// One line, not too long, without anything that a terminal acts on.
pub(super) fn clean(text: &str) -> String {
    text.trim().chars().map(harmless).take(TEXT_MAX).collect()
}

async fn get(target: &Target, path: &'static str) -> Result<(StatusCode, Vec<u8>), ScrapeError> {
    match tokio::time::timeout(DEADLINE, exchange(target, path)).await {
        Ok(answer) => answer,
        Err(_) => Err(ScrapeError::Silent),
    }
}

async fn exchange(target: &Target, path: &'static str) -> Result<(StatusCode, Vec<u8>), ScrapeError> {
    let http = |source| ScrapeError::Http { path, source };
    let stream =
        TcpStream::connect((target.host.as_str(), target.port)).await.map_err(ScrapeError::Connect)?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(HEAD_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(http)?;
    let request = Request::get(path)
        .header(header::HOST, target.to_string())
        .header(header::ACCEPT, if path == "/ready" { "application/json" } else { "text/plain" })
        .header(header::CONNECTION, "close")
        .body(Body::empty())
        .map_err(|_| ScrapeError::Body { path })?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(http)?;
        let (head, body) = answer.into_parts();
        let body = axum::body::to_bytes(Body::new(body), BODY_MAX).await;
        Ok((head.status, body.map_err(|_| ScrapeError::Body { path })?.to_vec()))
    };
    let mut answer = std::pin::pin!(answer);
    // The connection has to be driven while the answer is waited for; how it ends is told by the answer.
    tokio::select! {
        answer = answer.as_mut() => answer,
        _ = connection => answer.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        let target = |text: &str| text.parse::<Target>().map(|target| target.to_string());
        assert_eq!(target("http://relay:9465").unwrap(), "relay:9465");
        assert_eq!(target("http://relay/metrics").unwrap(), "relay:80");
        assert_eq!(target("http://[::1]:1/").unwrap(), "[::1]:1");
        for wrong in [
            "relay:9465",
            "https://relay:1",
            "http://relay:1/x",
            "http://u:p@relay:1",
            "http://",
            "",
            "http://a?b",
        ] {
            assert!(target(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_relay_of_this_machine_is_found() {
        let local = |listen: &str| Target::local(listen.parse().unwrap()).map(|target| target.to_string());
        assert_eq!(local("0.0.0.0:9465").unwrap(), "127.0.0.1:9465");
        assert_eq!(local("[::]:9465").unwrap(), "[::1]:9465");
        assert_eq!(local("10.0.0.1:1").unwrap(), "10.0.0.1:1");
        assert_eq!(local("127.0.0.1:0"), None);
    }

    #[test]
    fn texts_are_cleaned() {
        assert_eq!(clean(" a\u{1b}[2Jb\nc\u{9b}31m\u{202e}d "), "a [2Jb c 31m d");
        assert_eq!(clean(&"é".repeat(TEXT_MAX + 1)).chars().count(), TEXT_MAX);
    }

    /// Gives the same answer to every request, then closes.
    async fn server(answer: &'static [u8]) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer).await;
            }
        });
        Target { host: "127.0.0.1".to_owned(), port }
    }

    async fn said(answer: &'static [u8]) -> String {
        look(&server(answer).await, "orders").await.unwrap_err().to_string()
    }

    #[tokio::test]
    async fn what_answers_may_be_anything() {
        assert!(said(b"SSH-2.0-x\r\n").await.contains("no HTTP server"));
        assert!(said(b"").await.contains("no HTTP server"));
        assert!(said(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.contains("404"));
        assert!(
            said(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await.contains("no metrics of Statecast")
        );
        assert!(said(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhi").await.contains("cut off"));
        let other = b"HTTP/1.1 200 OK\r\n\r\nstatecast_leader{pipeline=\"x\\n\"} 1\n";
        assert_eq!(said(other).await, "this relay is of pipeline x");
        let ours = b"HTTP/1.1 200 OK\r\n\r\nstatecast_leader{pipeline=\"orders\"} 1\n";
        assert!(said(ours).await.contains("/ready"), "the same text is no JSON");
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_cut() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = [0; 1024];
                    let _ = stream.read(&mut request).await;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                    while stream.write_all(&[b'a'; 65_536]).await.is_ok() {}
                });
            }
        });
        let target = Target { host: "127.0.0.1".to_owned(), port };
        assert!(look(&target, "orders").await.unwrap_err().to_string().contains("larger than"));
    }

    #[tokio::test]
    async fn a_silent_server_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() };
        let error = look(&target, "orders").await.unwrap_err();
        assert!(matches!(error, ScrapeError::Silent), "{error}");
    }

    #[tokio::test]
    async fn nobody_listens() {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let target = Target { host: "127.0.0.1".to_owned(), port };
        assert!(look(&target, "orders").await.unwrap_err().to_string().starts_with("cannot connect"));
    }
}
