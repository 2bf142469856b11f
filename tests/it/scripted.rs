//! A broker that answers as it is told: as much of AMQP 0-9-1 as a publisher speaks, for what a real broker does only
//! when its timing is right.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xCE;
const FRAME_MAX: u32 = 131_072;

/// A message that a publisher sent. Its delivery tag is its place among those of its connection, from 1.
#[derive(Clone, Debug)]
pub struct Published {
    pub tag: u64,
    pub routing_key: String,
    channel: u16,
    header: Vec<u8>,
    body: Vec<u8>,
}

/// The broker; dropped, its connections end.
#[derive(Debug)]
pub struct Scripted {
    pub url: String,
    /// In the order of arrival, over all connections.
    pub published: Receiver<Published>,
    answers: Sender<Vec<u8>>,
    task: JoinHandle<()>,
}

impl Scripted {
    /// Listens. One publisher at a time is answered.
    pub async fn start() -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("amqp://guest:guest@127.0.0.1:{}/%2f", listener.local_addr().unwrap().port());
        let (publishes, published) = channel(10_000);
        let (answers, mut queue) = channel::<Vec<u8>>(10);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = serve(stream, &publishes, &mut queue).await;
            }
        });
        Scripted { url, published, answers, task }
    }

    /// Returns these messages as unroutable, in this order, then acknowledges everything up to `last` in one frame.
    pub async fn return_and_ack(&self, returned: &[Published], last: &Published) {
        let mut bytes = Vec::new();
        for message in returned {
            let mut arguments = 312_u16.to_be_bytes().to_vec();
            for text in ["NO_ROUTE", "exchange", &message.routing_key] {
                short(text, &mut arguments);
            }
            method(message.channel, 60, 50, &arguments, &mut bytes);
            frame(HEADER, message.channel, &message.header, &mut bytes);
            if !message.body.is_empty() {
                frame(BODY, message.channel, &message.body, &mut bytes);
            }
        }
        let mut arguments = last.tag.to_be_bytes().to_vec();
        arguments.push(1);
        method(last.channel, 60, 80, &arguments, &mut bytes);
        self.answers.send(bytes).await.unwrap();
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn short(text: &str, out: &mut Vec<u8>) {
    out.push(u8::try_from(text.len()).unwrap());
    out.extend(text.as_bytes());
}

fn frame(kind: u8, channel: u16, payload: &[u8], out: &mut Vec<u8>) {
    out.push(kind);
    out.extend(channel.to_be_bytes());
    out.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    out.extend(payload);
    out.push(FRAME_END);
}

fn method(channel: u16, class: u16, method: u16, arguments: &[u8], out: &mut Vec<u8>) {
    let payload = [&class.to_be_bytes(), &method.to_be_bytes(), arguments].concat();
    frame(METHOD, channel, &payload, out);
}

async fn serve(
    mut stream: TcpStream,
    published: &Sender<Published>,
    answers: &mut Receiver<Vec<u8>>,
) -> std::io::Result<()> {
    stream.read_exact(&mut [0; 8]).await?;
    let mut start = vec![0, 9, 0, 0, 0, 0];
    for text in ["PLAIN", "en_US"] {
        start.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
        start.extend(text.as_bytes());
    }
    let mut out = Vec::new();
    method(0, 10, 10, &start, &mut out);
    stream.write_all(&out).await?;
    let (mut reader, mut writer) = stream.into_split();
    // Reading a frame must not be cut off by an answer.
    let (frames_tx, mut frames) = channel(1000);
    let reading = tokio::spawn(async move {
        while let Ok(frame) = read_frame(&mut reader).await {
            if frames_tx.send(frame).await.is_err() {
                return;
            }
        }
    });
    let mut message: Option<Published> = None;
    let mut tag = 0;
    loop {
        let (kind, channel, payload) = tokio::select! {
            frame = frames.recv() => match frame {
                Some(frame) => frame,
                None => break,
            },
            Some(bytes) = answers.recv() => {
                writer.write_all(&bytes).await?;
                continue;
            }
        };
        let mut out = Vec::new();
        match kind {
            METHOD => {
                let number = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
                let name = (number(0), number(2));
                if name == (60, 40) {
                    tag += 1;
                    let exchange_len = usize::from(payload[6]);
                    let key = 7 + exchange_len;
                    let key_end = key + 1 + usize::from(payload[key]);
                    let routing_key = String::from_utf8_lossy(&payload[key + 1..key_end]).into_owned();
                    message =
                        Some(Published { tag, routing_key, channel, header: Vec::new(), body: Vec::new() });
                } else {
                    answer(channel, name, &mut out);
                }
            }
            HEADER => message.as_mut().unwrap().header = payload,
            BODY => message.as_mut().unwrap().body.extend(payload),
            HEARTBEAT => frame(HEARTBEAT, 0, &[], &mut out),
            _ => break,
        }
        writer.write_all(&out).await?;
        let size = |header: &[u8]| u64::from_be_bytes(header[4..12].try_into().unwrap());
        let whole = |m: &Published| !m.header.is_empty() && m.body.len() as u64 == size(&m.header);
        if message.as_ref().is_some_and(whole) {
            let _ = published.send(message.take().unwrap()).await;
        }
    }
    reading.abort();
    Ok(())
}

/// To what a publisher asks before it publishes, and at its end.
fn answer(channel: u16, name: (u16, u16), out: &mut Vec<u8>) {
    match name {
        (10, 11) => {
            let tune = [&[0, 0][..], &FRAME_MAX.to_be_bytes(), &60_u16.to_be_bytes()].concat();
            method(0, 10, 30, &tune, out);
        }
        (10, 40) => method(0, 10, 41, &[0], out),
        (10, 50) => method(0, 10, 51, &[], out),
        (20, 10) => method(channel, 20, 11, &[0; 4], out),
        (20, 40) => method(channel, 20, 41, &[], out),
        (40, 10) => method(channel, 40, 11, &[], out),
        (50, 10) => method(channel, 50, 11, &[0; 9], out),
        (85, 10) => method(channel, 85, 11, &[], out),
        _ => {}
    }
}

async fn read_frame(reader: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<(u8, u16, Vec<u8>)> {
    let kind = reader.read_u8().await?;
    let channel = reader.read_u16().await?;
    let size = reader.read_u32().await?;
    let mut payload = vec![0; size as usize];
    reader.read_exact(&mut payload).await?;
    assert_eq!(reader.read_u8().await?, FRAME_END);
    Ok((kind, channel, payload))
}
