//! Startup and login: trust, cleartext, MD5, SCRAM-SHA-256 and SCRAM-SHA-256-PLUS.
//!
//! <https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP>

use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::frontend;

use super::error::ReplicationError;
use super::framing::{self, Authentication};
use super::wire::Wire;

/// Who we are.
pub(super) struct Login<'a> {
    pub(super) user: &'a str,
    pub(super) password: Option<&'a [u8]>,
    /// The hash of the server's certificate, where there is TLS and its signature has one.
    pub(super) end_point: Option<Vec<u8>>,
    /// `channel_binding=require` in the URL.
    pub(super) binding_required: bool,
}

/// What the server told about this connection.
#[derive(Debug, Default)]
pub(super) struct Session {
    pub(super) pid: i32,
    /// `server_version` as it was given.
    pub(super) version: String,
}

/// How far the proof of identity has come.
enum Proof {
    /// Nothing was asked for.
    None,
    /// The password was sent, plain or hashed.
    Password,
    Scram {
        scram: Box<ScramSha256>,
        bound: bool,
        state: ScramState,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ScramState {
    First,
    Proved,
    /// The server has proved that it knows the password, too.
    Verified,
}

/// From the first byte to "ready for query".
pub(super) async fn start(
    wire: &mut Wire,
    login: &Login<'_>,
    parameters: &[(&str, &str)],
) -> Result<Session, ReplicationError> {
    frontend::startup_message(parameters.iter().copied(), wire.outbox()).map_err(|_| {
        let rule = "user, database and options in postgres.url must not hold a NUL character";
        ReplicationError::Name { what: "login of user", name: login.user.to_owned(), rule }
    })?;
    authenticate(wire, login).await?;
    let mut session = Session::default();
    loop {
        let message = wire.message().await?;
        match message.tag {
            b'Z' => return Ok(session),
            b'K' => session.pid = framing::backend_pid(&message)?,
            b'S' => {
                let (name, value) = framing::parameter(&message)?;
                if name == "server_version" {
                    session.version = value;
                }
            }
            b'N' => tracing::debug!(notice = %framing::db_error(&message)?, "PostgreSQL, at login"),
            b'E' => return Err(ReplicationError::Db(Box::new(framing::db_error(&message)?))),
            _ => return Err(message.unexpected("after the login")),
        }
    }
}

async fn authenticate(wire: &mut Wire, login: &Login<'_>) -> Result<(), ReplicationError> {
    let mut proof = Proof::None;
    loop {
        let message = wire.message().await?;
        match message.tag {
            b'R' => {}
            b'N' => continue,
            b'E' => return Err(ReplicationError::Db(Box::new(framing::db_error(&message)?))),
            _ => return Err(message.unexpected("during the login")),
        }
        let request = framing::authentication(&message)?;
        if request == Authentication::Ok {
            return proof.accepted(login).map_err(|reason| failed(wire, reason));
        }
        proof = proof.answer(wire, login, &request).map_err(|reason| failed(wire, &reason))?;
    }
}

fn failed(wire: &Wire, reason: &str) -> ReplicationError {
    ReplicationError::Authentication { at: wire.at().to_owned(), reason: reason.to_owned() }
}

impl Proof {
    /// The server lets us in: has it given what we insist on?
    fn accepted(&self, login: &Login<'_>) -> Result<(), &'static str> {
        match self {
            Proof::Scram { state, .. } if *state != ScramState::Verified => {
                Err("the server did not prove that it knows the password")
            }
            Proof::Scram { bound: true, .. } => Ok(()),
            _ if login.binding_required => Err(UNBOUND),
            _ => Ok(()),
        }
    }

    /// Answers one request of the server.
    fn answer(self, wire: &mut Wire, login: &Login<'_>, request: &Authentication) -> Result<Proof, String> {
        match (self, request) {
            (Proof::None, Authentication::Cleartext) => {
                send_password(wire, login, <[u8]>::to_vec)?;
                Ok(Proof::Password)
            }
            (Proof::None, Authentication::Md5(salt)) => {
                let hashed = |password: &[u8]| md5_hash(login.user.as_bytes(), password, *salt).into_bytes();
                send_password(wire, login, hashed)?;
                Ok(Proof::Password)
            }
            (Proof::None, Authentication::Sasl(mechanisms)) => begin_scram(wire, login, mechanisms),
            (
                Proof::Scram { mut scram, bound, state: ScramState::First },
                Authentication::SaslContinue(data),
            ) => {
                scram.update(data).map_err(|error| error.to_string())?;
                frontend::sasl_response(scram.message(), wire.outbox()).map_err(|error| error.to_string())?;
                Ok(Proof::Scram { scram, bound, state: ScramState::Proved })
            }
            (
                Proof::Scram { mut scram, bound, state: ScramState::Proved },
                Authentication::SaslFinal(data),
            ) => {
                scram.finish(data).map_err(|error| error.to_string())?;
                Ok(Proof::Scram { scram, bound, state: ScramState::Verified })
            }
            (_, Authentication::Other(number)) => Err(format!(
                "it asks for authentication method {number} (GSSAPI or the like): allow scram-sha-256 in pg_hba.conf"
            )),
            _ => Err("its requests come in a wrong order".to_owned()),
        }
    }
}

const UNBOUND: &str = "channel_binding=require, but the server does not bind the login to the TLS connection";
const NO_PASSWORD: &str = "it asks for a password and postgres.url has none";

fn send_password(
    wire: &mut Wire,
    login: &Login<'_>,
    encode: impl Fn(&[u8]) -> Vec<u8>,
) -> Result<(), String> {
    if login.binding_required {
        return Err(UNBOUND.to_owned());
    }
    let password = login.password.ok_or(NO_PASSWORD)?;
    // The error says only that there is a NUL in it.
    frontend::password_message(&encode(password), wire.outbox()).map_err(|error| error.to_string())
}

fn begin_scram(wire: &mut Wire, login: &Login<'_>, mechanisms: &[String]) -> Result<Proof, String> {
    let offers = |name: &str| mechanisms.iter().any(|offered| offered == name);
    let (binding, mechanism) = match &login.end_point {
        Some(hash) if offers(SCRAM_SHA_256_PLUS) => {
            (ChannelBinding::tls_server_end_point(hash.clone()), SCRAM_SHA_256_PLUS)
        }
        // Tells the server that we could have, so that it notices if somebody has removed its offer.
        Some(_) if offers(SCRAM_SHA_256) => (ChannelBinding::unrequested(), SCRAM_SHA_256),
        None if offers(SCRAM_SHA_256) => (ChannelBinding::unsupported(), SCRAM_SHA_256),
        _ => return Err("it offers no SASL mechanism that is known here".to_owned()),
    };
    let bound = mechanism == SCRAM_SHA_256_PLUS;
    if login.binding_required && !bound {
        return Err(UNBOUND.to_owned());
    }
    let password = login.password.ok_or(NO_PASSWORD)?;
    let scram = Box::new(ScramSha256::new(password, binding));
    frontend::sasl_initial_response(mechanism, scram.message(), wire.outbox())
        .map_err(|error| error.to_string())?;
    Ok(Proof::Scram { scram, bound, state: ScramState::First })
}
