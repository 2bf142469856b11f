//! Quoting for the replication grammar, which is not SQL's: a string literal knows no backslash and no `E''`, so the
//! escapes of the SQL client do not fit. <https://www.postgresql.org/docs/current/protocol-replication.html>

use super::error::ReplicationError;

/// `NAMEDATALEN - 1`.
const NAME_MAX_BYTES: usize = 63;

/// A slot's name within double quotes. The server's own rule is checked here: its replication grammar (tried: version 15)
/// knows no doubled quote, and cuts a long name without a word.
pub(super) fn slot(name: &str) -> Result<String, ReplicationError> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if name.is_empty() || name.len() > NAME_MAX_BYTES || !name.bytes().all(fits) {
        let rule = "a replication slot's name is 1 to 63 of a-z, 0-9 and _";
        return Err(ReplicationError::Name { what: "slot", name: name.to_owned(), rule });
    }
    Ok(format!("\"{name}\""))
}

/// `'text'`, with single quotes doubled; backslashes stay as they are.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A list of one publication, as `publication_names` takes it: identifiers, which do know the doubled quote, within a
/// literal.
pub(super) fn publication_names(publication: &str) -> Result<String, ReplicationError> {
    if publication.is_empty() || publication.len() > NAME_MAX_BYTES || publication.contains('\0') {
        let rule = "a publication's name is 1 to 63 bytes without NUL";
        return Err(ReplicationError::Name { what: "publication", name: publication.to_owned(), rule });
    }
    Ok(literal(&format!("\"{}\"", publication.replace('"', "\"\""))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_names() {
        assert_eq!(slot("statecast_7").unwrap(), "\"statecast_7\"");
        for name in ["", "A", "a b", "a\"b", "ä", "a\0", r"\", &"x".repeat(64)] {
            assert!(slot(name).is_err(), "{name}");
        }
        assert_eq!(literal(r"it's \' "), r"'it''s \'' '");
        assert_eq!(publication_names("o'b,\"x\"\\").unwrap(), "'\"o''b,\"\"x\"\"\\\"'");
        for name in ["", "a\0b", &"x".repeat(64)] {
            assert!(publication_names(name).is_err(), "{name}");
        }
    }
}
