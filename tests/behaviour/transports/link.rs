//! Links that are slow, or that carry nothing any more and do not say so.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use quorate::{
    PeerAddr,
    sync::{LogServer, LogServerOptions, MemberAddr, Quic, ServeLimits, Transports},
};
use tokio::{net::UdpSocket, sync::mpsc, task::AbortHandle, task::JoinSet};

use super::{
    Kind,
    carrier::{Carrier, NETWORK},
};
use crate::client::ground::Ground;

/// Datagrams that wait for a slow link; further ones are lost.
const DATAGRAMS_WAITING: usize = 16;
const DATAGRAM_BYTES: usize = 65_536;

/// What a link does to what it carries.
#[derive(Debug)]
pub(super) struct Does {
    bytes_per_second: Option<usize>,
    stopped: AtomicBool,
}

impl Does {
    /// Waits for as long as the link needs for so many bytes; for ever once it has stopped.
    async fn carry(&self, bytes: usize) {
        if let Some(each_second) = self.bytes_per_second {
            let needs = bytes as f64 / each_second as f64;
            tokio::time::sleep(Duration::from_secs_f64(needs)).await;
        }
        if self.stopped.load(Ordering::SeqCst) {
            std::future::pending().await
        }
    }
}

/// A link to one member; cut when dropped.
pub(super) struct Link {
    does: Arc<Does>,
    task: AbortHandle,
}

impl Link {
    /// From now on nothing comes through, and nobody is told: as with a member whose process hangs.
    pub(super) fn stop(&self) {
        self.does.stopped.store(true, Ordering::SeqCst);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends what waits.
async fn datagrams(
    mut waiting: mpsc::Receiver<Vec<u8>>,
    from: Arc<UdpSocket>,
    to: SocketAddr,
    does: Arc<Does>,
) {
    while let Some(datagram) = waiting.recv().await {
        does.carry(datagram.len()).await;
        let _ = from.send_to(&datagram, to).await;
    }
}

/// Passes datagrams on between each client and a member.
async fn udp(member: SocketAddr, does: Arc<Does>) -> (SocketAddr, AbortHandle) {
    let door = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    let addr = door.local_addr().expect("it is bound");
    let door = Arc::new(door);
    let link = tokio::spawn(async move {
        let mut passing = JoinSet::new();
        let mut clients: Vec<(SocketAddr, mpsc::Sender<Vec<u8>>)> = Vec::new();
        let mut buffer = vec![0; DATAGRAM_BYTES];
        while let Ok((count, client)) = door.recv_from(&mut buffer).await {
            let datagram = buffer[..count].to_vec();
            if let Some((_, queue)) = clients.iter().find(|(it, _)| *it == client) {
                let _ = queue.try_send(datagram);
                continue;
            }
            let any = SocketAddr::new(member.ip(), 0);
            let there = Arc::new(UdpSocket::bind(any).await.expect("loopback"));
            let (up, waiting) = mpsc::channel(DATAGRAMS_WAITING);
            passing.spawn(datagrams(waiting, there.clone(), member, does.clone()));
            let (down, waiting) = mpsc::channel(DATAGRAMS_WAITING);
            passing.spawn(datagrams(waiting, door.clone(), client, does.clone()));
            passing.spawn(async move {
                let mut buffer = vec![0; DATAGRAM_BYTES];
                while let Ok(count) = there.recv(&mut buffer).await {
                    let _ = down.try_send(buffer[..count].to_vec());
                }
            });
            let _ = up.try_send(datagram);
            clients.push((client, up));
        }
    });
    (addr, link.abort_handle())
}

/// Passes bytes on between each client and a member. Its sockets stay open when it stops.
#[cfg(feature = "http")]
async fn tcp(member: SocketAddr, does: Arc<Does>) -> (SocketAddr, AbortHandle) {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    };
    async fn bytes(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, does: Arc<Does>) -> Option<()> {
        let mut buffer = [0; 2_048];
        loop {
            let count = from.read(&mut buffer).await.ok().filter(|it| *it > 0)?;
            does.carry(count).await;
            to.write_all(&buffer[..count]).await.ok()?;
        }
    }
    let door = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let addr = door.local_addr().expect("it is bound");
    let link = tokio::spawn(async move {
        let mut passing = JoinSet::new();
        while let Ok((client, _)) = door.accept().await {
            let member = TcpStream::connect(member).await.expect("it listens");
            let (from_client, to_client) = client.into_split();
            let (from_member, to_member) = member.into_split();
            passing.spawn(bytes(from_client, to_member, does.clone()));
            passing.spawn(bytes(from_member, to_client, does.clone()));
        }
    });
    (addr, link.abort_handle())
}

/// A server of a member's logs, and the only way to it, which is over a link.
pub(super) async fn server(
    carrier: &Carrier,
    ground: &Ground,
    limits: ServeLimits,
    bytes_per_second: Option<usize>,
) -> (LogServer, MemberAddr, Link) {
    let does = Arc::new(Does {
        bytes_per_second,
        stopped: AtomicBool::new(false),
    });
    let options = LogServerOptions {
        limits,
        ..LogServerOptions::default()
    };
    if carrier.kind == Kind::Quic {
        // The client's socket is of the other family, so that it finds no way round the link.
        let quic = |at: IpAddr| Transports::none().with("quic", Quic::new().bind((at, 0).into()));
        let logs = ground.logs[0].clone();
        let options = LogServerOptions {
            network: NETWORK,
            transports: quic(Ipv6Addr::LOCALHOST.into()),
            ..options
        };
        let server = LogServer::open(options, Arc::new(move |_, _, _| Ok(logs.clone()))).await;
        let server = server.expect("there is IPv6 on loopback");
        let bound = server.addr().addrs("quic")[0].parse().expect("an address");
        let (addr, task) = udp(bound, does.clone()).await;
        let there = PeerAddr::new(server.addr().peer(), [addr]);
        return (server, there.into(), Link { does, task });
    }
    let server = carrier.serve_with(&ground.logs[0], options).await;
    #[cfg(feature = "http")]
    {
        let bound = server.addr().addrs("http")[0].replace("http://", "");
        let (addr, task) = tcp(bound.parse().expect("an address"), does.clone()).await;
        let there = MemberAddr::from(PeerAddr::new(server.addr().peer(), []));
        let there = there.with("http", &format!("http://{addr}"));
        (server, there, Link { does, task })
    }
    #[cfg(not(feature = "http"))]
    unreachable!("{server:?}")
}
