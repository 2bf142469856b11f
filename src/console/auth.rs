//! Who may read, and who may act.
//!
//! | token | listener | reading | acts |
//! |---|---|---|---|
//! | configured | any | the token in `Authorization`, or a session that was opened with it | the token in `Authorization` |
//! | none | loopback (beyond is refused at start) | who asks by a loopback name, through no proxy | nobody |
//!
//! Where there is a token, loopback is no privilege: a proxy on the same machine, which speaks for a whole network, comes from
//! there as well. Where there is none, names matter: a page of somebody else may make a browser on this machine ask for
//! `evil.example`, which then resolves to 127.0.0.1 (DNS rebinding). And no page of somebody else may make a browser ask for
//! things that cost something, though it would not see the answers: browsers say where a request comes from
//! (<https://www.w3.org/TR/fetch-metadata/>).
//!
//! A session is a cookie with an end and a code that only who has the token can make (HMAC, RFC 2104), so every replica with
//! this token knows it, also after a restart. No browser adds `Authorization` to a foreign page's request by itself, so acts need
//! no other guard against forgery. Tokens are compared by their digests, in constant time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, COOKIE, FORWARDED, HOST, VIA};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::config::SecretString;

/// Names of the sessions' cookies begin so; the pipeline follows, since cookies of one host are shared by its ports.
const SESSION: &str = "statecast_console_";
/// How long a session lasts.
pub(super) const SESSION_LENGTH: Duration = Duration::from_secs(12 * 3600);

type Fingerprint = [u8; 32];

/// Whether somebody may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Yes.
    Granted,
    /// A token was given, and it is not the token.
    WrongToken,
    /// A token is needed.
    TokenNeeded,
    /// Without a token on loopback, by a name that is not loopback's.
    ForeignName,
    /// Without a token, through a proxy.
    ThroughProxy,
    /// A page of another origin makes a browser ask, and nobody followed a link.
    ForeignPage,
    /// A token would be needed, and none is configured.
    NoTokenConfigured,
}

impl Access {
    /// What is wrong and what to do, for who asked and for the log.
    pub(super) fn why(self) -> &'static str {
        match self {
            Access::Granted => "nothing is wrong",
            Access::WrongToken => "that is not the token",
            Access::TokenNeeded => "a token is needed: Authorization: Bearer …",
            Access::ForeignName => {
                "no token is configured, so ask for this console as localhost or 127.0.0.1; or set console.token_file"
            }
            Access::ThroughProxy => {
                "this request came through a proxy, and no token is configured: set console.token_file"
            }
            Access::ForeignPage => "another page made this browser ask: open the console itself",
            Access::NoTokenConfigured => {
                "retry and discard need a token, and none is configured: set console.token_file, or use `statecast parked`"
            }
        }
    }
}

/// The token, and what sessions are made with.
#[derive(Debug)]
pub(super) struct Auth {
    loopback: bool,
    token: Option<Fingerprint>,
    cookie: String,
}

impl Auth {
    /// `loopback`: the listener is in no other machine's reach.
    pub(super) fn new(loopback: bool, token: Option<&SecretString>, pipeline: &str) -> Auth {
        let token = token.map(|token| fingerprint(token.expose().as_bytes()));
        Auth { loopback, token, cookie: format!("{SESSION}{pipeline}") }
    }

    /// May this request read?
    pub(super) fn reading(&self, headers: &HeaderMap, now: SystemTime) -> Access {
        match self.bearer(headers) {
            Some(true) => return Access::Granted,
            Some(false) => return Access::WrongToken,
            None => {}
        }
        if foreign_page(headers) {
            return Access::ForeignPage;
        }
        if self.in_session(headers, now) {
            return Access::Granted;
        }
        if self.token.is_some() || !self.loopback {
            return Access::TokenNeeded;
        }
        match (through_proxy(headers), loopback_name(headers)) {
            (true, _) => Access::ThroughProxy,
            (false, true) => Access::Granted,
            (false, false) => Access::ForeignName,
        }
    }

