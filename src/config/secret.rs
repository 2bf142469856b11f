//! Text that never prints: URLs with passwords, tokens.

use std::fmt;

use secrecy::ExposeSecret;

/// A string whose `Debug` and `Display` hide it.
#[derive(Clone)]
pub struct SecretString(secrecy::SecretString);

impl SecretString {
    /// Hides `text`.
    pub fn new(text: String) -> Self {
        SecretString(text.into())
    }

    /// The text itself: for the client library, never for a log.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for SecretString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for SecretString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
