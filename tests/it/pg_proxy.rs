//! A proxy that knows PostgreSQL's messages, so that it can answer a statement in the server's place: with an error that the
//! real server gives only when its disk is full.
//!
//! Plain connections only. See <https://www.postgresql.org/docs/current/protocol-message-formats.html>.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::{JoinHandle, JoinSet};

/// What happens to a statement that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server never sees it.
    Refused,
    /// The server executes it, and its answer is replaced.
    AnswerLost,
}

/// Which statements fail.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Each of these is part of the statement.
    pub words: Vec<&'static str>,
    /// So many of them pass first.
    pub passes: usize,
    /// So many of them fail then.
    pub fails: usize,
    pub failure: Failure,
    pub sqlstate: &'static str,
    pub message: &'static str,
}

#[derive(Debug, Default)]
struct Script {
    rule: Mutex<Option<Rule>>,
    failed: AtomicUsize,
}

impl Script {
    /// Whether this statement fails, and how.
    fn judge(&self, sql: &str) -> Option<Rule> {
        let mut guard = self.rule.lock().unwrap();
        let rule = guard.as_mut().filter(|rule| rule.words.iter().all(|word| sql.contains(word)))?;
        if rule.passes > 0 {
            rule.passes -= 1;
            return None;
        }
        rule.fails = rule.fails.checked_sub(1)?;
        self.failed.fetch_add(1, Ordering::Relaxed);
        Some(rule.clone())
    }
}

/// A proxy on `127.0.0.1`; dropped, it cuts every connection.
#[derive(Debug)]
pub struct PgProxy {
    address: SocketAddr,
    script: Arc<Script>,
    accepting: JoinHandle<()>,
}

impl PgProxy {
    /// Listens on a free port and forwards to `target`.
    pub async fn start(target: String) -> PgProxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Script::default());
        let shared = Arc::clone(&script);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&target).await else { continue };
                connections.spawn(Connection::run(client, server, Arc::clone(&shared)));
            }
        });
        PgProxy { address, script, accepting }
    }

    /// `url` with its host and port replaced by the proxy's.
    pub fn url(&self, url: &str) -> String {
        let start = url.rfind('@').unwrap() + 1;
        let end = url[start..].find(['/', '?']).map_or(url.len(), |length| start + length);
        format!("{}{}{}", &url[..start], self.address, &url[end..])
    }

    /// From now on.
    pub fn fail(&self, rule: Rule) {
        *self.script.rule.lock().unwrap() = Some(rule);
    }

    /// Nothing fails any more.
    pub fn relent(&self) {
        *self.script.rule.lock().unwrap() = None;
    }

    /// Statements that failed so far.
    pub fn failed(&self) -> usize {
        self.script.failed.load(Ordering::Relaxed)
    }
}

impl Drop for PgProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A message with its type; the first one of a client has none.
struct Message {
    kind: u8,
    bytes: Vec<u8>,
}

impl Message {
    fn body(&self) -> &[u8] {
        &self.bytes[5..]
    }

    /// The strings that a message begins with.
    fn texts(&self) -> impl Iterator<Item = String> {
        self.body().split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned())
    }
}

struct Connection {
    to_client: OwnedWriteHalf,
    to_server: OwnedWriteHalf,
    script: Arc<Script>,
    /// Prepared statements by name.
    statements: HashMap<String, String>,
    /// Questions that the server has not answered to their end.
    open: usize,
    /// Of the last `ReadyForQuery`: idle, in a transaction, in a failed one.
    status: u8,
    /// The rest of a question that the server does not see.
    swallowing: Option<Rule>,
    /// The answer to the question is not the server's.
    replacing: Option<Rule>,
}

