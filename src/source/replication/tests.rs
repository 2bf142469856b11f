//! Framing on any bytes, and the client against servers that are played here.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;
use tokio_postgres::types::PgLsn;

use super::authentication::{Login, start};
use super::framing::{Message, Splitter};
use super::*;

const SOON: Duration = Duration::from_millis(20);
const LIMIT: Duration = Duration::from_secs(5);

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.put_u32(4 + u32::try_from(body.len()).unwrap());
    bytes.extend_from_slice(body);
    bytes
}

fn lsn(value: u64) -> PgLsn {
    PgLsn::from(value)
}

fn xlog(at: u64, data: &[u8]) -> Frame {
    Frame::XLogData {
        wal_start: lsn(at),
        wal_end: lsn(at + 1),
        sent_us: 7,
        data: Bytes::copy_from_slice(data),
    }
}

fn encode(frame: &Frame) -> Vec<u8> {
    let mut body = BytesMut::new();
    match frame {
        Frame::XLogData { wal_start, wal_end, sent_us, data } => {
            body.put_u8(b'w');
            body.put_u64((*wal_start).into());
            body.put_u64((*wal_end).into());
            body.put_i64(*sent_us);
            body.put_slice(data);
        }
        Frame::Keepalive { wal_end, sent_us, reply_requested } => {
            body.put_u8(b'k');
            body.put_u64((*wal_end).into());
            body.put_i64(*sent_us);
            body.put_u8(u8::from(*reply_requested));
        }
        Frame::End => return message(b'c', &[]),
    }
    message(b'd', &body)
}

fn error_response(code: &str) -> Vec<u8> {
    let fields = format!("SFATAL\0VFATAL\0C{code}\0Mgoing away\0Dwhy\0Hwhat to do\0\0");
    message(b'E', fields.as_bytes())
}

/// Feeds `pieces` one after another and takes out what is whole after each.
fn split<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    limit: usize,
) -> Result<Vec<Message>, ReplicationError> {
    let mut splitter = Splitter::new(limit);
    let mut messages = Vec::new();
    for piece in pieces {
        splitter.room()?.extend_from_slice(piece);
        while let Some(message) = splitter.next()? {
            messages.push(message);
        }
    }
    Ok(messages)
}

fn frames(messages: &[Message]) -> Vec<Frame> {
    messages.iter().map(|message| framing::frame(message).unwrap()).collect()
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let data = proptest::collection::vec(any::<u8>(), 0..200);
    prop_oneof![
        (0..u64::MAX, data).prop_map(|(at, data)| xlog(at, &data)),
        (any::<u64>(), any::<i64>(), any::<bool>()).prop_map(|(end, sent_us, reply_requested)| {
            Frame::Keepalive { wal_end: lsn(end), sent_us, reply_requested }
        }),
    ]
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), size in 1_usize..50) {
        let _ = split(bytes.chunks(size), 1 << 16);
    }

    /// Every reader of every kind of message, on bodies that may stop anywhere.
    #[test]
    fn arbitrary_bodies_never_panic(tag in any::<u8>(), kind in 0_u32..13, body in proptest::collection::vec(any::<u8>(), 0..100)) {
        let mut typed = kind.to_be_bytes().to_vec();
        typed.extend_from_slice(&body);
        for body in [body, typed] {
            let message = Message { tag, body: Bytes::from(body), offset: 3 };
            let _ = framing::frame(&message);
            let _ = framing::authentication(&message);
            let _ = framing::backend_pid(&message);
            let _ = framing::parameter(&message);
            let _ = framing::row(&message);
            let _ = framing::db_error(&message);
            let _ = stream::aside(&message);
        }
    }

    #[test]
    fn frames_survive_any_split(sent in proptest::collection::vec(any_frame(), 1..8), size in 1_usize..100) {
        let bytes: Vec<u8> = sent.iter().flat_map(encode).collect();
        prop_assert_eq!(frames(&split(bytes.chunks(size), 1 << 16).unwrap()), sent);
    }

    #[test]
    fn truncated_frames_are_errors(sent in any_frame(), keep in 0.0..1.0_f64) {
        let whole = encode(&sent);
        let header = match &sent { Frame::XLogData { .. } => 25, _ => 18 };
        let keep = (keep * f64::from(header)) as usize;
        let cut = message(b'd', &whole[5..5 + keep]);
        let messages = split([&cut[..]], 1 << 16).unwrap();
        let malformed = matches!(framing::frame(&messages[0]), Err(ReplicationError::Malformed { .. }));
        prop_assert!(malformed, "kept {}", keep);
    }
}

