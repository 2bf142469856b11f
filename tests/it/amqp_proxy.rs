//! A proxy that knows AMQP's frames, so that it can hold back some answers of a broker and let the others pass.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

const METHOD: u8 = 1;
/// `basic.ack` and `basic.nack`: class and method.
const CONFIRMS: [[u8; 4]; 2] = [[0, 60, 0, 80], [0, 60, 0, 120]];
/// Frame type, channel, size.
const HEAD_BYTES: usize = 7;

/// A proxy on `127.0.0.1`; dropped, it cuts every connection.
#[derive(Debug)]
pub struct AmqpProxy {
    address: SocketAddr,
    holding: watch::Sender<bool>,
    held: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl AmqpProxy {
    /// Listens on a free port and forwards to `target`, a broker's plain listener.
    pub async fn start(target: String) -> AmqpProxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (holding, receiver) = watch::channel(false);
        let held = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&held);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&target).await else { continue };
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                let (mut from_client, to_client) = client.into_split();
                let (from_server, mut to_server) = server.into_split();
                connections.spawn(async move {
                    let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
                    let _ = to_server.shutdown().await;
                });
                connections.spawn(answers(from_server, to_client, receiver.clone(), Arc::clone(&counter)));
            }
        });
        AmqpProxy { address, holding, held, accepting }
    }

    /// `url` with its host and port replaced by the proxy's.
    pub fn url(&self, url: &str) -> String {
        let start = url.rfind('@').unwrap() + 1;
        let end = url[start..].find('/').map_or(url.len(), |length| start + length);
        format!("{}{}{}", &url[..start], self.address, &url[end..])
    }

    /// Holds confirms back from now on, or lets them go.
    pub fn hold(&self, holding: bool) {
        self.holding.send_replace(holding);
    }

    /// Frames that were held back so far.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Drop for AmqpProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Passes a broker's frames on. Confirms that are held back keep their order.
async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut holding: watch::Receiver<bool>,
    held: Arc<AtomicUsize>,
) {
    let (frames, mut next) = tokio::sync::mpsc::channel::<Vec<u8>>(100);
    // Reading a frame must not be cut off.
    let reading = tokio::spawn(async move {
        while let Ok(frame) = read_frame(&mut from).await {
            if frames.send(frame).await.is_err() {
                return;
            }
        }
    });
    let mut waiting: Vec<u8> = Vec::new();
    loop {
        let passes = tokio::select! {
            frame = next.recv() => match frame {
                Some(frame) if *holding.borrow() && is_confirm(&frame) => {
                    waiting.extend(frame);
                    held.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                Some(frame) if !*holding.borrow() => [std::mem::take(&mut waiting), frame].concat(),
                Some(frame) => frame,
                None => break,
            },
            changed = holding.changed() => match changed {
                Ok(()) if !*holding.borrow() => std::mem::take(&mut waiting),
                Ok(()) => continue,
                Err(_) => break,
            },
        };
        if to.write_all(&passes).await.is_err() {
            break;
        }
    }
    reading.abort();
}

fn is_confirm(frame: &[u8]) -> bool {
    let name = frame.get(HEAD_BYTES..HEAD_BYTES + 4);
    frame[0] == METHOD && name.is_some_and(|name| CONFIRMS.iter().any(|confirm| confirm == name))
}

async fn read_frame(from: &mut OwnedReadHalf) -> std::io::Result<Vec<u8>> {
    let mut frame = vec![0; HEAD_BYTES];
    from.read_exact(&mut frame).await?;
    let size = u32::from_be_bytes([frame[3], frame[4], frame[5], frame[6]]) as usize;
    frame.resize(HEAD_BYTES + size + 1, 0);
    from.read_exact(&mut frame[HEAD_BYTES..]).await?;
    Ok(frame)
}
