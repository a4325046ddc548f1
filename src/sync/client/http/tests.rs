//! An `https` URL: a proxy that ends the TLS outside, and cannot pass for the member inside.

use std::{net::SocketAddr, time::Duration};

use data_encoding::HEXLOWER;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::{
    super::{
        dial::Dialled,
        transport::{Caller, Secret},
    },
    *,
};
use crate::{identity::PeerAddr, sync::MemberAddr};

/// Signed by itself, for a name that nobody has.
const CERTIFICATE: &str = concat!(
    "3082011b3081cea003020102020101300506032b6570300c310a300806035504030c01613020170d32363131",
    "32313036333630365a180f32313236313032383036333630365a300c310a300806035504030c0161302a3005",
    "06032b6570032100e3ebe329324ef7d023e3f254aad5f4a4de1073ed30a47a04046fd6c8558ca564a3533051",
    "301d0603551d0e041604148b4c1bb293961e3431afc6ce8de39c11f6faef78301f0603551d23041830168014",
    "8b4c1bb293961e3431afc6ce8de39c11f6faef78300f0603551d130101ff040530030101ff300506032b6570",
    "0341007049062a42925833cd14f5a2c41eb380a886515c6d27dfe7af0968abb91952d0e6573c24dda7376d09",
    "f4fb8f9f248bc45a25d4c5bd8d664d495dd4ed15a6940b",
);
const KEY: &str = concat!(
    "302e020100300506032b657004220420f70a617a15630890c69f3c5160eb5a98cdf66bd905d570e3bce90332",
    "2bd9cabd",
);

async fn soon<T>(what: &str, waited_for: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(30), waited_for).await {
        Ok(value) => value,
        Err(_) => panic!("stuck: {what}"),
    }
}

/// Ends TLS, and passes on what is inside.
async fn proxy(to: SocketAddr) -> SocketAddr {
    let bytes = |hex: &str| HEXLOWER.decode(hex.as_bytes()).expect("hexadecimal");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(bytes(KEY)));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the versions are known")
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from(bytes(CERTIFICATE))], key)
        .expect("they fit");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let addr = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut client = acceptor.accept(client).await.ok()?;
                let mut member = TcpStream::connect(to).await.ok()?;
                copy_bidirectional(&mut client, &mut member).await.ok()
            });
        }
    });
    addr
}

const NETWORK: [u8; 32] = [4; 32];

fn place(secret: &Secret) -> Place {
    Place {
        network: NETWORK,
        secret: secret.clone(),
        sessions_max: 4,
        kept: None,
    }
}

fn identity() -> Identity {
    Identity {
        network: NETWORK,
        secret: Secret::from([3; 32]),
    }
}

#[tokio::test]
async fn a_proxy_that_ends_tls_passes_a_session_on_and_is_not_taken_for_the_member() {
    let secret = Secret::from([8; 32]);
    let place = place(&secret);
    let http = Http::new().bind(([127, 0, 0, 1], 0).into());
    let listener = http.listen(place).await.expect("loopback");
    let bound = listener.addrs()[0].replace("http://", "");
    let url = proxy(bound.parse().expect("an address")).await;
    let member = |secret: &Secret| {
        let member = MemberAddr::from(PeerAddr::new(secret.peer(), []));
        member.with("http", &format!("https://{url}"))
    };
    let identity = identity();
    let dial = http.dialler(identity.clone());
    let serving = tokio::spawn(async move {
        while let Some(knock) = listener.accept().await {
            let Ok(mut caller) = knock.await else {
                continue;
            };
            let me = caller.peer;
            tokio::spawn(async move {
                let mut word = [0; 4];
                caller.read.read_exact(&mut word).await.ok()?;
                caller.write.write_all(me.as_bytes()).await.ok()?;
                caller.write.shutdown().await.ok()?;
                drop((caller.read, caller.write));
                caller.gone.await;
                Some(())
            });
        }
    });
    let here = member(&secret);
    let dialled = soon("the dial", dial.dial(&here)).await;
    let Dialled {
        mut read,
        mut write,
    } = dialled.expect("it answers");
    write.write_all(b"word").await.expect("there is room");
    write.flush().await.expect("it is sent");
    let mut answer = Vec::new();
    let end = soon("the answer", read.read_to_end(&mut answer)).await;
    end.expect("a clean end");
    assert_eq!(answer, identity.secret.peer().as_bytes());

    let somebody_else = member(&Secret::from([9; 32]));
    let imposter = soon("the refusal", dial.dial(&somebody_else)).await;
    assert!(imposter.is_err());
    serving.abort();
}

/// Goes on between a client and a member until it is told; then the member hears no more of the
/// client, not that it is gone either, as when a cable is pulled.
#[cfg(any(target_os = "linux", target_os = "android"))]
async fn cable(to: SocketAddr) -> (SocketAddr, tokio::sync::oneshot::Sender<()>) {
    use socket2::{SockFilter, SockRef};
    /// "Take nothing of the packet", for the filter of a socket.
    const RETURN: u16 = 6;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let addr = listener.local_addr().expect("it is bound");
    let (pull, pulled) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.ok()?;
        let mut member = TcpStream::connect(to).await.ok()?;
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut member) => None::<()>,
            _ = pulled => {
                let nothing = [SockFilter::new(RETURN, 0, 0, 0)];
                SockRef::from(&member).attach_filter(&nothing).expect("it is allowed");
                std::future::pending().await
            }
        }
    });
    (addr, pull)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
#[tokio::test]
async fn a_client_that_vanished_is_given_up() {
    let secret = Secret::from([8; 32]);
    let place = place(&secret);
    let opened = HttpListener::open(Some(([127, 0, 0, 1], 0).into()), &[], &place).await;
    let mut listener = opened.expect("loopback");
    listener.gone_after = Duration::from_secs(1);
    let bound = listener.addrs()[0].replace("http://", "");
    let (url, pull) = cable(bound.parse().expect("an address")).await;
    let identity = identity();
    let member = MemberAddr::from(PeerAddr::new(secret.peer(), []));
    let member = member.with("http", &format!("http://{url}"));
    let dial = Http::new().dialler(identity);
    let knock = async { listener.accept().await.expect("it listens").await };
    let both = async { tokio::join!(dial.dial(&member), knock) };
    let (dialled, caller) = soon("both", both).await;
    let _dialled = dialled.expect("it answers");
    let Caller {
        mut read,
        mut write,
        gone,
        ..
    } = caller.expect("it is let in");
    pull.send(()).expect("it is there");
    let failing = async {
        while write.write_all(b"news").await.is_ok() && write.flush().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let mut word = [0; 4];
    let end = soon("the end", async {
        tokio::select! {
            end = read.read_exact(&mut word) => end.map(drop),
            () = failing => Ok(()),
        }
    });
    drop(end.await);
    drop((read, write));
    soon("it is gone", gone).await;
}
