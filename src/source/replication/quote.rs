//! Quoting for the replication grammar, which is not SQL's: a string literal knows no backslash and no `E''`, so the
//! escapes of the SQL client do not fit. <https://www.postgresql.org/docs/current/protocol-replication.html>

use super::error::ReplicationError;

/// `"name"`, with double quotes doubled.
pub(super) fn identifier(what: &'static str, name: &str) -> Result<String, ReplicationError> {
    if name.is_empty() || name.contains('\0') {
        return Err(ReplicationError::Name { what, name: name.to_owned() });
    }
    Ok(format!("\"{}\"", name.replace('"', "\"\"")))
}

/// `'text'`, with single quotes doubled; backslashes stay as they are.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A list of one publication, as `publication_names` takes it: identifiers within a literal.
pub(super) fn publication_names(publication: &str) -> Result<String, ReplicationError> {
    Ok(literal(&identifier("publication", publication)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_names() {
        assert_eq!(identifier("slot", "a\"; DROP_").unwrap(), "\"a\"\"; DROP_\"");
        assert_eq!(literal(r"it's \' "), r"'it''s \'' '");
        assert_eq!(publication_names("o'b,\"x\"\\").unwrap(), "'\"o''b,\"\"x\"\"\\\"'");
        assert!(identifier("slot", "").is_err());
        assert!(publication_names("a\0b").is_err());
    }
}
