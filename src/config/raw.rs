//! The serde shape of files and environment.
