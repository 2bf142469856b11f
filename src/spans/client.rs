//! OTLP over HTTP: one request, one answer, on a connection that is kept (OTLP 1.x, section OTLP/HTTP, binary protobuf).
//!
//! The collector is somebody else's program: the time for all of a request, the bytes of its head and of its body are bounded,
//! and an answer that makes no sense is an error like any other. Errors hold no header, no path and no body that was sent.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::otlp::ExportTraceServiceResponse;
use crate::config::Otel;
use crate::config::otel::Endpoint;
use crate::tls::{self, TlsError};

/// Bytes of an answer.
const BODY_MAX: usize = 64 << 10;
/// Bytes of an answer's head.
const HEAD_MAX: usize = 16 << 10;
/// Characters of what a collector says is wrong.
const REASON_MAX: usize = 200;
/// A longer pause counts as this one.
const AFTER_MAX: Duration = Duration::from_secs(3600);
/// The port of OTLP over gRPC, easily mistaken for that of HTTP.
const GRPC_PORT: u16 = 4317;

/// Why spans did not arrive. One line.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) text: String,
    /// Trying again may help.
    pub(super) again: bool,
    /// Not before.
    pub(super) after: Option<Duration>,
}

/// What the collector took.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// Spans that it refused for good.
    pub(super) rejected: u64,
    /// Why.
    pub(super) why: String,
}

type Open = (SendRequest<Full<Bytes>>, AbortOnDropHandle<()>);

/// One collector, and the connection to it while there is one.
pub(super) struct Client {
    endpoint: Endpoint,
    headers: HeaderMap,
    timeout: Duration,
    tls: Option<Arc<rustls::ClientConfig>>,
    open: Option<Open>,
}

impl Client {
    /// Connects with the first request.
    ///
    /// # Errors
    /// The files of `otel.tls` cannot be used.
    pub(super) fn new(otel: &Otel) -> Result<Client, TlsError> {
        let endpoint = otel.endpoint.clone();
        let tls = if endpoint.over_tls { Some(Arc::new(tls::client_config(&otel.tls)?)) } else { None };
        Ok(Client { headers: headers(otel), endpoint, timeout: otel.timeout, tls, open: None })
    }

    /// host:port, for messages.
    pub(super) fn at(&self) -> String {
        self.endpoint.at()
    }

    /// Sends one request, within the configured time.
    ///
    /// # Errors
    /// It was not taken.
    pub(super) async fn post(&mut self, body: Bytes) -> Result<Taken, Failure> {
        // Dropped half-way, an exchange leaves no connection behind for the next one.
        let limit = self.timeout;
        let answer = timeout(limit, Box::pin(self.exchange(body))).await;
        answer.unwrap_or_else(|_| Err(again(format!("no answer in {limit:?}"))))
    }

    async fn exchange(&mut self, body: Bytes) -> Result<Taken, Failure> {
        let kept = match self.open.take() {
            Some(mut open) => open.0.ready().await.is_ok().then_some(open),
            None => None,
        };
        let mut open = match kept {
            Some(open) => open,
            None => self.connect().await.map_err(|text| again(self.hinted(text)))?,
        };
        let request = self.request(body).map_err(|text| Failure { text, again: false, after: None })?;
        let broken = |error: &dyn std::fmt::Display| again(self.hinted(format!("broken off: {error}")));
        let answer = open.0.send_request(request).await.map_err(|error| broken(&error))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, BODY_MAX).collect().await.map_err(|error| broken(&error))?.to_bytes();
        self.open = Some(open);
        judge(head.status, &head.headers, &body)
    }

    async fn connect(&self) -> Result<Open, String> {
        let Endpoint { host, port, .. } = &self.endpoint;
        let stream = TcpStream::connect((host.as_str(), *port)).await.map_err(|error| error.to_string())?;
        let Some(tls) = &self.tls else { return handshake(stream).await };
        let name = ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await.map_err(|error| {
            let remedy = tls::remedy(&error, "otel.tls");
            remedy.map_or_else(|| error.to_string(), |remedy| format!("{error}: {remedy}"))
        })?;
        handshake(stream).await
    }

    fn request(&self, body: Bytes) -> Result<Request<Full<Bytes>>, String> {
        let mut request = Request::post(self.endpoint.path.expose())
            .body(Full::new(body))
            .map_err(|_| "otel.endpoint has a path that cannot be requested".to_owned())?;
        request.headers_mut().extend(self.headers.clone());
        Ok(request)
    }

    fn hinted(&self, text: String) -> String {
        if self.endpoint.port == GRPC_PORT {
            return format!("{text} (port {GRPC_PORT} is usually that of gRPC; OTLP over HTTP has 4318)");
        }
        text
    }
}