#[test]
fn frames_survive_a_split_at_every_byte() {
    let keepalive = Frame::Keepalive { wal_end: lsn(9), sent_us: -1, reply_requested: true };
    let sent = [xlog(1, b"one"), keepalive, xlog(2, b""), xlog(3, &[0xff; 70])];
    let bytes: Vec<u8> = sent.iter().flat_map(encode).collect();
    for at in 0..=bytes.len() {
        let (head, tail) = bytes.split_at(at);
        assert_eq!(frames(&split([head, tail], 1 << 16).unwrap()), sent, "at {at}");
    }
}

#[test]
fn limits_and_lengths_name_the_byte() {
    let mut bytes = message(b'd', &[0; 10]);
    bytes.extend_from_slice(&message(b'd', &[0; 100]));
    let Err(ReplicationError::TooLarge { bytes: 105, limit: 50, at }) = split([&bytes[..]], 50) else {
        panic!()
    };
    assert_eq!(at.offset, 15);
    let Err(ReplicationError::Malformed { at, .. }) =
        split([&[b'Z', 0, 0, 0, 5, b'I', b'd', 0, 0, 0, 3][..]], 50)
    else {
        panic!()
    };
    assert_eq!(at.offset, 6);
}

#[test]
fn nothing_is_copied_and_big_buffers_go() {
    let mut splitter = Splitter::new(MESSAGE_MAX_BYTES);
    splitter.room().unwrap().extend_from_slice(&encode(&xlog(1, b"first")));
    splitter.room().unwrap().extend_from_slice(&encode(&xlog(2, b"second")));
    let (one, two) = (splitter.next().unwrap().unwrap(), splitter.next().unwrap().unwrap());
    // The second message's body follows the first one's in memory, a header further.
    assert_eq!(one.body.as_ptr() as usize + one.body.len() + 5, two.body.as_ptr() as usize);
    let big = encode(&xlog(3, &vec![1; 8 << 20]));
    splitter.room().unwrap().extend_from_slice(&big[..100]);
    let room = splitter.room().unwrap();
    assert!(room.capacity() >= big.len());
    room.extend_from_slice(&big[100..]);
    drop(splitter.next().unwrap().unwrap());
    assert!(splitter.room().unwrap().capacity() < 1 << 20);
}

fn played(capacity: usize) -> (Wire, DuplexStream) {
    let (client, server) = duplex(capacity);
    (Wire::new(Box::new(client), "played:1".to_owned(), 1 << 16), server)
}

#[tokio::test]
async fn giving_up_next_loses_nothing() {
    let (wire, mut server) = played(1 << 16);
    let mut stream = Stream::new(wire, 1);
    let sent = [xlog(5, b"abc"), xlog(6, b"defg")];
    let bytes: Vec<u8> = sent.iter().flat_map(encode).collect();
    let mut got = Vec::new();
    for byte in bytes {
        server.write_all(&[byte]).await.unwrap();
        // Each poll reads what is there, and is dropped.
        tokio::select! {
            biased;
            frame = stream.next() => got.push(frame.unwrap()),
            () = tokio::task::yield_now() => {}
        }
    }
    assert_eq!(got, sent);
}

