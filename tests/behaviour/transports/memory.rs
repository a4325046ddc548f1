//! A transport of a program's own: streams in memory. Its whole network is one table.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use quorate::{
    PeerId,
    sync::{
        AcceptFuture, Caller, Dial, DialError, DialFuture, Dialled, Identity, Knock, ListenError,
        ListenFuture, Listener, MemberAddr, Place, Transport,
    },
};
use tokio::{
    io::{AsyncRead, DuplexStream, ReadBuf, ReadHalf},
    sync::{mpsc, oneshot},
};

const STREAM_BYTES: usize = 64 * 1024;

/// Who comes, the stream, and what ends when the client has let go of it.
type Knocking = (PeerId, DuplexStream, oneshot::Receiver<()>);
type Doors = BTreeMap<String, (PeerId, [u8; 32], mpsc::Sender<Knocking>)>;

/// The network: who listens under which address. Clones are the same network.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Arc<Mutex<Doors>>);

impl Transport for Memory {
    fn dialler(&self, identity: Identity) -> Arc<dyn Dial> {
        Arc::new(MemoryDial {
            network: self.clone(),
            identity,
        })
    }

    fn listen(&self, place: Place) -> ListenFuture<'_> {
        Box::pin(async move {
            let peer = place.secret.peer();
            let (knocks, waiting) = mpsc::channel(place.sessions_max);
            let mut doors = self.0.lock().expect("no panic");
            let addr = place
                .kept
                .unwrap_or_else(|| format!("{}-{peer}", doors.len()));
            if doors.contains_key(&addr) {
                return Err(ListenError::new("the address is taken"));
            }
            doors.insert(addr.clone(), (peer, place.network, knocks));
            Ok(Box::new(MemoryListener {
                network: self.clone(),
                addr,
                waiting: tokio::sync::Mutex::new(waiting),
            }) as Box<dyn Listener>)
        })
    }
}

#[derive(Debug)]
struct MemoryDial {
    network: Memory,
    identity: Identity,
}

impl Dial for MemoryDial {
    fn dial<'a>(&'a self, member: &'a MemberAddr) -> DialFuture<'a> {
        Box::pin(async move {
            let addr = member.addrs("memory").pop();
            let addr = addr.ok_or_else(|| DialError::new("no address"))?;
            let door = self.network.0.lock().expect("no panic").get(&addr).cloned();
            let (peer, network, knocks) = door.ok_or_else(|| DialError::new("nobody there"))?;
            if peer != member.peer() || network != self.identity.network {
                return Err(DialError::new("somebody else is there"));
            }
            let (near, far) = tokio::io::duplex(STREAM_BYTES);
            let (here, gone) = oneshot::channel();
            let knocked = knocks.send((self.identity.secret.peer(), far, gone)).await;
            knocked.map_err(|_| DialError::new("nobody there any more"))?;
            let (read, write) = tokio::io::split(near);
            Ok(Dialled {
                read: Box::new(Read { read, _here: here }),
                write: Box::new(write),
            })
        })
    }
}

/// The client's end, while it is there.
struct Read {
    read: ReadHalf<DuplexStream>,
    _here: oneshot::Sender<()>,
}

impl AsyncRead for Read {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.read).poll_read(cx, to)
    }
}

#[derive(Debug)]
struct MemoryListener {
    network: Memory,
    addr: String,
    waiting: tokio::sync::Mutex<mpsc::Receiver<Knocking>>,
}

impl Listener for MemoryListener {
    fn accept(&self) -> AcceptFuture<'_> {
        Box::pin(async {
            let (peer, stream, gone) = self.waiting.lock().await.recv().await?;
            let (read, write) = tokio::io::split(stream);
            Some(Box::pin(async move {
                Ok(Caller {
                    peer,
                    read: Box::new(read),
                    write: Box::new(write),
                    gone: Box::pin(async move {
                        let _ = gone.await;
                    }),
                })
            }) as Knock)
        })
    }

    fn addrs(&self) -> Vec<String> {
        vec![self.addr.clone()]
    }

    fn settings(&self) -> String {
        self.addr.clone()
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            self.network.0.lock().expect("no panic").remove(&self.addr);
        })
    }
}
