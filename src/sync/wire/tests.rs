//! The endpoint over loopback: names, dialling back, who is a neighbour.

use super::*;

const STUCK: Duration = Duration::from_secs(20);

async fn soon<T>(what: &str, waited_for: impl Future<Output = T>) -> T {
    match tokio::time::timeout(STUCK, waited_for).await {
        Ok(value) => value,
        Err(_) => panic!("stuck: {what}"),
    }
}

async fn wire(seed: u8) -> Wire {
    Wire::bind(WireOptions {
        secret: Zeroizing::new([seed; 32]),
        bind: vec![(Ipv4Addr::LOCALHOST, 0).into()],
        former: Settings::default(),
        relay: RelayChoice::Off,
        network: *blake3::hash(b"p2panda").as_bytes(),
        own: Vec::new(),
    })
    .await
    .expect("loopback can be bound")
}

#[test]
fn names_are_those_of_stock_nodes() {
    let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
    let network = *blake3::hash(b"p2panda").as_bytes();
    let names: Vec<String> = alpns(&network, &[])
        .iter()
        .filter(|(service, _)| *service != Service::Client)
        .map(|(_, alpn)| hex(alpn))
        .collect();
    assert_eq!(
        names,
        [
            "64fc91f9ab01b19d29bd8a040e4624be0b164fffd4f32dbfac635c039c5279a5",
            "8c07b2107cbeaf450e3a17e47c499e8e0fd7549b9c5bdada49c9f9856af16f96",
            "66c8b9a2c148fcd117ed8521a9150a9cca90bf0efc4a0b658a6c411eb00a4eae",
        ]
    );
}

#[tokio::test]
async fn a_peer_that_came_in_is_dialled_back_by_its_bare_id() {
    let (us, peer) = (wire(1).await, wire(2).await);
    let (accepted, dialled) = soon("they dial us", async {
        let addr = us.addr();
        tokio::join!(
            async {
                let knock = us.accept().await.expect("we are open");
                knock.accept(|_, _| true).await.expect("they stay")
            },
            peer.dial(&addr, Service::Sync),
        )
    })
    .await;
    let dialled = dialled.expect("we are there");
    assert_eq!(accepted.0, Service::Sync);
    assert_eq!(accepted.1.remote(), peer.id());
    assert!(
        !accepted.1.remote_addr().addrs.is_empty(),
        "their path is known"
    );

    // While their connection stands, and after it is gone.
    for gone in [false, true] {
        if gone {
            dialled.close("done");
            soon("the end is seen", accepted.1.closed()).await;
        }
        let bare = PeerAddr::new(peer.id(), []);
        let (knocked, back) = soon("we dial back", async {
            tokio::join!(
                async {
                    peer.accept()
                        .await
                        .expect("they are open")
                        .accept(|_, _| true)
                        .await
                },
                us.dial(&bare, Service::Sync),
            )
        })
        .await;
        let back = back.expect("the path they came in on is known");
        assert_eq!(back.remote(), peer.id());
        drop(knocked);
    }
    us.close().await;
    peer.close().await;
}

#[tokio::test]
async fn two_that_join_one_overlay_become_neighbours() {
    let (us, peer) = (wire(3).await, wire(4).await);
    let accepting = |wire: Wire| async move {
        while let Some(knock) = wire.accept().await {
            let _ = knock.accept(|_, _| true).await;
        }
    };
    let tasks = [
        tokio::spawn(accepting(us.clone())),
        tokio::spawn(accepting(peer.clone())),
    ];
    let mut ours = us.join([7; 32]).await.expect("we are open");
    let mut theirs = peer.join([7; 32]).await.expect("they are open");
    us.learn(&peer.addr());
    ours.invite(&[peer.id()]).await.expect("gossip is open");
    assert_eq!(
        soon("our neighbour", ours.next()).await,
        Some(Neighbour::Up(peer.id()))
    );
    assert_eq!(
        soon("their neighbour", theirs.next()).await,
        Some(Neighbour::Up(us.id()))
    );
    drop(theirs);
    assert_eq!(
        soon("they leave", ours.next()).await,
        Some(Neighbour::Down(peer.id()))
    );
    us.close().await;
    peer.close().await;
    for task in tasks {
        task.await.expect("the acceptor ends with its endpoint");
    }
}

#[tokio::test]
async fn another_network_finds_no_one() {
    let us = wire(5).await;
    let stranger = Wire::bind(WireOptions {
        secret: Zeroizing::new([6; 32]),
        bind: vec![(Ipv4Addr::LOCALHOST, 0).into()],
        former: Settings::default(),
        relay: RelayChoice::Off,
        network: [0; 32],
        own: Vec::new(),
    })
    .await
    .expect("loopback can be bound");
    let addr = us.addr();
    let (knocked, dialled) = soon("the refusal", async {
        tokio::join!(
            async {
                us.accept()
                    .await
                    .expect("we are open")
                    .accept(|_, _| true)
                    .await
            },
            stranger.dial(&addr, Service::Sync),
        )
    })
    .await;
    assert!(knocked.is_err() && dialled.is_err());
    us.close().await;
    stranger.close().await;
}
