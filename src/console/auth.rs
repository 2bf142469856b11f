//! Who may read, and who may act.
//!
//! | listener | reading | acts |
//! |---|---|---|
//! | loopback | anybody who asks for it by a loopback name, or with the token | the token in `Authorization` |
//! | beyond | the token in `Authorization`, or a session that was opened with it | the token in `Authorization` |
//!
//! The name matters because a page of somebody else may make a browser on this machine ask for `evil.example`, which then
//! resolves to 127.0.0.1 (DNS rebinding). No browser adds `Authorization` to such a request by itself, so acts need no other
//! guard against forgery. Tokens are compared by their digests, in constant time.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, COOKIE, HOST};
use rustls::crypto::ring;
use sha2::{Digest, Sha256};

use crate::config::SecretString;

/// Name of the session's cookie.
const SESSION: &str = "statecast_console";
/// How long a session lasts.
pub(super) const SESSION_LENGTH: Duration = Duration::from_secs(12 * 3600);
/// Sessions at a time: the oldest makes room.
const SESSIONS_MAX: usize = 64;
/// Bytes of a session's secret.
const SESSION_BYTES: usize = 32;

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
    /// On loopback, by a name that is not loopback's.
    ForeignName,
    /// A token would be needed, and none is configured.
    NoTokenConfigured,
}

/// The token, and the sessions that were opened with it.
#[derive(Debug)]
pub(super) struct Auth {
    loopback: bool,
    token: Option<Fingerprint>,
    sessions: Mutex<VecDeque<(Fingerprint, Instant)>>,
}

impl Auth {
    /// `loopback`: the listener is in no other machine's reach.
    pub(super) fn new(loopback: bool, token: Option<&SecretString>) -> Auth {
        let token = token.map(|token| fingerprint(token.expose().as_bytes()));
        Auth { loopback, token, sessions: Mutex::default() }
    }

    /// May this request read?
    pub(super) fn reading(&self, headers: &HeaderMap, now: Instant) -> Access {
        match self.bearer(headers) {
            Some(true) => return Access::Granted,
            Some(false) => return Access::WrongToken,
            None => {}
        }
        if self.in_session(headers, now) {
            return Access::Granted;
        }
        match (self.loopback, loopback_name(headers)) {
            (true, true) => Access::Granted,
            (true, false) => Access::ForeignName,
            (false, _) => Access::TokenNeeded,
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

    /// Opens a session for who knows the token: the cookie. `None`: that is not the token, or this system has no randomness.
    pub(super) fn open(&self, token: &str, now: Instant) -> Option<String> {
        if !self.is_token(token) {
            return None;
        }
        let mut secret = [0; SESSION_BYTES];
        ring::default_provider().secure_random.fill(&mut secret).ok()?;
        let secret = hex(&secret);
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|(_, until)| *until > now);
        while sessions.len() >= SESSIONS_MAX {
            sessions.pop_front();
        }
        sessions.push_back((fingerprint(secret.as_bytes()), now + SESSION_LENGTH));
        Some(format!(
            "{SESSION}={secret}; HttpOnly; SameSite=Strict; Path=/; Max-Age={}",
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

    fn in_session(&self, headers: &HeaderMap, now: Instant) -> bool {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.split_once('='));
        let Some((_, secret)) = pairs.find(|(name, _)| name.trim() == SESSION) else { return false };
        let given = fingerprint(secret.trim().as_bytes());
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.iter().any(|(known, until)| *until > now && same(known, &given))
    }
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
        Auth::new(loopback, token.map(|token| SecretString::new(token.to_owned())).as_ref())
    }

    #[test]
    fn on_loopback_its_names_are_enough_to_read() {
        let auth = auth(true, None);
        let reads = |host| auth.reading(&headers(&[(HOST, host)]), Instant::now());
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
        assert_eq!(auth.reading(&HeaderMap::new(), Instant::now()), Access::ForeignName);
        let mut two = headers(&[(HOST, "localhost")]);
        two.append(HOST, "evil.example".parse().unwrap());
        assert_eq!(auth.reading(&two, Instant::now()), Access::ForeignName);
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
            let cookie = auth.open(TOKEN, Instant::now()).unwrap();
            let session = headers(&[(HOST, "localhost"), (COOKIE, cookie.split(';').next().unwrap())]);
            assert_eq!(auth.acting(&session), Access::TokenNeeded, "a session only reads");
        }
    }

    #[test]
    fn beyond_loopback_reading_needs_the_token_or_a_session() {
        let auth = auth(false, Some(TOKEN));
        let now = Instant::now();
        assert_eq!(auth.reading(&headers(&[(HOST, "localhost")]), now), Access::TokenNeeded);
        let bearer = |value: &str| auth.reading(&headers(&[(AUTHORIZATION, value)]), now);
        assert_eq!(bearer("Bearer 0123456789abcdef"), Access::Granted);
        assert_eq!(bearer("Bearer 0123456789abcdee"), Access::WrongToken);
        assert!(auth.open("0123456789abcdee", now).is_none());
        let cookie = auth.open(TOKEN, now).unwrap();
        assert!(cookie.contains("; HttpOnly; SameSite=Strict; ") && !cookie.contains(TOKEN));
        let with = |cookie: &str, at| auth.reading(&headers(&[(COOKIE, cookie)]), at);
        let pair = cookie.split(';').next().unwrap();
        assert_eq!(with(&format!("a=b; {pair}; c"), now), Access::Granted);
        assert_eq!(with(pair, now + SESSION_LENGTH), Access::TokenNeeded);
        assert_eq!(with("statecast_console=00", now), Access::TokenNeeded);
        for _ in 0..SESSIONS_MAX {
            auth.open(TOKEN, now).unwrap();
        }
        assert_eq!(with(pair, now), Access::TokenNeeded, "the oldest made room");
        assert_eq!(auth.sessions.lock().unwrap().len(), SESSIONS_MAX);
    }

    #[test]
    fn nothing_prints_the_token() {
        assert!(!format!("{:?}", auth(true, Some(TOKEN))).contains(TOKEN));
    }
}