#[tokio::test]
async fn a_half_written_status_is_completed_and_only_the_latest_follows() {
    let (wire, mut server) = played(10);
    let mut stream = Stream::new(wire, 1);
    for value in [1, 9, 4] {
        let reply = value == 9;
        assert!(timeout(SOON, stream.send_status(Feedback::all(lsn(value)), reply)).await.is_err());
    }
    let mut bytes = [0; 78];
    let reading = server.read_exact(&mut bytes);
    tokio::select! {
        read = reading => { read.unwrap(); }
        frame = stream.next() => panic!("{frame:?}"),
    }
    let flushed = |status: &[u8]| u64::from_be_bytes(status[14..22].try_into().unwrap());
    let (first, second) = bytes.split_at(39);
    for status in [first, second] {
        assert_eq!(status[..6], [b'd', 0, 0, 0, 38, b'r']);
    }
    // It never goes back, and the wish for a reply is not lost with the status it replaces.
    assert_eq!((flushed(first), first[38]), (1, 0));
    assert_eq!((flushed(second), second[38]), (9, 1));
}

#[tokio::test]
async fn errors_in_a_stream_keep_code_and_position() {
    let (wire, mut server) = played(1 << 16);
    let mut stream = Stream::new(wire, 1);
    let mut bytes = message(b'N', b"SNOTICE\0C00000\0Mhello\0\0");
    bytes.extend(message(b'S', b"TimeZone\0UTC\0"));
    bytes.extend(encode(&xlog(0x16_0000_0010, b"x")));
    let before = bytes.len() as u64;
    bytes.extend(message(0x02, b""));
    server.write_all(&bytes).await.unwrap();
    assert_eq!(stream.next().await.unwrap(), xlog(0x16_0000_0010, b"x"));
    let error = stream.next().await.unwrap_err();
    let ReplicationError::Malformed { at, .. } = &error else { panic!("{error}") };
    assert_eq!((at.offset, at.wal), (before, Some(lsn(0x16_0000_0010))));
    let said = "not the replication protocol: unexpected message 0x02 in a stream, at byte 77 of the connection, after WAL position 16/10";
    assert_eq!(error.to_string(), said);
    assert!(matches!(stream.next().await, Err(ReplicationError::Unusable)));

    let (wire, mut server) = played(1 << 16);
    let mut stream = Stream::new(wire, 1);
    server.write_all(&error_response("57P01")).await.unwrap();
    drop(server);
    // The failed write does not hide the server's last words.
    let _ = stream.send_status(Feedback::all(lsn(1)), false).await;
    let error = stream.next().await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "57P01");
    assert_eq!(error.to_string(), "PostgreSQL: going away (SQLSTATE 57P01); why; hint: what to do");
}

#[tokio::test]
async fn finish_says_the_last_status_then_copy_done() {
    let (wire, mut server) = played(1 << 16);
    let stream = Stream::new(wire, 1);
    let mut replies = encode(&xlog(1, b"late"));
    for (tag, body) in [(b'c', &b""[..]), (b'C', b"COPY 0\0"), (b'Z', b"I")] {
        replies.extend(message(tag, body));
    }
    server.write_all(&replies).await.unwrap();
    stream.finish(Feedback::all(lsn(77)), LIMIT).await.unwrap();
    let mut said = Vec::new();
    server.read_to_end(&mut said).await.unwrap();
    assert_eq!(said[14..22], 77_u64.to_be_bytes());
    assert_eq!(said[39..], [b'c', 0, 0, 0, 4, b'X', 0, 0, 0, 4]);

    // A server that goes away after the end, and one that says nothing.
    let (wire, mut server) = played(1 << 16);
    server.write_all(&message(b'C', b"COPY 0\0")).await.unwrap();
    let mut stream = Stream::new(wire, 1);
    assert_eq!(stream.next().await.unwrap(), Frame::End);
    assert_eq!(stream.next().await.unwrap(), Frame::End);
    drop(server);
    stream.finish(Feedback::all(lsn(1)), LIMIT).await.unwrap();
    let (wire, _server) = played(1 << 16);
    let silent = Stream::new(wire, 1).finish(Feedback::all(lsn(1)), SOON).await;
    assert!(matches!(silent, Err(ReplicationError::Timeout { .. })), "{silent:?}");
}

