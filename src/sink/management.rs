//! A client for RabbitMQ's management API: GET and JSON, nothing else.
//!
//! What comes back is somebody else's: headers, bodies, their number and the time for all of it are bounded, and JSON that
//! is not what was expected is an error like any other. See <https://www.rabbitmq.com/docs/http-api-reference>.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, DATE, HOST, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use rustls_pki_types::{CertificateDer, ServerName};
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use crate::config::{SecretString, Tls};
use crate::tls::{self, TlsError};

/// Lookup, connection and TLS handshake together; also for one answer.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// For everything that is asked over one client.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of one answer.
const BODY_MAX: usize = 8 << 20;
/// Bytes of an answer's headers.
const HEAD_MAX: usize = 64 << 10;
/// Of what a server says is wrong.
const REASON_MAX: usize = 200;
/// Everything but what RFC 3986 calls unreserved: names of exchanges hold anything.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Why there is no answer. One line, without the password.
#[derive(Debug, thiserror::Error)]
pub enum ManagementError {
    /// Not a URL that can be used.
    #[error("rabbitmq.management_url cannot be used: {0}")]
    Url(&'static str),
    /// Nobody there.
    #[error("cannot connect to the management API at {at}: {cause}")]
    Connect {
        /// host:port.
        at: String,
        /// What the system said.
        cause: String,
    },
    /// No answer, or not all of it, in time.
    #[error("the management API at {at} did not answer {path} in time")]
    Timeout {
        /// host:port.
        at: String,
        /// What was asked for.
        path: String,
    },
    /// The exchange broke, or the answer is larger than we take.
    #[error("the management API at {at} did not answer {path} properly: {cause}")]
    Broken {
        /// host:port.
        at: String,
        /// What was asked for.
        path: String,
        /// What went wrong.
        cause: String,
    },
    /// User or password, or a tag that is missing.
    #[error("the management API refuses this user ({status}) for {path}")]
    Refused {
        /// 401 or 403.
        status: u16,
        /// What was asked for.
        path: String,
    },
    /// Another status than 200 and 404.
    #[error("the management API answered {path} with {status}: {reason}")]
    Status {
        /// The status.
        status: u16,
        /// What was asked for.
        path: String,
        /// The beginning of its body.
        reason: String,
    },
    /// Not JSON, or not of the shape that the API documents.
    #[error("the management API answered {path} with something that is not understood: {cause}")]
    Json {
        /// What was asked for.
        path: String,
        /// Where it ends to make sense.
        cause: String,
    },
    /// The files of `rabbitmq.tls`.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Where the API is, and as whom to ask.
#[derive(Clone, Debug)]
struct Target {
    host: String,
    port: u16,
    over_tls: bool,
    /// Without a slash at its end.
    prefix: String,
    authorization: Option<SecretString>,
}

/// What a request brought besides its body.
#[derive(Clone, Copy, Debug)]
pub struct Dated {
    /// Our clock half-way.
    pub local: SystemTime,
    /// The `Date` header, of whole seconds.
    pub remote: SystemTime,
    /// Question to answer.
    pub trip: Duration,
}

/// One connection, opened again when it ends.
pub struct Management {
    target: Target,
    tls: Option<Arc<rustls::ClientConfig>>,
    open: Option<Open>,
    certificates: Vec<CertificateDer<'static>>,
    began: Instant,
    dated: Option<Dated>,
}

/// A connection, and the task that runs it.
type Open = (SendRequest<Empty<Bytes>>, AbortOnDropHandle<()>);

/// A name as a segment of a path.
pub fn segment(name: &str) -> String {
    utf8_percent_encode(name, SEGMENT).to_string()
}

impl Management {
    /// For `rabbitmq.management_url`; `tls` is `rabbitmq.tls`, for `https`. Connects with the first request.
    ///
    /// # Errors
    /// The URL or the TLS files cannot be used.
    pub fn new(url: &SecretString, tls: &Tls) -> Result<Management, ManagementError> {
        let target = Target::parse(url.expose())?;
        let tls = if target.over_tls { Some(Arc::new(tls::client_config(tls)?)) } else { None };
        Ok(Management {
            target,
            tls,
            open: None,
            certificates: Vec::new(),
            began: Instant::now(),
            dated: None,
        })
    }

    /// host:port, for messages.
    pub fn at(&self) -> String {
        self.target.at()
    }

    /// What the server showed, over `https`.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// The quickest answer's date.
    pub fn dated(&self) -> Option<Dated> {
        self.dated
    }

    /// `GET /api/<path>`; `None`: 404.
    ///
    /// # Errors
    /// See [`ManagementError`].
    pub async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<Option<T>, ManagementError> {
        let left = TOTAL_TIMEOUT.saturating_sub(self.began.elapsed()).min(STEP_TIMEOUT * 2);
        // Dropped half-way, an exchange leaves no connection behind for the next one.
        let Ok(answer) = timeout(left, self.exchange(path)).await else {
            return Err(ManagementError::Timeout { at: self.at(), path: path.to_owned() });
        };
        let (status, body) = answer?;
        let path = path.to_owned();
        match status {
            StatusCode::OK => serde_json::from_slice(&body)
                .map(Some)
                .map_err(|error| ManagementError::Json { path, cause: error.to_string() }),
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(ManagementError::Refused { status: status.as_u16(), path })
            }
            other => Err(ManagementError::Status { status: other.as_u16(), path, reason: beginning(&body) }),
        }
    }

    async fn exchange(&mut self, path: &str) -> Result<(StatusCode, Bytes), ManagementError> {
        let at = self.target.at();
        let broken = |cause: String| ManagementError::Broken { at: at.clone(), path: path.to_owned(), cause };
        let request = self.target.request(path).map_err(&broken)?;
        let kept = match self.open.take() {
            Some(mut open) => open.0.ready().await.is_ok().then_some(open),
            None => None,
        };
        let mut open = match kept {
            Some(open) => open,
            None => Box::pin(self.connect()).await?,
        };
        let (asked, began) = (SystemTime::now(), Instant::now());
        let answer = open.0.send_request(request).await.map_err(|error| broken(error.to_string()))?;
        let trip = began.elapsed();
        let date = answer.headers().get(DATE).and_then(|date| date.to_str().ok());
        if let Some(remote) = date.and_then(|date| httpdate::parse_http_date(date).ok())
            && self.dated.is_none_or(|dated| trip < dated.trip)
        {
            self.dated = Some(Dated { local: asked + trip / 2, remote, trip });
        }
        let status = answer.status();
        let body = Limited::new(answer.into_body(), BODY_MAX);
        let body = body.collect().await.map_err(|error| broken(error.to_string()))?.to_bytes();
        self.open = Some(open);
        Ok((status, body))
    }

    async fn connect(&mut self) -> Result<Open, ManagementError> {
        let Target { host, port, .. } = &self.target;
        let failed = |cause: String| ManagementError::Connect { at: self.target.at(), cause };
        let opening = async {
            let stream =
                TcpStream::connect((host.as_str(), *port)).await.map_err(|e| failed(e.to_string()))?;
            let Some(tls) = &self.tls else {
                return Ok::<_, ManagementError>((handshake(stream).await.map_err(failed)?, Vec::new()));
            };
            let name = ServerName::try_from(host.clone()).map_err(|error| failed(error.to_string()))?;
            let stream =
                TlsConnector::from(Arc::clone(tls)).connect(name, stream).await.map_err(|error| {
                    let remedy = tls::remedy(&error, "rabbitmq.tls");
                    failed(remedy.map_or_else(|| error.to_string(), |remedy| format!("{error}: {remedy}")))
                })?;
            let shown = tls::peer::certificates(stream.get_ref().1);
            Ok((handshake(stream).await.map_err(failed)?, shown))
        };
        let (open, certificates) = match timeout(STEP_TIMEOUT, opening).await {
            Ok(opened) => opened?,
            Err(_) => return Err(failed("no answer".to_owned())),
        };
        self.certificates = certificates;
        Ok(open)
    }
}

impl std::fmt::Debug for Management {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Management").field("at", &self.target.at()).finish_non_exhaustive()
    }
}