    /// May this request act?
    pub(super) fn acting(&self, headers: &HeaderMap) -> Access {
        match self.bearer(headers) {
            _ if self.token.is_none() => Access::NoTokenConfigured,
            Some(true) => Access::Granted,
            Some(false) => Access::WrongToken,
            None => Access::TokenNeeded,
        }
    }

    /// Opens a session for who knows the token: the cookie. `None`: that is not the token.
    ///
    /// `headers` of the request that logs in: where a proxy says that it came by TLS, the cookie goes no other way.
    pub(super) fn open(&self, token: &str, headers: &HeaderMap, now: SystemTime) -> Option<String> {
        if !self.is_token(token) {
            return None;
        }
        let until_s = seconds(now.checked_add(SESSION_LENGTH)?);
        let code = hex(&self.code(until_s)?.finalize().into_bytes());
        let secure = if by_tls(headers) { "; Secure" } else { "" };
        Some(format!(
            "{}={until_s}.{code}; HttpOnly; SameSite=Strict; Path=/; Max-Age={}{secure}",
            self.cookie,
            SESSION_LENGTH.as_secs()
        ))
    }

    /// Is there a token to log in with?
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    fn is_token(&self, given: &str) -> bool {
        self.token.is_some_and(|token| same(&token, &fingerprint(given.as_bytes())))
    }

    /// Whether `Authorization` holds the token; `None`: there is no such header.
    fn bearer(&self, headers: &HeaderMap) -> Option<bool> {
        let value = headers.get(AUTHORIZATION)?.to_str().unwrap_or_default();
        let token = value.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        Some(token.is_some_and(|(_, token)| self.is_token(token.trim())))
    }

    fn in_session(&self, headers: &HeaderMap, now: SystemTime) -> bool {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.split_once('='));
        let mut sessions = pairs.filter(|(name, _)| name.trim() == self.cookie);
        // An older one of another path or domain may stand before ours.
        sessions.any(|(_, session)| self.holds(session.trim(), now))
    }

    /// Is it one of ours, and not over?
    fn holds(&self, session: &str, now: SystemTime) -> bool {
        let Some((until, given)) = session.split_once('.') else { return false };
        let Ok(until_s) = until.parse::<u64>() else { return false };
        let Some(code) = self.code(until_s) else { return false };
        let ours = hex(&code.finalize().into_bytes());
        // By their digests, so that the comparison's time says nothing about the code.
        until_s > seconds(now) && same(&fingerprint(ours.as_bytes()), &fingerprint(given.as_bytes()))
    }

    /// What a session that ends then carries. `None`: there is no token.
    fn code(&self, until_s: u64) -> Option<Hmac<Sha256>> {
        let mut code = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.token?).ok()?;
        code.update(format!("{} until {until_s}", self.cookie).as_bytes());
        Some(code)
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn fingerprint(secret: &[u8]) -> Fingerprint {
    Sha256::digest(secret).into()
}