impl Connection {
    async fn run(client: TcpStream, server: TcpStream, script: Arc<Script>) {
        // Each message is a write of its own.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let (mut asked, mut answered) = (read(from_client, true), read(from_server, false));
        let mut connection = Connection {
            to_client,
            to_server,
            script,
            statements: HashMap::new(),
            // The start-up is one question.
            open: 1,
            status: b'I',
            swallowing: None,
            replacing: None,
        };
        loop {
            let done = tokio::select! {
                // What is left to answer comes before the next question.
                biased;
                message = answered.recv() => match message {
                    Some(message) => connection.on_answer(message).await,
                    None => break,
                },
                message = asked.recv(), if connection.free() => match message {
                    Some(message) => connection.on_question(message).await,
                    None => break,
                },
            };
            if done.is_err() {
                break;
            }
        }
        let _ = connection.to_server.shutdown().await;
    }

    /// A statement that is answered here waits until the server has answered what came before it, and the next one until
    /// that is done.
    fn free(&self) -> bool {
        let asked = self.replacing.is_some() && self.open > 0;
        !asked && (self.swallowing.is_none() || self.open == 0)
    }

    async fn on_question(&mut self, message: Message) -> std::io::Result<()> {
        if let Some(rule) = self.swallowing.clone() {
            if message.kind == b'S' {
                self.swallowing = None;
                return self.say(&rule).await;
            }
            return Ok(());
        }
        let mut texts = message.texts();
        match message.kind {
            b'P' => {
                let (name, sql) = (texts.next().unwrap(), texts.next().unwrap());
                drop(texts);
                self.statements.insert(name, sql);
            }
            b'B' => {
                let name = texts.nth(1).unwrap();
                drop(texts);
                let sql = self.statements.get(&name).map_or("", String::as_str);
                match self.script.judge(sql) {
                    Some(rule) if rule.failure == Failure::Refused => {
                        self.swallowing = Some(rule);
                        return Ok(());
                    }
                    Some(rule) => self.replacing = Some(rule),
                    None => {}
                }
            }
            b'S' | b'Q' => {
                drop(texts);
                self.open += 1;
            }
            _ => drop(texts),
        }
        self.to_server.write_all(&message.bytes).await
    }

    async fn on_answer(&mut self, message: Message) -> std::io::Result<()> {
        let ends = message.kind == b'Z';
        if ends {
            self.open = self.open.saturating_sub(1);
            self.status = message.bytes[5];
        }
        match self.replacing.clone() {
            Some(rule) if ends => {
                self.replacing = None;
                self.say(&rule).await
            }
            Some(_) => Ok(()),
            None => self.to_client.write_all(&message.bytes).await,
        }
    }

    /// Answers in the server's place.
    async fn say(&mut self, rule: &Rule) -> std::io::Result<()> {
        let mut body = Vec::new();
        for (field, text) in [(b'S', "ERROR"), (b'V', "ERROR"), (b'C', rule.sqlstate), (b'M', rule.message)] {
            body.push(field);
            body.extend(text.as_bytes());
            body.push(0);
        }
        body.push(0);
        let mut bytes = vec![b'E'];
        bytes.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        bytes.extend(body);
        let status = if self.status == b'I' { b'I' } else { b'E' };
        bytes.extend([b'Z', 0, 0, 0, 5, status]);
        self.to_client.write_all(&bytes).await
    }
}

/// Reads messages to the end of the connection. In a task of its own: reading one must not be cut off.
fn read(mut from: OwnedReadHalf, client: bool) -> Receiver<Message> {
    let (messages, receiver) = channel(100);
    tokio::spawn(async move {
        let mut untyped = client;
        while let Ok(message) = read_one(&mut from, untyped).await {
            untyped = false;
            if messages.send(message).await.is_err() {
                return;
            }
        }
    });
    receiver
}

async fn read_one(from: &mut OwnedReadHalf, untyped: bool) -> std::io::Result<Message> {
    let mut bytes = vec![0; if untyped { 4 } else { 5 }];
    from.read_exact(&mut bytes).await?;
    let kind = if untyped { 0 } else { bytes[0] };
    let head = bytes.len();
    let size = u32::from_be_bytes(bytes[head - 4..].try_into().unwrap()) as usize;
    bytes.resize(head + size - 4, 0);
    from.read_exact(&mut bytes[head..]).await?;
    Ok(Message { kind, bytes })
}
