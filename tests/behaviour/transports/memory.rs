//! A transport of a program's own: streams in memory. Its whole network is one table.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex},
};

use quorate::{
    PeerId,
    sync::{
        AcceptFuture, Caller, Dial, DialError, DialFuture, Dialled, Identity, Knock, ListenError,
        ListenFuture, Listener, MemberAddr, Place, Transport,
    },
};
use tokio::{io::DuplexStream, sync::mpsc};

const STREAM_BYTES: usize = 64 * 1024;

type Doors = BTreeMap<String, (PeerId, [u8; 32], mpsc::Sender<(PeerId, DuplexStream)>)>;

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
            let knocked = knocks.send((self.identity.secret.peer(), far)).await;
            knocked.map_err(|_| DialError::new("nobody there any more"))?;
            let (read, write) = tokio::io::split(near);
            Ok(Dialled {
                read: Box::new(read),
                write: Box::new(write),
            })
        })
    }
}

#[derive(Debug)]
struct MemoryListener {
    network: Memory,
    addr: String,
    waiting: tokio::sync::Mutex<mpsc::Receiver<(PeerId, DuplexStream)>>,
}

impl Listener for MemoryListener {
    fn accept(&self) -> AcceptFuture<'_> {
        Box::pin(async {
            let (peer, stream) = self.waiting.lock().await.recv().await?;
            let (read, write) = tokio::io::split(stream);
            Some(Box::pin(async move {
                Ok(Caller {
                    peer,
                    read: Box::new(read),
                    write: Box::new(write),
                    gone: Box::pin(std::future::ready(())),
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