/// In the same time whatever differs.
fn same(one: &Fingerprint, two: &Fingerprint) -> bool {
    std::hint::black_box(one.iter().zip(two).fold(0, |differs, (a, b)| differs | (a ^ b))) == 0
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Did a proxy pass it on? (One that says nothing of itself is not noticed.)
fn through_proxy(headers: &HeaderMap) -> bool {
    let says_so = |name: &str| name.starts_with("x-forwarded-") || name == "x-real-ip";
    headers.contains_key(FORWARDED)
        || headers.contains_key(VIA)
        || headers.keys().any(|name| says_so(name.as_str()))
}

fn by_tls(headers: &HeaderMap) -> bool {
    let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let forwarded = value("forwarded").to_ascii_lowercase();
    value("x-forwarded-proto").eq_ignore_ascii_case("https")
        || forwarded.contains("proto=https")
        || forwarded.contains("proto=\"https\"")
}

/// Does a page of another origin ask, other than by a link that opens this one? Programs send no such fields.
fn foreign_page(headers: &HeaderMap) -> bool {
    let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let opens_a_page = value("sec-fetch-mode") == "navigate" && value("sec-fetch-dest") == "document";
    matches!(value("sec-fetch-site"), "cross-site" | "same-site") && !opens_a_page
}

/// `localhost`, `127.0.0.1` or `[::1]`, with any port: a port that was forwarded is as good.
fn loopback_name(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let host = host.to_str().unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    ["localhost", "127.0.0.1", "[::1]"].iter().any(|loopback| name.eq_ignore_ascii_case(loopback))
}

#[cfg(test)]
mod tests {
    use axum::http::header::HeaderName;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    fn auth(loopback: bool, token: Option<&str>) -> Auth {
        Auth::new(loopback, token.map(|token| SecretString::new(token.to_owned())).as_ref(), "shop")
    }

    fn named(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn on_loopback_its_names_are_enough_to_read() {
        let auth = auth(true, None);
        let reads = |host| auth.reading(&headers(&[(HOST, host)]), SystemTime::now());
        for host in
            ["localhost", "localhost:9466", "127.0.0.1:1", "[::1]:9466", "[::1]", "LOCALHOST:80", "127.0.0.1"]
        {
            assert_eq!(reads(host), Access::Granted, "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9466",
            "localhost.evil.example",
            "127.0.0.1.evil.example:9466",
            "127.0.0.1:80@evil.example",
            "localhost:",
            "localhost:x",
            "::1",
            "",
        ] {
            assert_eq!(reads(host), Access::ForeignName, "{host}");
        }
        assert_eq!(auth.reading(&HeaderMap::new(), SystemTime::now()), Access::ForeignName);
        let mut two = headers(&[(HOST, "localhost")]);
        two.append(HOST, "evil.example".parse().unwrap());
        assert_eq!(auth.reading(&two, SystemTime::now()), Access::ForeignName);
        assert_eq!(auth.acting(&headers(&[(HOST, "localhost")])), Access::NoTokenConfigured);
    }

    #[test]
    fn acts_need_the_token_in_the_header_everywhere() {
        for loopback in [true, false] {
            let auth = auth(loopback, Some(TOKEN));
            let acts = |value: &str| auth.acting(&headers(&[(HOST, "localhost"), (AUTHORIZATION, value)]));
            assert_eq!(acts(&format!("Bearer {TOKEN}")), Access::Granted);
            assert_eq!(acts(&format!("bearer  {TOKEN}")), Access::Granted);
            for wrong in
                ["Bearer", "Bearer ", "Bearer x", TOKEN, "Basic 0123456789abcdef", "Bearer 0123456789abcdeF"]
            {
                assert_eq!(acts(wrong), Access::WrongToken, "{wrong}");
            }
            let cookie = auth.open(TOKEN, &HeaderMap::new(), SystemTime::now()).unwrap();
            let session = headers(&[(HOST, "localhost"), (COOKIE, cookie.split(';').next().unwrap())]);
            assert_eq!(auth.acting(&session), Access::TokenNeeded, "a session only reads");
        }
    }

    #[test]
    fn with_a_token_reading_needs_it_or_a_session_on_loopback_as_well() {
        for loopback in [true, false] {
            let auth = auth(loopback, Some(TOKEN));
            let now = SystemTime::now();
            for host in ["localhost", "127.0.0.1:9466", "evil.example"] {
                assert_eq!(auth.reading(&headers(&[(HOST, host)]), now), Access::TokenNeeded, "{host}");
            }
            let bearer = |value: &str| auth.reading(&headers(&[(AUTHORIZATION, value)]), now);
            assert_eq!(bearer("Bearer 0123456789abcdef"), Access::Granted);
            assert_eq!(bearer("Bearer 0123456789abcdee"), Access::WrongToken);
            assert!(auth.open("0123456789abcdee", &HeaderMap::new(), now).is_none());
            let cookie = auth.open(TOKEN, &HeaderMap::new(), now).unwrap();
            assert!(cookie.contains("; HttpOnly; SameSite=Strict; ") && !cookie.contains(TOKEN));
            let with = |cookie: &str, at| auth.reading(&headers(&[(COOKIE, cookie)]), at);
            let pair = cookie.split(';').next().unwrap();
            assert_eq!(with(&format!("a=b; {pair}; c"), now), Access::Granted);
            assert_eq!(with(pair, now + SESSION_LENGTH), Access::TokenNeeded);
            for forged in ["=00", "=", "=9999999999.", &format!("=9999999999.{}", "0".repeat(64))] {
                assert_eq!(with(&format!("statecast_console_shop{forged}"), now), Access::TokenNeeded);
            }
            // Its end is part of what the code is made of.
            let (_, code) = pair.split_once('.').unwrap();
            let longer = format!("statecast_console_shop=9999999999.{code}");
            assert_eq!(with(&longer, now), Access::TokenNeeded, "{longer}");
        }
    }

    #[test]
    fn every_replica_of_this_pipeline_and_token_knows_a_session() {
        let now = SystemTime::now();
        let cookie = auth(false, Some(TOKEN)).open(TOKEN, &HeaderMap::new(), now).unwrap();
        let pair = cookie.split(';').next().unwrap();
        let reads = |auth: &Auth, pair: &str| auth.reading(&headers(&[(COOKIE, pair)]), now);
        assert_eq!(reads(&auth(false, Some(TOKEN)), pair), Access::Granted, "of another process");
        assert_eq!(reads(&auth(false, Some("another-token-0815")), pair), Access::TokenNeeded);
        let token = SecretString::new(TOKEN.to_owned());
        let other = Auth::new(false, Some(&token), "other");
        assert_eq!(reads(&other, pair), Access::TokenNeeded);
        assert_eq!(
            reads(&other, &pair.replace("_shop=", "_other=")),
            Access::TokenNeeded,
            "of another pipeline"
        );
    }

    #[test]
    fn a_session_by_tls_stays_there() {
        let auth = auth(true, Some(TOKEN));
        let cookie = |headers: &HeaderMap| auth.open(TOKEN, headers, SystemTime::now()).unwrap();
        assert!(!cookie(&HeaderMap::new()).contains("Secure"));
        assert!(cookie(&named(&[("x-forwarded-proto", "https")])).ends_with("; Secure"));
        assert!(cookie(&named(&[("forwarded", "for=10.0.0.1;Proto=https")])).ends_with("; Secure"));
        assert!(!cookie(&named(&[("x-forwarded-proto", "http")])).contains("Secure"));
    }

    #[test]
    fn without_a_token_nobody_reads_through_a_proxy() {
        let auth = auth(true, None);
        for name in
            ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"]
        {
            let request = named(&[("host", "127.0.0.1:9466"), (name, "10.0.0.1")]);
            assert_eq!(auth.reading(&request, SystemTime::now()), Access::ThroughProxy, "{name}");
        }
    }

    #[test]
    fn another_page_makes_no_browser_ask() {
        let (open, closed, now) = (auth(true, None), auth(true, Some(TOKEN)), SystemTime::now());
        let cookie = closed.open(TOKEN, &HeaderMap::new(), now).unwrap();
        let pair = cookie.split(';').next().unwrap();
        let reads = |auth: &Auth, site: &str, mode: &str, dest: &str| {
            let request = [
                ("host", "127.0.0.1:9466"),
                ("cookie", pair),
                ("sec-fetch-site", site),
                ("sec-fetch-mode", mode),
                ("sec-fetch-dest", dest),
            ];
            auth.reading(&named(&request), now)
        };
        for auth in [&open, &closed] {
            for site in ["cross-site", "same-site"] {
                for (mode, dest) in [("no-cors", "image"), ("cors", "empty"), ("navigate", "iframe")] {
                    assert_eq!(reads(auth, site, mode, dest), Access::ForeignPage, "{site} {mode} {dest}");
                }
                assert_eq!(reads(auth, site, "navigate", "document"), Access::Granted, "a link");
            }
            assert_eq!(reads(auth, "same-origin", "cors", "empty"), Access::Granted);
            assert_eq!(reads(auth, "none", "navigate", "document"), Access::Granted);
        }
    }

    #[test]
    fn nothing_prints_the_token() {
        assert!(!format!("{:?}", auth(true, Some(TOKEN))).contains(TOKEN));
    }
}