fn again(text: String) -> Failure {
    Failure { text, again: true, after: None }
}

/// What goes with every request. The configuration has checked names and values.
fn headers(otel: &Otel) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &otel.headers {
        if let (Ok(name), Ok(mut value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value.expose()))
        {
            value.set_sensitive(true);
            headers.append(name, value);
        }
    }
    if let Ok(host) = HeaderValue::from_str(&otel.endpoint.at()) {
        headers.insert(HOST, host);
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("statecast/", env!("CARGO_PKG_VERSION"))));
    headers
}

async fn handshake<S>(stream: S) -> Result<Open, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    let shaking = builder.max_buf_size(HEAD_MAX).handshake::<_, Full<Bytes>>(TokioIo::new(stream));
    let (sender, connection) = shaking.await.map_err(|error| error.to_string())?;
    let running = tokio::spawn(async move {
        // Whoever waits for an answer hears of it.
        let _ = connection.await;
    });
    Ok((sender, AbortOnDropHandle::new(running)))
}

/// What an answer means. Those that ask for another try are the specification's four.
fn judge(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Result<Taken, Failure> {
    if status.is_success() {
        let answer = ExportTraceServiceResponse::decode(body).unwrap_or_default();
        return Ok(answer.partial_success.map_or_else(Taken::default, |partial| Taken {
            rejected: u64::try_from(partial.rejected_spans).unwrap_or(0),
            why: beginning(partial.error_message.as_bytes()),
        }));
    }
    let text = format!("it answered {}: {}", status.as_u16(), beginning(body));
    Err(Failure { text, again: [429, 502, 503, 504].contains(&status.as_u16()), after: retry_after(headers) })
}

/// Seconds or a date, an hour at most.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds).min(AFTER_MAX));
    }
    let after = httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok()?;
    Some(after.min(AFTER_MAX))
}

/// What a collector says, cut and on one line.
fn beginning(body: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(body).chars().take(REASON_MAX).collect();
    text.replace(|c: char| c.is_control(), " ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceResponse as Answer,
    };
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_answers_mean() {
        let none = HeaderMap::new();
        assert_eq!(judge(StatusCode::OK, &none, b"").unwrap(), Taken::default());
        assert_eq!(judge(StatusCode::OK, &none, b"\xffnonsense").unwrap(), Taken::default());
        let partial = ExportTracePartialSuccess { rejected_spans: 3, error_message: "too\nold".into() };
        let body = Answer { partial_success: Some(partial) }.encode_to_vec();
        let taken = judge(StatusCode::OK, &none, &body).unwrap();
        assert_eq!((taken.rejected, taken.why.as_str()), (3, "too old"));
        for status in [429, 502, 503, 504] {
            assert!(judge(StatusCode::from_u16(status).unwrap(), &none, b"").unwrap_err().again, "{status}");
        }
        for status in [301, 400, 401, 403, 404, 413, 500] {
            let failure = judge(StatusCode::from_u16(status).unwrap(), &none, b"why\r\n").unwrap_err();
            assert!(!failure.again && failure.text.ends_with(": why"), "{failure:?}");
        }
    }

    #[test]
    fn when_to_come_back() {
        let after = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(text).unwrap())]);
            judge(StatusCode::SERVICE_UNAVAILABLE, &headers, b"").unwrap_err().after
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after(&u64::MAX.to_string()), Some(AFTER_MAX));
        let date = after(&httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100))).unwrap();
        assert!((90..=100).contains(&date.as_secs()), "{date:?}");
        for none in ["-1", "soon", "Sun, 06 Nov 1994 08:49:37 GMT", "99999999999999999999"] {
            assert_eq!(after(none), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(status in 100_u16..1000, body in prop::collection::vec(any::<u8>(), 0..300)) {
            let status = StatusCode::from_u16(status).unwrap();
            if let Err(failure) = judge(status, &HeaderMap::new(), &body) {
                prop_assert!(failure.text.len() <= 4 * REASON_MAX + 40 && !failure.text.contains('\n'));
            }
        }
    }
}
