//! Secrets: from files, and in no output.

use std::path::Path;

use super::*;

#[test]
fn secrets_from_files() {
    let (pg, mq) = (write("pg", &format!("{PG}\n")), write("mq", &format!("\n{MQ}\namqp://two\n")));
    let env = [
        ("STATECAST_POSTGRES__URL_FILE".to_owned(), pg.display().to_string()),
        ("STATECAST_RABBITMQ__URLS_FILE".to_owned(), mq.display().to_string()),
    ];
    let config = load(None, env.clone().into_iter()).unwrap();
    assert_eq!(config.postgres.url.expose(), PG);
    assert_eq!(config.rabbitmq.urls.len(), 2);
    let both = env.into_iter().chain([("STATECAST_POSTGRES__URL".to_owned(), PG.to_owned())]);
    let errors = load(None, both).unwrap_err().0;
    assert_eq!(errors.len(), 1);
    assert!(errors[0].contains("are both given; keep one") && errors[0].contains("_FILE"), "{errors:?}");
    std::fs::write(&pg, " \n").unwrap();
    let empty = [("STATECAST_RABBITMQ__MANAGEMENT_URL_FILE", pg.to_str().unwrap())];
    assert!(mistakes(&empty)[0].ends_with("is empty"));
    assert!(
        mistakes(&[("STATECAST_RABBITMQ__MANAGEMENT_URL_FILE", "/nonexistent")])[0]
            .contains("cannot be read")
    );
    assert!(mistakes(&[("STATECAST_RABBITMQ__MANAGEMENT_URL_FILE", "/")])[0].contains("is a directory"));
    std::fs::remove_file(pg).unwrap();
    std::fs::remove_file(mq).unwrap();
}

#[test]
fn secrets_never_print() {
    let printed = format!(
        "{:?}",
        from_env(&[("STATECAST_RABBITMQ__MANAGEMENT_URL", "http://u:hunter2@mq:15672")]).unwrap()
    );
    assert!(!printed.contains("hunter2"), "{printed}");
    let postgres = [
        "postgres://app:hunter2@",
        "postgres://app:hunter2/x@db/shop?hunter2=1",
        "postgres://app:x@db:hunter2/shop",
        "host=db password=a hunter2=3",
        "host=db password='hunter2",
        "host=db password=hun hunter2",
        "mysql://app:hunter2@db",
        "postgres://app:hunter2@db/shop?sslmode=verify-full",
        "postgres://app:hunter2@db/shop?sslrootcert=hunter2",
        "password=hunter2",
        "hunter2",
    ];
    for url in postgres {
        let message = one_mistake("STATECAST_POSTGRES__URL", url);
        assert!(!message.contains("hunter2"), "{message}");
        assert!(message.contains("STATECAST_POSTGRES__URL"), "{message}");
    }
    assert!(one_mistake("STATECAST_POSTGRES__URL", postgres[7]).contains("sslmode (it knows disable"));
    assert!(one_mistake("STATECAST_POSTGRES__URL", postgres[8]).contains("postgres.tls"));
    for url in [
        "hunter2",
        "http://a:hunter2@mq",
        "amqp://a:hunter2@mq:hunter2/%2f",
        "amqp://a:hunter2@/%2f",
        "amqp://a:hunter2@[::1]/%2f",
        "amqp://a:hunter2@mq/%2f?heartbeat=hunter2",
        "amqp:hunter2",
        "a:hunter2@mq",
    ] {
        let message = one_mistake("STATECAST_RABBITMQ__URLS", url);
        assert!(!message.contains("hunter2"), "{message}");
    }
    for url in ["hunter2", "ftp://hunter2", "http://u:hunter2@", "http://u:hunter2@mq x"] {
        assert!(!one_mistake("STATECAST_RABBITMQ__MANAGEMENT_URL", url).contains("hunter2"));
    }
}

#[test]
fn a_broken_file_does_not_print_its_lines() {
    for (name, text) in [
        ("a.toml", "[postgres]\nurl = \"postgres://u:hunter2@h/d\nname = 1"),
        ("a.toml", "[postgres]\nurl = postgres://u:hunter2@h/d"),
        ("a.toml", "url hunter2"),
        ("a.toml", "hunter2 = 1\nhunter2 = 2"),
        ("a.toml", "lanes = 99999999999999999999"),
        ("a.yaml", "postgres: url: hunter2"),
        ("a.yaml", "postgres:\n  url: {{hunter2: x}}"),
        ("a.yaml", "hunter2"),
        ("a.yaml", "a: 1\n---\nb: hunter2"),
        ("a.yaml", "- hunter2"),
        ("a.yaml", "url: *hunter2"),
        ("a.json", "{}"),
    ] {
        let errors = from_file(name, text, &urls()).unwrap_err().0;
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(!errors[0].contains("hunter2"), "{errors:?}");
        assert!(errors[0].contains(&format!("-{name}: ")), "{errors:?}");
    }
    let message = &from_file("a.toml", "a =", &[]).unwrap_err().0[0];
    assert!(message.contains("TOML parse error at line 1, column 4: "), "{message}");
    let missing = load(Some(Path::new("/nonexistent.toml")), std::iter::empty()).unwrap_err().0;
    assert!(missing[0].starts_with("/nonexistent.toml: cannot be read: No such file"), "{missing:?}");
}

#[test]
fn a_console_beyond_loopback_needs_a_token() {
    let listen = |listen| ("STATECAST_CONSOLE__LISTEN", listen);
    let token = |token| ("STATECAST_CONSOLE__TOKEN", token);
    assert!(from_env(&[listen("off")]).unwrap().console.listen.is_none());
    for loopback in ["127.0.0.1:0", "127.9.9.9:80", "[::1]:9466"] {
        assert!(from_env(&[listen(loopback)]).unwrap().console.listen.is_some());
    }
    for open in ["0.0.0.0:9466", "[::]:9466", "10.0.0.1:1"] {
        let message = one_mistake("STATECAST_CONSOLE__LISTEN", open);
        assert!(message.contains("set `console.token_file`, or listen on 127.0.0.1:9466"), "{message}");
        assert!(from_env(&[listen(open), token("0123456789abcdef")]).is_ok());
    }
    for wrong in ["", "on", "9466", "localhost:9466"].into_iter().filter(|text| !text.is_empty()) {
        assert!(one_mistake("STATECAST_CONSOLE__LISTEN", wrong).contains("or off"), "{wrong}");
    }
    for wrong in ["hunter2", "hunter2 hunter2 hunter2", "hunter2-hunter2-\u{e4}"] {
        let all = mistakes(&[listen("0.0.0.0:9466"), token(wrong)]);
        assert_eq!(all.len(), 1, "the token alone is to blame: {all:?}");
        assert!(!all[0].contains("hunter2") && all[0].contains("16 to 1024"), "{all:?}");
    }
    let printed = format!("{:?}", from_env(&[token("hunter2-hunter2-hunter2")]).unwrap());
    assert!(!printed.contains("hunter2-hunter2"), "{printed}");
}