/// The login as the server's messages drive it.
async fn login(
    password: Option<&[u8]>,
    end_point: Option<Vec<u8>>,
    binding_required: bool,
    said: &[Vec<u8>],
) -> (Result<i32, String>, Vec<u8>) {
    let (mut wire, mut server) = played(1 << 17);
    let login = Login { user: "u", password, end_point, binding_required };
    let starting = async {
        let session = timeout(LIMIT, start(&mut wire, &login, &[("user", "u")])).await.unwrap();
        drop(wire);
        session
    };
    let serving = async {
        let mut sent = Vec::new();
        for message in said {
            // As a server does: after it has heard something, or no more is to come.
            let _ = timeout(SOON, server.read_buf(&mut sent)).await;
            let _ = server.write_all(message).await;
        }
        server.read_to_end(&mut sent).await.unwrap();
        sent
    };
    let (session, sent) = tokio::join!(starting, serving);
    (session.map(|session| session.pid).map_err(|error| error.to_string()), sent)
}

fn sasl(kind: u32, rest: &[u8]) -> Vec<u8> {
    message(b'R', &[&kind.to_be_bytes()[..], rest].concat())
}

#[tokio::test]
async fn a_login_gives_nothing_away() {
    let (ok, ready) = (sasl(0, b""), message(b'Z', b"I"));
    let pid = message(b'K', &[0, 0, 1, 2, 9, 9, 9, 9]);
    let (done, _) = login(None, None, false, &[ok.clone(), pid, ready.clone()]).await;
    assert_eq!(done.unwrap(), 258);
    let wanted = [
        // It lets us in without proving that it knows the password.
        (sasl(10, b"SCRAM-SHA-256\0\0"), false, "did not prove"),
        (sasl(10, b"SCRAM-SHA-256\0\0"), true, "channel_binding=require"),
        (sasl(10, b"SOMETHING\0\0"), false, "no SASL mechanism"),
        (sasl(3, b""), true, "channel_binding=require"),
        (sasl(12, b"v=abc"), false, "wrong order"),
        (sasl(7, b""), false, "method 7"),
        (sasl(10, b"SCRAM"), false, "ends too early"),
        (message(b'd', &vec![0; 1 << 17]), false, "more than the 65536 allowed"),
        (message(b'?', b""), false, "unexpected message '?'"),
        (error_response("28P01"), false, "28P01"),
    ];
    for (request, required, reason) in wanted {
        let request = if request.len() > 1 << 17 { request[..100].to_vec() } else { request };
        let (result, sent) =
            login(Some(b"secret"), None, required, &[request, ok.clone(), ready.clone()]).await;
        let error = result.unwrap_err();
        assert!(error.contains(reason), "{reason}: {error}");
        assert!(!error.contains("secret") && !sent.windows(6).any(|bytes| bytes == b"secret"), "{error}");
    }
    let (result, _) = login(None, None, false, &[sasl(3, b""), ok.clone()]).await;
    assert!(result.unwrap_err().contains("postgres.url has none"));
    let forged = [sasl(10, b"SCRAM-SHA-256\0SCRAM-SHA-256-PLUS\0\0"), sasl(11, b"r=other,s=QUJD,i=4096"), ok];
    let (result, sent) = login(Some(b"secret"), Some(vec![1; 32]), true, &forged).await;
    assert!(result.unwrap_err().contains("invalid nonce"));
    assert!(sent.windows(24).any(|bytes| bytes == b"p=tls-server-end-point,,"), "bound");
}