async fn handshake<S>(stream: S) -> Result<Open, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    let shaking = builder.max_buf_size(HEAD_MAX).handshake::<_, Empty<Bytes>>(TokioIo::new(stream));
    let (sender, connection) = shaking.await.map_err(|error| error.to_string())?;
    let running = tokio::spawn(async move {
        // Whoever waits for an answer hears of it.
        let _ = connection.await;
    });
    Ok((sender, AbortOnDropHandle::new(running)))
}

/// What a server says, cut and on one line.
fn beginning(body: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(body).chars().take(REASON_MAX).collect();
    text.replace(|c: char| c.is_control(), " ")
}

impl Target {
    /// `http[s]://[user:password@]host[:port][/prefix]`; user and password may be percent-encoded.
    fn parse(url: &str) -> Result<Target, ManagementError> {
        let (over_tls, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err(ManagementError::Url("it is neither http:// nor https://")),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let authority = authority.split(['?', '#']).next().unwrap_or_default();
        let path = path.split(['?', '#']).next().unwrap_or_default().trim_matches('/');
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let default = if over_tls { 15671 } else { 15672 };
        let (host, port) = host_and_port(host, default).ok_or(ManagementError::Url("host or port is odd"))?;
        // The API's root may be given as well.
        let path = path.strip_suffix("api").unwrap_or(path).trim_end_matches('/');
        let prefix = if path.is_empty() { String::new() } else { format!("/{path}") };
        let authorization = user.map(|user| {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            let mut pair: Vec<u8> = percent_decode_str(name).collect();
            pair.push(b':');
            pair.extend(percent_decode_str(password));
            SecretString::new(format!("Basic {}", STANDARD.encode(pair)))
        });
        Ok(Target { host, port, over_tls, prefix, authorization })
    }

    fn at(&self) -> String {
        if self.host.contains(':') {
            return format!("[{}]:{}", self.host, self.port);
        }
        format!("{}:{}", self.host, self.port)
    }

    fn request(&self, path: &str) -> Result<Request<Empty<Bytes>>, String> {
        let mut request = Request::get(format!("{}/api/{path}", self.prefix)).header(HOST, self.at());
        if let Some(authorization) = &self.authorization {
            let mut value =
                HeaderValue::from_str(authorization.expose()).map_err(|error| error.to_string())?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        request.body(Empty::new()).map_err(|error| error.to_string())
    }
}

fn host_and_port(text: &str, default: u16) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, "")) => (host, None),
        Some((host, rest)) => (host, Some(rest.strip_prefix(':')?)),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = port.map_or(Ok(default), str::parse).ok()?;
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(url: &str) -> Target {
        Target::parse(url).unwrap()
    }

    #[test]
    fn urls_as_people_write_them() {
        let plain = target("http://u%40x:p%3Aw@mq:8080/");
        assert_eq!((plain.at().as_str(), plain.prefix.as_str(), plain.over_tls), ("mq:8080", "", false));
        let expected = format!("Basic {}", STANDARD.encode("u@x:p:w"));
        assert_eq!(plain.authorization.unwrap().expose(), expected);
        assert_eq!(target("https://mq").at(), "mq:15671");
        assert!(target("http://mq").authorization.is_none());
        for (url, prefix) in
            [("http://mq/api", ""), ("http://mq/rabbit/api/", "/rabbit"), ("http://mq/a/b", "/a/b")]
        {
            assert_eq!(target(url).prefix, prefix, "{url}");
        }
        assert_eq!(target("http://[::1]:1").at(), "[::1]:1");
        for url in ["ftp://mq", "http://", "http://:1", "http://mq:x", "http://[::1"] {
            assert!(Target::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn names_stay_one_segment() {
        assert_eq!(segment("/"), "%2F");
        assert_eq!(segment("a/b?c#d e.ü-"), "a%2Fb%3Fc%23d%20e.%C3%BC-");
    }

    #[test]
    fn the_password_is_not_printed() {
        let url = SecretString::new("http://u:secret@mq".into());
        let shown = format!("{:?}", Management::new(&url, &Tls::default()).unwrap());
        assert!(!shown.contains("secret") && !format!("{:?}", target(url.expose())).contains("secret"));
    }

    proptest! {
        #[test]
        fn any_url_parses_or_is_refused(url in "(http|https)://.{0,40}") {
            if let Ok(target) = Target::parse(&url) {
                let _ = target.request("overview");
            }
        }
    }
}
