//! `[otel]`: where spans of events go, as whom, and of which events. Without `otel.endpoint` nothing of it has an effect.

use std::time::Duration;

use super::reader::{Reader, Text};
use super::{SecretString, Tls, TlsMode};

const ENDPOINT: &str = "otel.endpoint";
const HEADERS: &str = "otel.headers";
const EXAMPLE: &str = "takes a URL such as http://collector:4318 or https://otlp.example.com";
/// Put behind the path of the endpoint, unless it is there (OTLP/HTTP, request).
const TRACES: &str = "/v1/traces";
const URL_MAX: usize = 2_048;
const SERVICE_MAX: usize = 255;
const HEADERS_MAX: usize = 32;
/// Bytes of all of them.
const HEADERS_BYTES_MAX: usize = 16 << 10;
/// What the exporter or HTTP itself decides.
const OURS: [&str; 13] = [
    "content-type",
    "content-length",
    "content-encoding",
    "host",
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "te",
    "trailer",
    "expect",
    "upgrade",
    "user-agent",
];

/// `[otel]`.
#[derive(Clone, Debug)]
pub struct Otel {
    /// Where spans are sent.
    pub endpoint: Endpoint,
    /// Sent with every request: name and value.
    pub headers: Vec<(String, SecretString)>,
    /// Resource attribute `service.name`.
    pub service_name: String,
    /// Share of the events without a sampled `traceparent` that are traced too, 0 to 1.
    pub sample: f64,
    /// For one request, connection and answer included.
    pub timeout: Duration,
    /// TLS towards an `https` endpoint.
    pub tls: Tls,
}

/// Where spans are sent by OTLP over HTTP.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// `https`.
    pub over_tls: bool,
    /// Name or address; an IPv6 address without its brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path of the request. Some services put a token into it.
    pub path: SecretString,
}

impl Endpoint {
    /// host:port, for messages and the `Host` header.
    pub fn at(&self) -> String {
        if self.host.contains(':') {
            return format!("[{}]:{}", self.host, self.port);
        }
        format!("{}:{}", self.host, self.port)
    }
}

/// Reads the section; `None`: no endpoint.
pub(super) fn read(r: &mut Reader<'_>, tls: Tls) -> Option<Otel> {
    let headers = r.secret(HEADERS).and_then(|mut texts| texts.pop()).map(|text| headers(r, &text));
    let service_name = r.text("otel.service_name");
    let shown = |c: char| !c.is_control();
    if !(1..=SERVICE_MAX).contains(&service_name.len()) || !service_name.chars().all(shown) {
        r.invalid("otel.service_name", &service_name, "");
    }
    let (sample, timeout) = (r.ratio("otel.sample"), r.duration("otel.timeout"));
    let given = r.secret(ENDPOINT)?.pop()?;
    if !cfg!(feature = "otel") {
        r.errors.push(format!(
            "{}: this program was built without the feature `otel`; build it with `cargo build --release --features otel`, or leave the key out",
            given.place
        ));
        return None;
    }
    match endpoint(&given.text, tls.mode) {
        Ok(endpoint) => {
            let headers = headers.unwrap_or_default();
            Some(Otel { endpoint, headers, service_name, sample, timeout, tls })
        }
        Err(what) => {
            r.errors.push(format!("{}: {what}", given.place));
            None
        }
    }
}

/// The endpoint, or what is wrong with it in words that hold nothing of it.
fn endpoint(url: &str, tls: TlsMode) -> Result<Endpoint, String> {
    if url.len() > URL_MAX {
        return Err(format!("is longer than {URL_MAX} bytes"));
    }
    let (over_tls, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
        (Some(rest), _) => (false, rest),
        (_, Some(rest)) => (true, rest),
        _ => return Err(format!("is neither http:// nor https://; {EXAMPLE}")),
    };
    match (over_tls, tls) {
        (false, TlsMode::Verify) => {
            return Err("is http://, but otel.tls.mode is verify; write https://".into());
        }
        (true, TlsMode::Disable) => return Err("is https://, but otel.tls.mode is disable; keep one".into()),
        _ => {}
    }
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    if authority.contains('@') {
        return Err("holds a user or password; give them as a header in `otel.headers_file`".into());
    }
    let of_a_path = |b: u8| b.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@%".contains(&b);
    if !path.bytes().all(of_a_path) {
        return Err(format!("holds a query or characters that a path has no place for; {EXAMPLE}"));
    }
    let default = if over_tls { 443 } else { 80 };
    let (host, port) =
        host_and_port(authority, default).ok_or(format!("names no host or an odd port; {EXAMPLE}"))?;
    let path = path.trim_end_matches('/');
    let path = if path.ends_with(TRACES) { path.to_owned() } else { format!("{path}{TRACES}") };
    Ok(Endpoint { over_tls, host, port, path: SecretString::new(path) })
}

fn host_and_port(text: &str, default: u16) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => {
            let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
            let of_a_name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
            if host.is_empty() || !host.bytes().all(of_a_name) {
                return None;
            }
            (host, port)
        }
    };
    let port = port.map_or(Some(default), |port| port.parse().ok().filter(|port| *port != 0))?;
    Some((host.to_owned(), port))
}

/// `name: value`, one a line. Messages say which line, and never what is in it.
fn headers(r: &mut Reader<'_>, given: &Text) -> Vec<(String, SecretString)> {
    let mut headers = Vec::new();
    let lines = given.text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty());
    for (index, line) in lines {
        match header(line) {
            Ok(header) => headers.push(header),
            Err(what) => r.errors.push(format!("{} line {}: {what}", given.place, index + 1)),
        }
    }
    if headers.len() > HEADERS_MAX || given.text.len() > HEADERS_BYTES_MAX {
        r.errors.push(format!(
            "{}: holds more than {HEADERS_MAX} headers or {HEADERS_BYTES_MAX} bytes",
            given.place
        ));
    }
    headers
}

fn header(line: &str) -> Result<(String, SecretString), String> {
    const FORM: &str = "takes `name: value` such as `authorization: Bearer …`, one a line";
    let (name, value) = line.split_once(':').ok_or(FORM)?;
    let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
    let of_a_name = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(of_a_name) {
        return Err(FORM.into());
    }
    if value.is_empty() || !value.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
        return Err("its value is empty, or holds other than signs of ASCII".into());
    }
    if OURS.contains(&name.as_str()) {
        return Err("names a header that the exporter sets itself".into());
    }
    Ok((name, SecretString::new(value.to_owned())))
}
