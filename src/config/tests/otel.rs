//! `[otel]`: with the feature its values, without it what to do.

use super::*;

const ENDPOINT: &str = "STATECAST_OTEL__ENDPOINT";

#[test]
fn nothing_is_traced_unless_an_endpoint_says_where_to() {
    assert!(from_env(&[]).unwrap().otel.is_none());
    let config = from_env(&[("STATECAST_OTEL__SAMPLE", "0.5"), ("STATECAST_OTEL__TIMEOUT", "1s")]).unwrap();
    assert!(config.otel.is_none());
    for wrong in ["1.1", "-0.1", "NaN", "inf", "half"] {
        let message = one_mistake("STATECAST_OTEL__SAMPLE", wrong);
        assert!(message.ends_with("takes a fraction from 0 to 1, such as 0.01"), "{message}");
    }
}

#[cfg(not(feature = "otel"))]
#[test]
fn without_the_feature_an_endpoint_is_a_mistake_with_a_remedy() {
    let message = one_mistake(ENDPOINT, "http://hunter2:4318");
    assert!(message.contains("`cargo build --release --features otel`"), "{message}");
    assert!(message.contains(ENDPOINT) && !message.contains("hunter2"), "{message}");
}

#[cfg(feature = "otel")]
#[test]
fn endpoints_as_people_write_them() {
    let endpoint = |url: &str| from_env(&[(ENDPOINT, url)]).unwrap().otel.unwrap().endpoint;
    for (url, at, path, over_tls) in [
        ("http://collector:4318", "collector:4318", "/v1/traces", false),
        ("http://collector:4318/", "collector:4318", "/v1/traces", false),
        ("https://otlp.example.com/a/b", "otlp.example.com:443", "/a/b/v1/traces", true),
        ("http://c/v1/traces", "c:80", "/v1/traces", false),
        ("http://[::1]:4318", "[::1]:4318", "/v1/traces", false),
    ] {
        let found = endpoint(url);
        assert_eq!((found.at().as_str(), found.path.expose(), found.over_tls), (at, path, over_tls), "{url}");
    }
    for wrong in [
        "hunter2",
        "collector:4318",
        "grpc://hunter2:4317",
        "http://",
        "http://:4318",
        "http://c:0",
        "http://c:65536",
        "http://c:hunter2",
        "http://[hunter2]:1",
        "http://[::1",
        "http://a:hunter2@c:4318",
        "http://c/?hunter2",
        "http://c/hunter2 x",
        "http://c/#hunter2",
        "http://hunter2\u{e4}",
    ] {
        let message = one_mistake(ENDPOINT, wrong);
        assert!(message.contains(ENDPOINT) && !message.contains("hunter2"), "{wrong}: {message}");
    }
}

#[cfg(feature = "otel")]
#[test]
fn headers_are_read_line_by_line_and_never_printed() {
    let file = write("headers", "Authorization: Bearer hunter2: x\n\n  x-team : a b \n");
    let with = |value: &str| from_env(&[(ENDPOINT, "http://c"), ("STATECAST_OTEL__HEADERS", value)]);
    let path = file.to_str().unwrap();
    let config = from_env(&[(ENDPOINT, "http://c"), ("STATECAST_OTEL__HEADERS_FILE", path)]).unwrap();
    let read = config.otel.as_ref().unwrap().headers.iter();
    let read: Vec<_> = read.map(|(name, value)| (name.as_str(), value.expose())).collect();
    assert_eq!(read, [("authorization", "Bearer hunter2: x"), ("x-team", "a b")]);
    assert!(!format!("{config:?}").contains("hunter2"));
    std::fs::remove_file(&file).unwrap();
    for wrong in
        ["hunter2", "a b: hunter2", ": hunter2", "a:", "a: hunter2\u{e4}", "Host: hunter2", "a: \u{7}hunter2"]
    {
        let all = with(&format!("ok: yes\n{wrong}")).unwrap_err().0;
        assert_eq!(all.len(), 1, "{wrong}: {all:?}");
        assert!(all[0].contains(" line 2: ") && !all[0].contains("hunter2"), "{all:?}");
    }
    let many: String = (0..33).map(|n| format!("h{n}: x\n")).collect();
    assert!(with(&many).unwrap_err().0[0].contains("more than 32 headers"));
}

#[cfg(feature = "otel")]
#[test]
fn tls_and_url_agree() {
    let with = |mode, url| from_env(&[(ENDPOINT, url), ("STATECAST_OTEL__TLS__MODE", mode)]);
    assert!(with("verify", "http://c").unwrap_err().0[0].ends_with("write https://"));
    assert!(with("disable", "https://c").unwrap_err().0[0].ends_with("keep one"));
    assert!(with("verify", "https://c").is_ok() && with("disable", "http://c").is_ok());
}
